"""The command line, on methods written for the purpose into a package of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import amends
from amends import cli
from amends.io.errors import InputError
from amends.io.recipe import read_recipe

FORGET = '''"""Forget by example: the first line.

The second paragraph."""
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from amends.io.errors import InputError


def command(
    model: Annotated[str, typer.Argument(help="Folder of the model.")],
    out: Annotated[Path, typer.Option(help="Folder for the result.")],
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr")] = 1e-4,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    divergence: Annotated[Literal["kl", "tv"], typer.Option()] = "kl",
    retain: Annotated[Optional[list[str]], typer.Option()] = None,
    bf16: bool = False,
    raises: str = "",
) -> None:
    """Make a model forget."""
    if raises:
        kind = {"InputError": InputError, "typer.Exit": typer.Exit}.get(raises) or __builtins__[raises]
        words = {"OSError": (28, "No space left on device", "out/model"), "typer.Exit": (3,)}
        raise kind(*words.get(raises, ("what is wrong",)))
    print(model, out, learning_rate, epochs, divergence, retain, bf16)
'''


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A package "house" with the method ``unlearn demo``, one whose import fails, a helper and a verb."""
    home = tmp_path / "house"
    for folder in ("unlearn", "verbs"):
        (home / folder).mkdir(parents=True)
        (home / folder / "__init__.py").write_text(f'"""Folder {folder}."""\n')
    (home / "__init__.py").touch()
    (home / "unlearn" / "demo.py").write_text(FORGET)
    (home / "unlearn" / "heavy.py").write_text('"""Cannot be imported."""\nraise RuntimeError("imported")\n')
    (home / "unlearn" / "_helper.py").write_text('"""Not a command."""\n')
    (home / "verbs" / "look.py").write_text('"""Look at things."""\ndef command() -> None:\n    print("looked")\n')
    monkeypatch.setattr(cli, "HOME", home)
    monkeypatch.setattr(cli, "PACKAGE", "house")
    monkeypatch.setattr(cli, "JOBS", ("unlearn",))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "house"]:
        del sys.modules[name]


@pytest.fixture
def run(house, capsys, monkeypatch):
    """Run ``amends`` in this process with a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(house)

    def run(*args):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(arg) for arg in args])
        return stopped.value.code or 0, *capsys.readouterr()

    return run


def recipe(house, text):
    path = house / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return "run.yaml"


def test_root_help_lists_verbs_and_jobs_with_their_first_lines(run):
    for args in ([], ["--help"]):
        code, out, err = run(*args)
        assert (code, err) == (0, "")
        assert "look     Look at things." in out
        assert "unlearn  Folder unlearn." in out


def test_job_help_lists_methods_and_neither_imports_nor_shows_helpers(run):
    code, out, _ = run("unlearn", "--help")
    assert code == 0
    assert "demo   Forget by example: the first line." in out
    assert "heavy  Cannot be imported." in out
    assert "_helper" not in out
    assert not [name for name in sys.modules if name.startswith("house.")]


def test_method_help_shows_its_own_options_and_config(run):
    code, out, _ = run("unlearn", "demo", "--help")
    assert code == 0
    for piece in ("Make a model forget.", "--lr", "<kl|tv>", "[default: 5; x>=1]", "[required]", "--config"):
        assert piece in out


def test_version_is_that_of_the_package(run):
    assert run("--version") == (0, f"amends {amends.__version__}\n", "")


def test_a_verb_runs_at_the_root(run):
    assert run("look") == (0, "looked\n", "")


def test_options_reach_the_method(run):
    code, out, _ = run("unlearn", "demo", "m", "--out", "o", "--lr", "1", "--retain", "a", "--retain", "b", "--bf16")
    assert (code, out) == (0, "m o 1.0 5 kl ['a', 'b'] True\n")


def test_a_recipe_gives_arguments_required_options_lists_and_flags_as_if_typed(run, house):
    text = "model: 007\nout: runs/a\nlearning_rate: 2e-5\nepochs: 3\nretain: [x, '']\nbf16: yes\ndivergence: tv\n"
    assert run("unlearn", "demo", "--config", recipe(house, text))[:2] == (0, "007 runs/a 2e-05 3 tv ['x', ''] True\n")


def test_dashes_underscores_and_short_names_mean_the_same_option(run, house):
    for name in ("learning-rate", "learning_rate", "lr", "--lr"):
        path = recipe(house, f"out: o\n{name}: 0.5\n")
        assert run("unlearn", "demo", "m", "--config", path)[:2] == (0, "m o 0.5 5 kl None False\n")


def test_the_command_line_wins_over_the_recipe_wherever_config_stands(run, house):
    path = recipe(house, "model: r\nout: r\nepochs: 3\nretain: [r]\nbf16: true\n")
    given = ["m", "--epochs", "7", "--retain", "c"]
    for args in ([*given, "--config", path], ["--config", path, *given]):
        assert run("unlearn", "demo", *args)[:2] == (0, "m r 0.0001 7 kl ['c'] True\n")
    assert run("unlearn", "demo", "--config", path, "--no-bf16")[1] == "r r 0.0001 3 kl ['r'] False\n"


def test_null_in_a_recipe_leaves_the_default_and_an_empty_recipe_says_nothing(run, house):
    for text in ("epochs:\ndivergence: null\nretain: ~\n", "", "# nothing\n"):
        path = recipe(house, text)
        assert run("unlearn", "demo", "m", "--out", "o", "--config", path)[:2] == (0, "m o 0.0001 5 kl None False\n")


def test_data_are_named_once_and_of_numbers_the_last_one_holds(run):
    assert run("unlearn", "demo", "m", "--out", "o", "--epochs", "3", "--epochs", "4")[1].split()[3] == "4"
    code, _, err = run("unlearn", "demo", "m", "--out", "o", "--raises", "a", "--lr", "1", "--raises", "b")
    assert code == 2
    assert "Invalid value for '--raises': given twice; it takes one value." in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: o\nepoch: 3\n", "run.yaml:2: there is no option 'epoch'. Did you mean 'epochs'?"),
        ("zzzz: 3\n", "run.yaml:1: there is no option 'zzzz'. Known: bf16, divergence, epochs, learning_rate, lr,"),
        ("config: other.yaml\n", "run.yaml:1: there is no option 'config'."),
        ("out: o\nepochs: 3\nepochs: 4\n", "run.yaml:3: 'epochs' stands already in run.yaml:2."),
        ("lr: 1\nlearning-rate: 2\n", "run.yaml:2: 'learning-rate' stands already in run.yaml:1."),
        ("out: [a]\n", "run.yaml:1: 'out' takes one value."),
        ("retain: a\n", "run.yaml:1: 'retain' takes a list: [a, b]."),
        ("retain: [[a]]\n", "run.yaml:1: expected a single value or a flat list"),
        ("retain:\n  a: b\n", "run.yaml:2: expected a single value or a flat list"),
        ("- out\n- o\n", "run.yaml:1: expected lines of 'option: value' at the top level."),
        ("out: o\nepochs: [1\n", "run.yaml:3: not YAML: "),
        ("out: o\nepochs: three\n", "run.yaml:2: Invalid value for '--epochs': "),
        ("out: o\nepochs: 0\n", "run.yaml:2: Invalid value for '--epochs': "),
        ("out: o\ndivergence: js\n", "run.yaml:2: Invalid value for '--divergence': "),
        ("out: o\nbf16: perhaps\n", "run.yaml:2: Invalid value for '--bf16': "),
        ("out: !!python/object/apply:os.system [x]\n", "run.yaml:1: the YAML tag 'tag:yaml.org,2002:python/object/"),
        ("out: !!python/name:os.system ''\n", "run.yaml:1: the YAML tag 'tag:yaml.org,2002:python/name:os.system' is"),
        ("out: !mine o\n", "run.yaml:1: the YAML tag '!mine' is not allowed."),
        ("<<: {out: o}\n", "run.yaml:1: there is no option '<<'."),
        ("[" * 5000, "run.yaml: nested too deeply."),
        ("#" * 1_000_001, "run.yaml: larger than 1000000 bytes."),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_line(run, house, text, message):
    code, out, err = run("unlearn", "demo", "m", "--config", recipe(house, text))
    assert (code, out) == (2, "")
    assert err.startswith(f"amends: error: {message}")
    assert err.count("\n") == 1


def test_a_yaml_bomb_is_refused_without_growing(house):
    bomb = "a: &a [x, x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(InputError, match=r"run\.yaml:1: expected a single value"):
        read_recipe(house / recipe(house, bomb), {letter: letter for letter in "abcdefghi"}, set("abcdefghi"))


def test_a_recipe_that_is_missing_binary_or_a_folder_is_refused(run, house):
    (house / "binary.yaml").write_bytes(b"\xff\xfe\x00\x00")
    for name in ("missing.yaml", "binary.yaml", "house"):
        code, _, err = run("unlearn", "demo", "m", "--config", name)
        assert code == 2
        assert err.startswith(f"amends: error: {name}: the recipe cannot be read: ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["unlearn", "demo", "m"], "Missing option '--out'. Try 'amends unlearn demo --help'."),
        (["unlearn", "demo"], "Missing argument 'model'. Try"),
        (["unlearn", "demo", "m", "--epoch", "1"], "No such option: --epoch"),
        (["unlearn", "demo", "m", "--out", "o", "--epochs", "x"], "Invalid value for '--epochs': "),
        (["unlearn", "dmeo"], "No such command 'dmeo'. Did you mean 'demo'? Try 'amends unlearn --help'."),
        (["unlearn", "_helper"], "No such command '_helper'."),
        (["unlearn", "../verbs/look"], "No such command '../verbs/look'."),
        (["lok"], "No such command 'lok'. Did you mean 'look'? Try 'amends --help'."),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(run, args, message):
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert err.startswith(f"amends: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("raises", "code", "message"),
    [
        ("InputError", 2, "amends: error: what is wrong\n"),
        ("OSError", 1, "amends: error: No space left on device: out/model\n"),
        ("MemoryError", 1, "amends: error: not enough memory. Try a smaller batch or a smaller model.\n"),
        ("KeyError", 1, f"amends: error: KeyError: 'what is wrong'. {cli.OURS}\n"),
        ("ValueError", 1, f"amends: error: ValueError: what is wrong. {cli.OURS}\n"),
        ("KeyboardInterrupt", 130, "amends: stopped.\n"),
        ("typer.Exit", 3, ""),
    ],
)
def test_every_end_has_its_exit_code_and_at_most_one_line(run, raises, code, message):
    assert run("unlearn", "demo", "m", "--out", "o", "--raises", raises) == (code, "", message)


def test_a_method_that_cannot_be_imported_is_our_mistake(run):
    code, _, err = run("unlearn", "heavy")
    assert (code, err) == (1, f"amends: error: RuntimeError: imported. {cli.OURS}\n")


def test_traceback_shows_where_an_error_came_from(run):
    code, _, err = run("--traceback", "unlearn", "demo", "m", "--out", "o", "--raises", "InputError")
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert "demo.py" in err
    assert err.endswith("amends: error: what is wrong\n")


def test_messages_carry_no_escape_sequence_control_character_or_change_of_direction(run):
    hostile = "\x1b[31mred\x1b[0m\x1b]8;;http://evil\x1b\\link\x1b]8;;\x07\x00\x08\u202eback\r\nnext\u200b \udc80"
    assert cli.plain(hostile) == "redlink back next"
    code, _, err = run("unlearn", hostile)
    assert code == 2
    assert err.count("\n") == 1
    assert all(char.isprintable() for char in err[:-1])


def test_help_imports_no_torch_and_no_method():
    program = (
        "import sys; from amends import cli\n"
        "for args in (['--help'], ['--version'], *([job, '--help'] for job in cli.JOBS)):\n"
        "    try: cli.main(args)\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'peft', 'matplotlib'} & set(sys.modules)\n"
        "print('heavy:', heavy)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: set()\n")
    assert done.stderr == ""


@pytest.mark.parametrize(
    "program",
    [
        "cli.main(['--help'])",
        "cli.Files.load = lambda self, name: cli.as_command(lambda: print('a line')); cli.main(['unlearn', 'flat'])",
    ],
)
def test_a_reader_that_goes_away_is_no_error_message(program):
    command = [sys.executable, "-c", f"from amends import cli; {program}"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_methods_and_verbs_of_amends_are_the_files_that_are_there():
    root = cli.root()
    home = Path(amends.__file__).parent
    verbs = {file.stem for file in (home / "verbs").glob("[a-z]*.py")}
    assert set(root.commands) == {*verbs, *cli.JOBS}
    for job in cli.JOBS:
        assert set(root.commands[job].commands) == {file.stem for file in (home / job).glob("[a-z]*.py")}


@pytest.mark.parametrize("name", ["adc_clean", "adc_design", "ds2", "entp", "label_errors", "token_cleaning"])
def test_a_seed_that_no_generator_takes_is_refused_before_anything_is_read(name, capsys):
    with pytest.raises(SystemExit):
        cli.main(["curate", name, "x", "--seed", "-1", "--out", "y"])
    assert "'--seed': Input should be greater than or equal to 0" in capsys.readouterr().err
