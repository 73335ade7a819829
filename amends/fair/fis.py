"""Choose which rows to label next so that a model becomes fairer and stays as accurate."""

from amends.fair._sampler import FairInfluenceSampler
