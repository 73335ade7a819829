"""What `amends curate ds2` is made of: raters, their ratings, the estimator that mends them, and report."""
