"""Choose and mend what a model is trained on, without clean labels."""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [file.stem for file in Path(__file__).parent.glob("[a-z]*.py")],
    {
        "_ds2.curator": ["ScoreCurator", "select"],
        "_labels.robust": ["RobustClassifier"],
        "_labels.cotraining": ["CoTeaching", "DivideMix", "JoCoR"],
        "_labels.detectors": ["CORES", "Cleanlab", "ConfidentLearning", "DeepKNN", "SimiFeat"],
        "_ray.methods": ["ds2_on_ray", "label_errors_on_ray", "token_mask_on_ray"],
        "_ray.adc": ["adc_clean_on_ray"],
        "_ray.entp": ["entp_on_ray"],
    },
)
