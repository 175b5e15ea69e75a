"""`gan-uad benchmark`: methods × data sets × seeds in one table.

Here belong the schema of a benchmark file, its plan, the cells that run, and its tables. Training, scoring and evaluation themselves
belong to the rooms that a cell calls.
"""
