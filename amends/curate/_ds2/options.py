"""Options of DS2 that cannot be or cannot go together, which are refused before anything is read."""

from typing import Any

import numpy as np

from amends.io.errors import InputError

K, ROUNDS, DRAWS, CONFIDENCE, NEAR = 10, 50, 51, 0.5, 0.99
"""Defaults."""


def check_options(
    raters: list[Any],
    ratings: list[str],
    columns: list[str],
    embedder: str | None,
    embedding: str | None,
    curate: bool,
    budget: int | None,
) -> None:
    """Refuse what cannot go together, before anything is read."""
    if bool(raters) == bool(ratings):
        raise InputError("--rating and --rater: give one of them, columns with ratings or models that rate.")
    if raters and not columns:
        raise InputError("--rater: name the columns to rate with --text.")
    if embedder and embedding:
        raise InputError("--embedder and --embedding: give one of them.")
    if embedder and not columns:
        raise InputError("--embedder: name the columns to embed with --text.")
    if curate and len(raters or ratings) == 1 and not (embedder or embedding):
        raise InputError(
            "The ratings of one rater are mended by neighbours: give --text with --embedder, or --embedding. Several "
            "raters need neither; --no-curate selects by the ratings as they are."
        )
    if budget is not None and budget < 1:
        raise InputError(f"--budget {budget}: must be at least 1.")


def check_unused(options: dict[str, Any], has_rater: bool, are_several: bool, has_points: bool, mends: bool) -> None:
    """Refuse options that were given and would be ignored."""
    several, points = "goes with several ratings of a row", "goes with --embedder or --embedding"
    mending = "is about mending by neighbours"
    for name, default, needed, is_used in (
        ("cache", None, "goes with --rater", has_rater),
        ("most_calls", None, "goes with --rater", has_rater),
        ("scale", None, "goes with --rating; a model rates from 1 to 10", not has_rater),
        ("compress", False, "goes with --rating; what a model says is made 0 to 5 anyway", not has_rater),
        ("exchangeable", False, several, are_several),
        ("group", None, points, has_points),
        ("near", NEAR, points, has_points),
        ("k", K, points, has_points),
        ("rounds", ROUNDS, mending, mends),
        ("draws", DRAWS, mending, mends),
        ("confidence", CONFIDENCE, mending, mends),
    ):
        if options[name] != default and not is_used:
            raise InputError(f"--{name.replace('_', '-')}: {needed}. Leave it out.")


def check_values(options: dict[str, Any]) -> None:
    """Refuse numbers that are out of range, which Python may give."""
    for name, least, most in (("k", 3, np.inf), ("rounds", 1, np.inf), ("draws", 1, np.inf), ("confidence", 0, 1)):
        if not least <= options[name] <= most:
            raise InputError(f"--{name} {options[name]}: expected {least} or more{', up to 1' * (most == 1)}.")
    if not options["near"] <= 1:
        raise InputError(f"--near {options['near']}: expected at most 1.")
