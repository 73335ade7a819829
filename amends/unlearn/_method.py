"""From a trainer and its settings to what can be run: `run` in Python, `command` on the command line."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, get_type_hints

import typer

import amends.unlearn
from amends.io.errors import InputError
from amends.io.options import ModelOption
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._request import Data, ForgetOption, OutOption, Request
from amends.unlearn._run import Result, run_unlearning

TEMPLATES = "Template answers, one a line; default: built-in refusals."
DOC = """{summary}

With evaluation before and after; the same as `amends unlearn {name}`, whose options have the same names.

Parameters
----------
model : str, Path, or a transformers / peft model together with its tokenizer as `processing_class`
    A model that is loaded already is changed: it holds the adapter then, or its weights are the trained ones.
forget : path, or list of dictionaries
out : path, optional
    Run folder to write; without it everything stays in memory.
**options
{options}

Returns
-------
Result : model, tokenizer, history, evaluations, why it stopped.

Raises
------
InputError : anything the caller can mend; nothing is left behind.
"""


def method(trainer: type[ForgetTrainer]) -> tuple[Callable[..., Result], Callable[..., None]]:
    """Make `run` and `command` of a method.

    Its options are the fields that the class of `args` adds to `ForgetConfig` (annotated with typer's), --templates
    where the trainer takes them, and the fields of `Request` that it has a use for, with the defaults that it sets.

    Parameters
    ----------
    trainer : subclass of ForgetTrainer
        Its module's name is the method's, its module's docstring the help, the type of its `args` its settings.
    """
    config, name = trainer.config_class(), trainer.method_name()
    summary = (import_module(trainer.__module__).__doc__ or "").partition("\n")[0]
    own = [f for f in fields(config) if f.name not in {g.name for g in fields(ForgetConfig)}]

    def run(
        model: str | Path | Any, forget: Data, *, processing_class: Any = None, templates: Any = None, **options: Any
    ) -> Result:
        settings = {f.name: options.pop(f.name) for f in own if f.name in options}
        known = [f.name for f in fields(Request)]
        if unknown := sorted(options.keys() - set(known)):
            near = get_close_matches(unknown[0], [*known, *(f.name for f in own)], n=1)
            raise InputError(f"{unknown[0]}: no such option." + (f" Did you mean {near[0]}?" if near else ""))
        request = Request(forget=forget, **{**trainer.defaults(), **options})
        return run_unlearning(
            trainer,
            model,
            request,
            {f.name: f.default for f in own} | settings,
            templates=templates,
            processing_class=processing_class,
        )

    def command(model: str, forget: str, out: Path, **options: Any) -> None:
        run(model, forget, out=out, **options)

    _show(run, _own(own, config, trainer, False), trainer, name, run=True)
    _show(command, _own(own, config, trainer, True), trainer, name, run=False)
    command.__doc__ = summary
    hints = [(n, hint) for n, hint in command.__annotations__.items() if n not in ("model", "forget", "out", "return")]
    told = "\n".join(f"    {n} : {hint.__metadata__[0].help}" for n, hint in hints)
    run.__doc__ = DOC.format(summary=summary, name=name, options=told)
    return run, command


def method_names() -> list[str]:
    """Names of all methods on the command line: those of their files."""
    return sorted(found.name for found in iter_modules(amends.unlearn.__path__) if not found.name.startswith("_"))


def trainer_named(name: str) -> type[ForgetTrainer]:
    """Give the trainer of a method, by the method's name on the command line."""
    module = import_module(f"amends.unlearn.{name}")
    classes = (found for found in vars(module).values() if isinstance(found, type))
    return next(c for c in classes if issubclass(c, ForgetTrainer) and c.__module__ == module.__name__)


def _own(
    own: Sequence[Field[Any]], config: type[ForgetConfig], trainer: type[ForgetTrainer], for_typer: bool
) -> list[inspect.Parameter]:
    """Give the method's own options."""
    hints = get_type_hints(config, include_extras=for_typer)
    found = []
    if trainer.takes_templates:
        told = Annotated[str | None, typer.Option(help=TEMPLATES)] if for_typer else Data | Sequence[str] | None
        found.append(_option("templates", told, None))
    for f in own:
        found.append(_option(f.name, hints[f.name], f.default))
    return found


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _show(
    function: Callable[..., Any], own: list[inspect.Parameter], trainer: type[ForgetTrainer], name: str, run: bool
) -> None:
    """Show all options of a method to people and to typer, as its signature; on the command line data are paths."""
    given = {"model": str | Path | Any, "forget": Data} if run else {"model": ModelOption, "forget": ForgetOption}
    first = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=a) for n, a in given.items()]
    if run:
        first.append(_option("processing_class", Any, None))
    else:
        first.append(inspect.Parameter("out", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=OutOption))
    shared = []
    hints = get_type_hints(Request, include_extras=not run)
    defaults, useless = trainer.defaults(), trainer.useless()
    for f in fields(Request):
        if f.default is not MISSING and f.name not in useless and (run or f.name != "out"):
            hint = hints[f.name]
            if not run and getattr(hint, "__origin__", None) == Data | None:
                hint = Annotated[str | None, *hint.__metadata__]
            shared.append(_option(f.name, hint, defaults.get(f.name, f.default)))
    parameters = [*first, *own, *shared]
    returns = Result if run else None
    function.__signature__ = inspect.Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": returns}
    function.__module__, function.__qualname__ = trainer.__module__, function.__name__
