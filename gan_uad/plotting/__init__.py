"""Figures and grids of images as files. The callers compute the numbers and choose what to show."""
