"""How the weight of the divergence is chosen."""
