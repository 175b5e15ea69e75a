"""Detection on patches: score them, project them, read and evaluate score files, cross-validate.

Whole slides belong to `slides/`, the scorers themselves to `scoring/`, metrics to `metrics/`.
"""
