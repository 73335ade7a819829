"""What `amends fair concept_influence` is made of: concepts, scores, repairs, estimator and report."""
