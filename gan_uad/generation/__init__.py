"""Use and compare generators: generate, interpolate, latents, tables of FID and KID, classifiers on real and generated patches.

Training a generator belongs to `training/`, scoring images by one to `detection/`.
"""
