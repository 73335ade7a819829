"""The error that is the user's to mend, and the end that the user asked for."""

from importlib.util import find_spec


class InputError(ValueError):
    """A mistake in what was given: a file, a row, an option.

    The message is one or two sentences: where (file:line or option), what is wrong, what to do. The command line prints
    it after ``amends: error:`` without a traceback and exits with 2.
    """


class Held(InputError):
    """Another process is writing to the same place."""


class NoResult(InputError):
    """A method came to no result on these data: its training diverged, or the model gives it nothing to work with."""


class Stopped(KeyboardInterrupt):
    """A signal was heard, and the work was left in good order: the message says at which place.

    The command line prints it after ``amends:`` and exits with 128 + `signal`, as shells do: 130 for Ctrl-C, 143 for
    SIGTERM.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def check_installed(package: str, name: str, extra: str) -> None:
    """Check that a package of an extra is there, before long work.

    Parameters
    ----------
    package, name : str
        As it is imported, and as it is installed.

    Raises
    ------
    InputError : it is not.
    """
    if find_spec(package) is None:
        raise InputError(f"{name} is not installed, which this needs. Install it: pip install 'amends[{extra}]'.")
