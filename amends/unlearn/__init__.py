"""Make a language model forget."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amends.unlearn.flat import FLATConfig, FLATTrainer, flat_loss
    from amends.unlearn.ga import GATrainer

_HOME = {"FLATConfig": "flat", "FLATTrainer": "flat", "GATrainer": "ga", "flat_loss": "flat"}
__all__ = ["FLATConfig", "FLATTrainer", "GATrainer", "flat_loss"]
_METHODS = [file.stem for file in sorted(Path(__file__).parent.glob("[a-z]*.py"))]


def __getattr__(name: str) -> Any:
    """Import a method's module, and torch with it, when it is first asked for."""
    if name not in _HOME and name not in _METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME.get(name, name)}")
    return getattr(module, name) if name in _HOME else module


def __dir__() -> list[str]:
    return [*__all__, *_METHODS]
