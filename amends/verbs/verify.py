"""Check a run folder: recompute its digests and numbers, and say what still holds."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import zip_longest
from os.path import lexists
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from amends.evaluation.beside import OF_OTHERS, add_similarity
from amends.evaluation.evaluate import evaluate, with_reference
from amends.evaluation.memorised import BESIDE_NAMES
from amends.evaluation.said import SAID_NAMES, SAID_SETS, threshold_of
from amends.evaluation.summary import LATER_NAMES
from amends.io.atomic import check_manifest, sha256_json
from amends.io.console import answer
from amends.io.errors import InputError
from amends.io.plain import plain
from amends.io.run import RUN, read_jsonl, read_run
from amends.io.tables import read_json
from amends.lm.load import Loaded, load, precision, weights_sha256
from amends.lm.pairs import Pair, Pairs
from amends.unlearn._compare import suite_of
from amends.unlearn._earlier import ledger_of, read_earlier
from amends.unlearn._ledger import LEDGER, Entry, parse, read_ledger, set_name
from amends.unlearn._read import Rows, read_asked, read_data, read_templates, record_sha256
from amends.unlearn._request import Request

ROLES = ("before", "after", "reference")
STORED_TOLERANCE = 1e-6
"""Relative, for a summary that is computed again from the stored items."""
ASKED_TOLERANCE, PERPLEXITY_TOLERANCE = 1e-3, 0.01
"""For a model that is asked again: absolute for rates and probabilities, relative for a perplexity."""
IN_PERCENT = ("deviation_score", "privleak")


class Finding(NamedTuple):
    """What one check found; `holds` is None where it could not be made."""

    holds: bool | None
    what: str
    detail: str


def _is_point(entry: Mapping[str, Any]) -> bool:
    """Whether an interval has no width, as where all rows agreed before amends gave one of another kind there."""
    return entry.get("low") == entry.get("high") == entry.get("value")


class NotChecked(Exception):
    """Why a check cannot be made."""


def command(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run folder of 'unlearn', 'teach', 'audit', 'assess', 'bench' (but 'bench tofu'), 'curate' or 'fair'."
        ),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Do not ask the model again.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the model before is now, if it was moved.")] = None,
) -> None:
    """Check RUN; exit code 0 if all that could be checked holds, 1 if something does not."""
    findings = []
    for finding in verify(run, quick=quick, model=model):
        word = {True: "holds", False: "does not hold", None: "cannot be checked"}[finding.holds]
        answer(f"{word:<18} {plain(f'{finding.what}: {finding.detail}')}")
        findings.append(finding)
    if any(finding.holds is False for finding in findings):
        raise typer.Exit(1)


def verify(run: Path, *, quick: bool = False, model: str | None = None) -> "list[Finding]":
    """Make every check of a run folder.

    Parameters
    ----------
    run : Path
    quick : bool, default False
        Leave out asking the model again.
    model : str, optional
        Where the model before is, in place of what run.json says.

    Returns
    -------
    list of Finding, in the order of the checks.

    Raises
    ------
    InputError : not a run folder.
    """
    inside = [] if (run / RUN).exists() else sorted([*run.glob(f"*/{RUN}"), *run.glob(f"*/*/{RUN}")])
    if inside:  # of 'bench tofu', or where somebody keeps runs
        raise InputError(f"{run}: not a run folder itself. Give one of those in it, such as {inside[0].parent}.")
    record = read_run(run)
    check = Checks(run, record, model)
    todo: list[tuple[str, Callable[[], str]]] = [("manifest", check.manifest)]
    if (run / "forget.jsonl").exists():
        todo.append(("forget records", check.forget_records))
    if record["data"].get("earlier"):
        todo.append(("earlier records", check.earlier_records))
    if record["command"].startswith(("assess", "bench ", "curate ", "fair ")):
        for role in record["weights"]:
            todo.append((f"weights {role}", lambda role=role: check.weights_named(role)))  # type: ignore[misc]
        return [_finding(what, make) for what, make in todo]
    todo.append(("weights before", check.weights_before))
    if record["command"] == "audit":
        todo.append(("records", check.audited_records))
    else:
        todo.append(("weights after", check.weights_after))
    if record["data"].get("earlier") or lexists(run / "model" / LEDGER):
        todo.append(("ledger", check.ledger))
    roles = [role for role in ROLES if (run / "evaluation" / f"{role}.json").exists()]
    for role in roles:
        todo.append((f"summary {role}", lambda role=role: check.summary(role)))  # type: ignore[misc]
    if "after" in roles and not quick:
        todo.append(("after, asked again", check.asked_again))
    return [_finding(what, make) for what, make in todo]


def _finding(what: str, make: Callable[[], str]) -> Finding:
    try:
        return Finding(True, what, make())
    except NotChecked as reason:
        return Finding(None, what, str(reason))
    except (InputError, AssertionError) as error:
        return Finding(False, what, str(error))
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        return Finding(False, what, f"a value is missing or of another kind ({type(error).__name__}: {error})")


class Checks:
    """The checks of one run; each returns what holds, or raises InputError (does not hold) or NotChecked.

    What several of them need is read once.
    """

    def __init__(self, run: Path, record: dict[str, Any], model: str | None) -> None:
        self.run, self.record, self.model = run, record, model
        self.config = record["config"]
        self._after: Loaded | None = None

    def manifest(self) -> str:
        """Every file is there, none was changed, none was added."""
        problems = check_manifest(self.run)
        if problems:
            raise InputError(_some([f"{file} {what}" for file, what in problems]))
        return f"{len(read_json(self.run / 'manifest.json')['files'])} files as written"

    def forget_records(self) -> str:
        """Compare the records in the data file with those that were forgotten."""
        stored = [(row.get("id"), row.get("sha256")) for row in read_jsonl(self.run / "forget.jsonl")]
        said = self.record["data"].get("forget", {}).get("sha256")
        if sha256_json([digest for _, digest in stored]) != said:
            raise InputError("forget.jsonl and the digest in run.json differ")
        now = [(pair.id, record_sha256(pair)) for pair in self.forget().kept]
        other = [str(pair[0]) for pair in now if pair not in set(stored)]
        gone = [str(pair[0]) for pair in stored if pair not in set(now)]
        if now != stored:
            changed = [f"{name} new or changed" for name in other] + [
                f"{name} gone" for name in gone if name not in other
            ]
            raise InputError(f"{self.config['forget']}: {_some(changed) or 'in another order'}")
        return f"{len(now)} as in {self.config['forget']}"

    def earlier_records(self) -> str:
        """Compare the data of the earlier requests that were asked again with what those forgot."""
        found = self.earlier()
        num_requests = len(self.earlier_entries())
        more = "; the others were not asked in this run" if len(found) < num_requests else ""
        return f"those of {len(found)} of {num_requests} earlier requests as they were{more}"

    def ledger(self) -> str:
        """Compare the ledger of the model with run.json and the evaluation; reading it checks its chain."""
        file = self.run / "model" / LEDGER
        found = read_ledger(file.parent)
        after = self.evaluation_of("after")
        try:
            said = ledger_of(self.record, after)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"run.json does not say what the ledger should hold ({error})") from None
        other = [f"request {k}" for k, pair in enumerate(zip_longest(found, said), 1) if pair[0] != pair[1]]
        if other:
            raise InputError(f"{file} and the run differ: {_some(other)}")
        changed = [f"{k}" for k, entry in enumerate(found, 1) if entry.weights_changed]
        if changed:
            return f"{len(found)} in all; the weights were changed by something else before request {_some(changed)}"
        return f"{len(found)} in all, each from the weights that the one before it left"

    def weights_before(self) -> str:
        """Compare the digest of the model before, as it is now, with the one noted."""
        name = self.model or self.config.get("model")
        if not name:
            raise NotChecked("the model was given from Python; name it with --model")
        return self._digest("before", name)

    def weights_named(self, role: str) -> str:
        """Compare the digest of a model that was assessed or used, as it is now, with the one noted."""
        name = self.model if role == "before" and self.model else self.config.get(role)
        if not name and (self.run / role).is_dir():  # made by the run
            name = str(self.run / role)
        if not name:
            raise NotChecked("the model was given from Python")
        return self._digest(role, name)

    def _digest(self, role: str, name: str) -> str:
        try:
            found = weights_sha256(load(name).model)
        except InputError as error:
            raise NotChecked(str(error)) from None
        return _same_digest(self.record["weights"].get(role), found, name)

    def weights_after(self) -> str:
        """Compare the digest of the model in the run folder with the one noted."""
        loaded = self.after()
        return _same_digest(self.record["weights"].get("after"), weights_sha256(loaded.model), loaded.name)

    def audited_records(self) -> str:
        """Rank the records of an audit anew, by their stored scores."""
        rows = read_jsonl(self.run / "scores.jsonl")
        order = sorted(range(len(rows)), key=lambda i: (-rows[i]["combined"], i))
        ranks = sorted(range(len(rows)), key=lambda i: rows[i]["rank"])
        first = [row.get("id") for row in read_jsonl(self.run / "ranked.jsonl")]
        if order != ranks or first != [rows[i]["id"] for i in order[: len(first)]]:
            raise InputError("ranks, ranked.jsonl and the stored scores differ")
        return f"{len(rows)} in the order of their stored scores, the first {len(first)} of them in ranked.jsonl"

    def summary(self, role: str) -> str:
        """Compute a summary again from its stored answers, and see that these belong to the weights of the run."""
        stored = self.evaluation(role)
        if role in self.record["weights"] and stored["weights"] != self.record["weights"][role]:
            raise InputError("it is of other weights than run.json says")
        after = self.evaluation_of("after")  # none where asking the model after failed
        if after is not None and stored["suite"] != after["suite"]:
            raise InputError("other questions were asked than of the model after")
        again = with_reference(stored, self.evaluation_of("reference"))["summary"]
        for names in (LATER_NAMES, SAID_NAMES, BESIDE_NAMES):
            computed = names != BESIDE_NAMES and again[names[0]]["value"] is not None
            if not stored["summary"].keys() & set(names) and not computed:
                again = {name: e for name, e in again.items() if name not in names}  # made before there were any
        if again.keys() != stored["summary"].keys():
            raise InputError(f"other names of values: {_some(sorted(again.keys() ^ stored['summary'].keys()))}")
        wrong = [
            f"{name} {key}: stored {stored['summary'][name].get(key)}, computed {entry[key]}"
            for name, entry in again.items()
            for key in ("value", "low", "high", "n")
            if not (key in ("low", "high") and _is_point(stored["summary"][name]))
            and not _near(stored["summary"][name].get(key), entry[key], relative=STORED_TOLERANCE)
        ]
        if wrong:
            raise InputError(_some(wrong))
        return f"{len(again)} values follow from the stored answers (relative tolerance {STORED_TOLERANCE:g})"

    def asked_again(self) -> str:
        """Ask the model in the run folder again and compare the numbers."""
        loaded, stored = self.after(), self.evaluation("after")
        sources = {name: self.config.get(name) for name in ("templates", *Rows._fields) if name != "retain"}
        if given := [name for name, source in sources.items() if isinstance(source, dict)]:
            raise NotChecked(f"{', '.join(given)} was given from Python")
        for source in sources.values():
            check_there(source)
        templates = read_templates(sources["templates"])
        earlier = self.earlier()
        request = Request.of(self.config)
        suite = suite_of(request, read_asked(request, loaded), templates, loaded.tokenizer, earlier)
        # Older evaluations do not name it: they let every text be continued by as many tokens as a question.
        suite = replace(suite, text_tokens=stored.get("text_tokens", {}))
        if suite.sha256() != stored["suite"]:
            raise InputError("the questions are not those that were asked (a data file or the templates changed)")
        again = evaluate(loaded.model, loaded.tokenizer, suite, role="after", name=stored["name"])
        if any("similarity" in item for item in stored["items"].get("retain", [])):
            add_similarity(again["items"], self.evaluation("before")["items"])
        now = with_reference(again, self.evaluation_of("reference"))["summary"]
        other = "" if stored["precision"] == precision() else f"; asked in {precision()}, stored {stored['precision']}"
        wrong = []
        of_others = {name for name in stored["summary"] if name.endswith(OF_OTHERS)}
        older = {name for name in self.older_leak_rates(stored) if stored["summary"][name]["value"] is not None}
        for name, entry in stored["summary"].items():
            if name in of_others | older:
                continue
            value, found = entry["value"], now[name]["value"]
            loose = {"relative": PERPLEXITY_TOLERANCE} if name == "text_perplexity" else {"absolute": ASKED_TOLERANCE}
            if name in IN_PERCENT:
                loose = {"absolute": 100 * ASKED_TOLERANCE}
            if not _near(value, found, **loose):
                wrong.append(f"{name}: stored {value}, found {found}")
        if wrong:
            raise InputError(_some(wrong) + other)
        too = f" (earlier requests: {len(earlier)})" if earlier else ""
        tolerance = f"absolute tolerance {ASKED_TOLERANCE:g}, perplexity {PERPLEXITY_TOLERANCE:.0%}"
        if any(stored["summary"][name]["value"] is not None for name in of_others):
            too += ", without those that another model gave"
        if older:
            too += ", without leak rates, which an older version told otherwise"
        return f"{len(stored['summary']) - len(of_others | older)} values{too}, {tolerance}{other}"

    @staticmethod
    def older_leak_rates(stored: Mapping[str, Any]) -> set[str]:
        """Name the leak rates of an evaluation by a version to which equal texts of three words were no leak."""
        names = {f"{item_set}_leak_rate": stored["items"].get(item_set, []) for item_set in SAID_SETS}
        return {name for name, items in names.items() if name in stored["summary"] and threshold_of(items) is None}

    def after(self) -> Loaded:
        """Load the model in the run folder; a taught model is the folder itself."""
        if self._after is None:
            folder = self.run / "model" if (self.run / "model").exists() else self.run
            adapter = folder / "adapter_config.json"
            try:
                self._after = load(folder)
            except InputError as error:
                if adapter.exists() and not _is_there(read_json(adapter).get("base_model_name_or_path") or ""):
                    raise NotChecked(str(error)) from None
                raise
        return self._after

    def forget(self) -> Pairs:
        """Read what run.json names as data to forget, as it is now."""
        source = self.config.get("forget")
        if not isinstance(source, str):
            raise NotChecked("the data were given from Python")
        check_there(source)
        return read_data("forget", Request.of(self.config), self.after())

    def earlier_entries(self) -> list[tuple[Entry, bool]]:
        """List the earlier requests by run.json, and whether the run asked them."""
        try:
            return [
                (parse({k: v for k, v in value.items() if k != "left_out"}), value["left_out"] is None)
                for value in self.record["data"].get("earlier", [])
            ]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"run.json: its earlier requests cannot be read ({error})") from None

    def earlier(self) -> dict[str, list[Pair]]:
        """Read again what the earlier requests forgot that the run asked."""
        found, gone = {}, []
        for number, (entry, asked) in enumerate(self.earlier_entries(), 1):
            path = entry.forget["path"]
            if asked and path and not lexists(path):
                gone.append(path)
            elif asked:
                found[set_name(number)] = read_earlier(entry, self.after()).kept
        if gone:
            raise NotChecked(f"{_some(gone)}: no such file any more")
        return found

    def evaluation(self, role: str) -> dict[str, Any]:
        """Read a stored evaluation that must be there."""
        file = self.run / "evaluation" / f"{role}.json"
        found: Any = read_json(file)
        needed = {"weights", "suite", "precision", "name", "items", "summary"}
        if not isinstance(found, Mapping) or not needed <= found.keys():
            raise InputError(f"{file}: not an evaluation")
        return dict(found)

    def evaluation_of(self, role: str) -> dict[str, Any] | None:
        """Read a stored evaluation, if there is one."""
        return self.evaluation(role) if (self.run / "evaluation" / f"{role}.json").exists() else None


def check_there(source: Any) -> None:
    """Raise NotChecked of a data file that is there no more."""
    if isinstance(source, str) and not Path(source).exists():
        raise NotChecked(f"{source}: no such file any more")


def _same_digest(expected: str | None, found: str, name: str) -> str:
    if expected is None:
        raise NotChecked("run.json has no digest of them")
    if expected != found:
        raise InputError(f"{name} has {found[:12]}, run.json says {expected[:12]}")
    return f"{name} has {found[:12]}, as run.json says"


def _is_there(base: str) -> bool:
    try:
        load(base)
    except InputError:
        return False
    return True


def _near(stored: float | None, found: float | None, *, absolute: float = 0.0, relative: float = 0.0) -> bool:
    if stored is None or found is None:
        return stored is found
    return isinstance(stored, int | float) and abs(stored - found) <= absolute + relative * abs(found)


def _some(texts: list[str], most: int = 3) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
