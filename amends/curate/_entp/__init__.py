"""What `amends curate entp` is made of: purge, pairs, fusing, its rules and judge, and report."""
