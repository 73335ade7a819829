"""Wrong labels: detectors, classifiers that withstand them, votes of neighbours, and doubts about all of it."""
