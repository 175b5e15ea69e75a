"""From an image back to a latent of a trained generator: `base.py` is the interface, one file per method.

Not here: how the result becomes a score (`gan_uad.scoring`), and the network definitions (`gan_uad.networks`).
"""
