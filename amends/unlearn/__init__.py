"""Make a language model forget."""

from pathlib import Path
from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from amends.unlearn.flat import FLATConfig, FLATTrainer, flat_loss
    from amends.unlearn.ga import GATrainer

__all__ = ["FLATConfig", "FLATTrainer", "GATrainer", "flat_loss"]
# A method's module, and torch with it, is imported when it is first asked for.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    [file.stem for file in Path(__file__).parent.glob("[a-z]*.py")],
    {"flat": ["FLATConfig", "FLATTrainer", "flat_loss"], "ga": ["GATrainer"]},
)
