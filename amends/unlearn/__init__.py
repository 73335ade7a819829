"""Make a language model forget."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from amends.unlearn.flat import FLATConfig as FLATConfig
    from amends.unlearn.flat import FLATTrainer as FLATTrainer
    from amends.unlearn.flat import flat_loss as flat_loss
    from amends.unlearn.ga import GATrainer as GATrainer

NAMES = re.compile(r"^(?:class|def) (\w+(?:Trainer|Config|_loss))\b", re.MULTILINE)
METHODS = {file.stem: NAMES.findall(file.read_text("utf-8")) for file in Path(__file__).parent.glob("[a-z]*.py")}
# A method's module, and torch with it, is imported when it or its trainer, settings or loss is first asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, list(METHODS), METHODS)
