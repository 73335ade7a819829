"""Options that many commands have, and names that one option takes several of."""

from collections.abc import Collection, Iterable
from typing import Annotated

import typer

from amends.io.errors import InputError

ModelOption = Annotated[
    str, typer.Option(help="Hub id, model folder, PEFT adapter folder, .gguf file, or package:NAME/FILE.")
]
RankOption = Annotated[
    int | None,
    typer.Option(
        help="LoRA rank; 0 tunes all weights. Default: 16, or that of the adapter that is given, which goes on "
        "training.",
        min=0,
    ),
]
MOST_SEED = 2**32 - 1
"""Largest seed that NumPy and scikit-learn take."""
SaveStepsOption = Annotated[
    int,
    typer.Option(help="Steps between checkpoints in OUT.checkpoints, to resume from; 0 writes none.", min=0),
]
SeedOption = Annotated[int, typer.Option(help="Seed of every random choice.", min=0, max=MOST_SEED)]


def listed(given: str | Iterable[str] | None) -> list[str]:
    """Names of an option that may be repeated, or name several with commas between them; of one text, those in it."""
    return [name.strip() for text in ([given] if isinstance(given, str) else given or ()) for name in text.split(",")]


def check_names(names: Iterable[str], known: Collection[str], option: str, what: str) -> None:
    """Refuse names that there are not.

    Raises
    ------
    InputError : names the first, and all that there are.
    """
    for name in names:
        if name not in known:
            raise InputError(f"{option} {name or repr(name)}: there is no such {what}. Known: {', '.join(known)}.")
