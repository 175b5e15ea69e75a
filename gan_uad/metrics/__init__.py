"""Pure metrics: arrays in, numbers out.

Here belongs what turns scores, labels, maps, masks or features (numpy arrays) into a metric with a definition that can
be cited and checked against a reference. Here does not belong anything that reads or writes files, trains, draws,
prints, or knows of torch, click or a run folder: that belongs to the rooms above.

`detection` is where callers import the image-level metrics from (it gathers `ranking`, `bootstrap`, `thresholds`,
`decisions` and `calibration`); `pixel` compares anomaly maps with masks; `generation` compares features of generated and
real images (it gathers `frechet`, `kid` and `neighbours`); `shrinkage` has a covariance that can be inverted.
"""
