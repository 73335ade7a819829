"""What `amends curate token_cleaning` is made of: masks, rows as tokens, stages, and report."""
