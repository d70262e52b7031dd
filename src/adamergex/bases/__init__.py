"""What is done with whole backbones: list them, trim their vocabulary, give them a masked-LM head."""
