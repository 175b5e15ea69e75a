"""How far an image is from normal: `base.py` is the one interface, one file per scorer.

Not here: metrics over a labelled set (`metrics/`), the search for a latent (`encoders/`; a scorer gets an inverter handed in).
"""
