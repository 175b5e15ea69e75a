"""Pretrained feature networks, and where their weights come from.

Here belongs what turns images into features or perceptual distances with weights that somebody else trained. Here does not belong what
is made of the features (`metrics/`), nor anything that is trained in this project (`networks/`, `training/`).
"""
