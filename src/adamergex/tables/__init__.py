"""Tables of results: plans, transfer, studies."""
