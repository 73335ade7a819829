"""The command line: ``amends JOB METHOD`` and ``amends VERB``; only the file of the command that runs is imported."""

import ast
import math
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from amends import __version__
from amends.io.errors import InputError, Stopped
from amends.io.plain import plain
from amends.io.recipe import read_recipe

HOME, PACKAGE = Path(__file__).parent, "amends"
JOBS = ("bench", "curate", "fair", "unlearn")  # the folders of commands
OURS = "This is a mistake in amends: please report it with what 'amends --traceback ...' prints."


def summary(file: Path) -> str:
    """Return the first line of a module's docstring, without importing the module."""
    return (ast.get_docstring(ast.parse(file.read_bytes())) or "").partition("\n")[0]


class Command(TyperCommand):
    """A command whose data and models are named once each, but for options that take several."""

    texts: frozenset[str] = frozenset()
    """Parameters whose value is a text."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse a name that is given again: the first of the two would be ignored. Of numbers the last one holds."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for k, param in enumerate(cast(list[Any], given)):
            if param in given[:k] and param.name in self.texts and not param.multiple:
                raise typer.BadParameter("given twice; it takes one value.", ctx=ctx, param=param)
        return super().parse_args(ctx, args)


class Files(TyperGroup):
    """The commands in a folder, one a file. Help reads docstrings; only the file that runs is imported."""

    def __init__(self, name: str, folder: str, jobs: tuple[str, ...] = (), **settings: Any) -> None:
        commands: dict[str, Any] = {
            file.stem: TyperCommand(file.stem, help=summary(file), rich_markup_mode=None)
            for file in sorted((HOME / folder).glob("[a-z]*.py"))
        }
        commands |= {job: Files(job, job, help=summary(HOME / job / "__init__.py")) for job in jobs}
        super().__init__(name=name, commands=commands, rich_markup_mode=None, **settings)
        self.folder = folder

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help when nothing was asked for."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the one module that is going to run."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if isinstance(command, Files) else self.load(str(name)), rest

    def load(self, name: str) -> TyperCommand:
        """Make the command of a file from the function ``command`` in it; every command takes ``--config``."""
        command = as_command(import_module(f"{PACKAGE}.{self.folder}.{name}").command)
        command.name = name
        command.params += as_command(options_of_every_command).params
        return command


def as_command(function: Callable[..., Any]) -> TyperCommand:
    """Make a command of one function with typer annotations."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(cls=Command)(function)
    command = cast(Command, typer.main.get_command(app))
    hints = get_type_hints(function).items()
    command.texts = frozenset(name for name, hint in hints if hint is str or str in get_args(hint))
    for param in command.params:
        param.callback = param.callback or sound
    return command


def sound(ctx: Any, param: Any, value: Any) -> Any:
    """Refuse numbers that nothing can be done with."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, float) and not math.isfinite(one):
            raise typer.BadParameter(f"{one} is not a finite number.", ctx=ctx, param=param)
    return value


def use_recipe(ctx: typer.Context, path: Path | None) -> None:
    """Take from a recipe what the command line does not give; typer converts the text as if it were typed there."""
    if path is None:
        return
    params = [param for param in ctx.command.params if param.name != "config"]
    names = {word: param.name for param in params for word in (*param.opts, param.name)}
    lists = {param.name for param in params if getattr(param, "multiple", False) or param.nargs != 1}
    ctx.meta["recipe"] = settings = read_recipe(path, names, lists)
    ctx.default_map = {name: setting.value for name, setting in settings.items()}


def options_of_every_command(
    config: Annotated[
        Path | None,
        typer.Option(help="YAML lines of 'option: value'.", callback=use_recipe, expose_value=False),
    ] = None,
) -> None:
    """Hold what every method and verb takes besides its own options."""


def show_version(asked: bool) -> None:
    """Print the version and stop, if asked to."""
    if asked:
        typer.echo(f"amends {__version__}")
        raise typer.Exit


def options_of_amends(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=show_version)] = False,
    show_traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    """Put right what a model learnt. Write 'amends JOB METHOD' or 'amends VERB'."""


def root() -> Files:
    """Build the command ``amends`` from the files that there are."""
    return Files("amends", "verbs", JOBS, params=(own := as_command(options_of_amends)).params, help=own.help)


def explain(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit code."""
    if isinstance(error, typer.TyperException):
        ctx, param, message = getattr(error, "ctx", None), getattr(error, "param", None), error.format_message()
        if ctx and param and str(ctx.get_parameter_source(param.name)).endswith("DEFAULT_MAP"):
            message = f"{ctx.meta['recipe'][param.name].where}: {message}"
        message += "" if message.endswith((".", "?")) else "."
        return (f"{message} Try '{ctx.command_path} --help'." if ctx else message), error.exit_code
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, OSError):  # disk full, no permission
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1
    if isinstance(error, MemoryError):
        return "not enough memory. Try a smaller batch or a smaller model.", 1
    return f"{type(error).__name__}: {error}. {OURS}", 1


def main(args: list[str] | None = None) -> None:
    """Run; exit with 0 (done), 1 (failed), 2 (something that the user can mend), 130 (Ctrl-C) or 143 (SIGTERM).

    A verb may have a code of its own: 3 of `assess`, where a limit is broken.
    """
    ctx, code = None, 0
    try:
        try:
            with root().make_context("amends", sys.argv[1:] if args is None else args) as ctx:
                ctx.command.invoke(ctx)
        except typer.Exit as done:
            code = done.exit_code
        sys.stdout.flush()
    except Stopped as stopped:
        print("amends:", plain(str(stopped)), file=sys.stderr)
        code = 128 + stopped.signal
    except (KeyboardInterrupt, typer.Abort):
        print("amends: stopped.", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as in "amends --help | head -1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if ctx and ctx.params["show_traceback"]:
            lines = traceback.format_exc()
            print("".join(c if c.isprintable() or c == "\n" else " " for c in lines), end="", file=sys.stderr)
        message, code = explain(error)
        print("amends: error:", plain(message), file=sys.stderr)
    sys.exit(code)
