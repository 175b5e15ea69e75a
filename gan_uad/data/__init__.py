"""What a set of patches is, where patches come from, and how they reach the network.

Not here: whole slides (`slides/`), anything that depends on a model.
"""
