"""What a set of patches is, where patches come from, and how they reach the network.

Not here: whole slides (`slides/`), and everything that depends on a model.
"""
