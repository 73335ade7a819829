"""Bounds of settings: said once, where a setting is, they hold in Python as on the command line."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from amends.io.errors import InputError


def check_options(options: Any, given: Mapping[str, Any]) -> None:
    """Refuse values that options cannot have; what is no option is left alone.

    Parameters
    ----------
    options : function or class
        Its annotations are the options: `Annotated` types whose extras have help, min, max (as those of typer).
    given : dict
        Values by name.

    Raises
    ------
    InputError
    """
    for name, hint in get_type_hints(options, include_extras=True).items():
        if name in given and get_origin(hint) is Annotated:
            kind, *extras = get_args(hint)
            for option in extras:
                check_value(name, given[name], kind, vars(option))


def check_value(name: str, value: Any, hint: Any, bounds: Mapping[str, Any]) -> None:
    """Refuse a value that a setting cannot have.

    Parameters
    ----------
    hint : type
        Of a `Literal` the value must be one, of int a whole number; None only where the type has it.
    bounds : dict
        "min" and "max" of a number, both included, where there are such.

    Raises
    ------
    InputError
    """
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if value is None and NoneType in kinds:
        return
    if get_origin(hint) is Literal and value not in (choices := get_args(hint)):
        raise InputError(f"{name}={value!r}: choose {', '.join(choices[:-1])} or {choices[-1]}.")
    least, most = bounds.get("min"), bounds.get("max")
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if int in kinds and not (is_number and isinstance(value, Integral)):
        raise InputError(f"{name}={value!r}: a whole number is needed.")
    if least is None and most is None:
        if float in kinds and not is_number:
            raise InputError(f"{name}={value!r}: a finite number is needed.")
        return
    if not (is_number and (least is None or value >= least) and (most is None or value <= most)):
        said = [
            f"{words} {bound:.10g}" for words, bound in (("at least", least), ("at most", most)) if bound is not None
        ]
        raise InputError(f"{name}={value!r}: a number of {' and '.join(said)} is needed.")
