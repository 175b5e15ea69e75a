"""How figures and pictures are shown: tables as text, plots and picture grids as PNG, the report as HTML.

Here belongs what lays out numbers and images that others have computed. Here does not belong computing them (that is
`metrics/`), deciding what to show or reading a run folder (that is `jobs/`).
"""
