"""Measure and mend unfairness where groups, or the prior of the future, are not known."""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [file.stem for file in Path(__file__).parent.glob("[a-z]*.py")],
    {
        "_concept_estimator": ["ConceptInfluence"],
        "_concepts": ["Rows", "group_transport", "label_flip", "removal", "set_column"],
        "_network": ["NetworkClassifier"],
        "drops": ["PriorRobustClassifier", "delta_worst_accuracy"],
        "_abstaining": ["AbstainingFairClassifier"],
        "_program": ["Infeasible"],
        "_sampler": ["FairInfluenceSampler"],
        "proxies": ["ProxyFairness", "proxy_fairness"],
        "_proxy_gap": ["CalibratedGap", "calibrated_gap"],
    },
)
