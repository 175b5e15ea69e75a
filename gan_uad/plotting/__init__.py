"""Figures and grids of images as files. Whoever calls computes the numbers and decides what to show."""
