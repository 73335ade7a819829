"""Silence of the libraries that load models."""

import io
import warnings
from contextlib import redirect_stderr
from threading import RLock

from transformers.utils import logging as transformers_logging


class quiet:
    """No progress bars of the loader, no log lines, while the block runs, of one thread at a time: all share them."""

    turn = RLock()

    def __enter__(self) -> None:
        self.turn.acquire()
        self.verbosity = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity(transformers_logging.ERROR)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        # The bar of the GGUF reader listens to none of the above.
        self.stderr = redirect_stderr(io.StringIO())
        self.stderr.__enter__()
        self.filters = warnings.catch_warnings()
        self.filters.__enter__()
        # peft sets this by itself for GPT-2's layers.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        # peft asks transformers by a name that is going to change; nothing that a user can mend.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

    def __exit__(self, *_: object) -> None:
        self.filters.__exit__(None, None, None)
        self.stderr.__exit__(None, None, None)
        transformers_logging.set_verbosity(self.verbosity)
        if self.bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        self.turn.release()
