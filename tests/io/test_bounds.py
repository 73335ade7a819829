"""Values of settings are held to the bounds that are said where the setting is."""

from typing import Any, Literal

import numpy as np
import pytest

from amends.io.bounds import check_value
from amends.io.errors import InputError

CHOICES = Literal["a", "b", "c"]


@pytest.mark.parametrize(
    ("value", "hint", "bounds"),
    [
        (0, int, {"min": 0}),
        (np.int64(3), int, {"min": 0, "max": 3}),
        (None, float | None, {"min": 0}),
        (-7.5, float, {}),
        ("b", CHOICES, {}),
        (True, bool, {"help": "no bounds"}),
    ],
)
def test_what_is_within_the_bounds_is_taken(value: Any, hint: Any, bounds: dict[str, Any]) -> None:
    check_value("x", value, hint, bounds)


@pytest.mark.parametrize(
    ("value", "hint", "bounds", "message"),
    [
        (-1, int, {"min": 0}, "x=-1: a number of at least 0 is needed."),
        (1.5, float, {"min": 0, "max": 1}, "x=1.5: a number of at least 0 and at most 1 is needed."),
        (2, float, {"max": 1}, "x=2: a number of at most 1 is needed."),
        (float("nan"), float, {"min": 0}, "x=nan: a number of at least 0 is needed."),
        (float("inf"), float, {"min": 0}, "x=inf: a number of at least 0 is needed."),
        (float("nan"), float, {}, "x=nan: a finite number is needed."),
        ("1", float, {"min": 0}, "x='1': a number of at least 0 is needed."),
        (1.5, int | None, {"min": 0}, "x=1.5: a whole number is needed."),
        (True, int, {}, "x=True: a whole number is needed."),
        (None, float, {"min": 0}, "x=None: a number of at least 0 is needed."),
        (
            2**32,
            int,
            {"min": 0, "max": 2**32 - 1},
            "x=4294967296: a number of at least 0 and at most 4294967295 is needed.",
        ),
        ("d", CHOICES, {}, "x='d': choose a, b or c."),
    ],
)
def test_what_is_not_is_refused(value: Any, hint: Any, bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as told:
        check_value("x", value, hint, bounds)
    assert str(told.value) == message
