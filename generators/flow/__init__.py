"""Flow matching on weights: paths, velocity networks, solvers, training."""
