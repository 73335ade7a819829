"""Rescale probabilities so that accuracy holds under every prior near a target."""

from amends.fair._prior_robust import delta_worst_accuracy
from amends.fair._prior_robust_classifier import PriorRobustClassifier

__all__ = ["PriorRobustClassifier", "delta_worst_accuracy"]
