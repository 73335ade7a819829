"""Choose and mend what a model is trained on, without clean labels."""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [file.stem for file in Path(__file__).parent.glob("[a-z]*.py")],
    {
        "_curator": ["ScoreCurator", "select"],
        "_robust": ["RobustClassifier"],
        "_cotraining": ["CoTeaching", "DivideMix", "JoCoR"],
        "_detectors": ["CORES", "Cleanlab", "ConfidentLearning", "DeepKNN", "SimiFeat"],
        "_ray": ["ds2_on_ray", "label_errors_on_ray", "token_mask_on_ray"],
        "_ray_adc": ["adc_clean_on_ray"],
        "_ray_entp": ["entp_on_ray"],
    },
)
