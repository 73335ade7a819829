"""What `amends fair fis` is made of: sampler, validation rows, models, rounds and report."""
