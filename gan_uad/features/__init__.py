"""Pretrained feature networks, and where their weights come from.

Here: what turns images into features or perceptual distances with weights that somebody else trained. Not here: what is computed from
the features (`metrics/`), and anything that is trained in this project (`networks/`, `training/`).
"""
