"""What is said of a faulty row, without the options that a command does not have."""

from collections.abc import Iterator
from contextlib import contextmanager

from amends.io.errors import InputError
from amends.lm.pairs import OR_SKIP

ADVICE = {
    "--skip-bad-rows": {OR_SKIP: "."},
    "--max-length": {"--max-length and the model's context": "the model's context"},
    "--prefix-tokens": {
        " to forget. Lower --prefix-tokens.": ". Give a longer text.",
        "Lower --prefix-tokens and --continuation-tokens": "Shorten or split it",
    },
    "--question-column": {
        "; or name yours with --question-column and --answer-column.": ".",
        " or name yours with --question-column and --answer-column.": ".",
    },
}
"""Option to the words that advise it, and what is said instead."""


@contextmanager
def without(*options: str) -> Iterator[None]:
    """Take the advice to use some options out of an `InputError`.

    Parameters
    ----------
    options : str
        Of ADVICE.
    """
    try:
        yield
    except InputError as error:
        message = str(error)
        for option in options:
            for advice, instead in ADVICE[option].items():
                message = message.replace(advice, instead)
        raise type(error)(message) from error
