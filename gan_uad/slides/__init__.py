"""Whole slides: read them, find their tissue, normalise their stain, cut tiles, read annotations, write heatmaps.

Here belongs what knows of gigapixel files and level-0 coordinates. Here does not belong what a patch set is (that is `data/`),
anything that needs a model or torch, or deciding what to do with a batch of slides (that is `jobs/`).
"""
