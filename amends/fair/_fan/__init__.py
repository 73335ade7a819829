"""What `amends fair fan` is made of: program, rule, estimator, tables and report."""
