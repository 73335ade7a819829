"""What `amends fair drops` is made of: priors near a target, weights, estimator, tables and report."""
