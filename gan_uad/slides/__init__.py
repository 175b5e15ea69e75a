"""Whole slides: read them, find tissue, normalise stain, read annotations, tile, score, evaluate, draw heatmaps.

Patches belong to `detection/`.
"""
