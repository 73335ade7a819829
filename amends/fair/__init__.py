"""Measure and mend unfairness where groups, or the prior of the future, are not known."""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [file.stem for file in Path(__file__).parent.glob("[a-z]*.py")],
    {
        "_concept_influence.estimator": ["ConceptInfluence"],
        "_concept_influence.concepts": ["Rows", "group_transport", "label_flip", "removal", "set_column"],
        "_fis.network": ["NetworkClassifier"],
        "drops": ["PriorRobustClassifier", "delta_worst_accuracy"],
        "_fan.abstaining": ["AbstainingFairClassifier"],
        "_fan.program": ["Infeasible"],
        "_fis.sampler": ["FairInfluenceSampler"],
        "proxies": ["ProxyFairness", "proxy_fairness"],
        "_proxies.gap": ["CalibratedGap", "calibrated_gap"],
    },
)
