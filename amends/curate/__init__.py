"""Choose and mend what a model is trained on, without clean labels."""

from importlib import import_module
from pathlib import Path
from typing import Any

_HOME = (
    {"ScoreCurator": "_curator", "RobustClassifier": "_robust"}
    | dict.fromkeys(("CoTeaching", "JoCoR", "DivideMix"), "_cotraining")
    | dict.fromkeys(("ds2_on_ray", "label_errors_on_ray", "token_mask_on_ray"), "_ray")
    | dict.fromkeys(("SimiFeat", "DeepKNN", "ConfidentLearning", "Cleanlab", "CORES"), "_detectors")
)
__all__ = list(_HOME)
_METHODS = [file.stem for file in sorted(Path(__file__).parent.glob("[a-z]*.py"))]


def __getattr__(name: str) -> Any:
    """Import a method's module when it is first asked for."""
    if name not in _HOME and name not in _METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME.get(name, name)}")
    return getattr(module, name) if name in _HOME else module


def __dir__() -> list[str]:
    return [*__all__, *_METHODS]
