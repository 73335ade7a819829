"""Bounds of settings: said once, where a setting is, they hold in Python as on the command line."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, get_args, get_origin

from amends.io.errors import InputError


def check_value(name: str, value: Any, hint: Any, bounds: Mapping[str, Any]) -> None:
    """Refuse a value that a setting cannot have; None stands for a default and is left alone.

    Parameters
    ----------
    hint : type
        Of a `Literal` the value must be one.
    bounds : dict
        "min" and "max" of a number, both included, where there are such.

    Raises
    ------
    InputError
    """
    if value is None:
        return
    if get_origin(hint) is Literal and value not in (choices := get_args(hint)):
        raise InputError(f"{name}={value!r}: choose {', '.join(choices[:-1])} or {choices[-1]}.")
    least, most = bounds.get("min"), bounds.get("max")
    if least is None and most is None:
        return
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (is_number and (least is None or value >= least) and (most is None or value <= most)):
        said = [f"{words} {bound:g}" for words, bound in (("at least", least), ("at most", most)) if bound is not None]
        raise InputError(f"{name}={value!r}: a number of {' and '.join(said)} is needed.")
