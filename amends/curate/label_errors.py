"""Find labels that look wrong, and keep, drop or replace them.

No true label is needed: a label is doubted if the rows most like it, or a model that did not see it, say another one.

Sources: SimiFeat (Zhu, Dong, Liu 2022), deep k-NN (Bahri et al. 2020), confident learning (Northcutt et al. 2021),
CORES (Cheng et al. 2021); together in ADC, arXiv 2408.11338.
"""

import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from amends.curate._pools.features import embeddings, numbers_of
from amends.curate._pools.flagged import JUDGED, Flagged, Method, check_flagged, doubt_of, is_label, key_of, names_of
from amends.curate._pools.pool import Outcome, Verdict, read_pool, texts_of
from amends.io.atomic import check_new
from amends.io.console import say
from amends.io.errors import InputError, check_installed
from amends.io.options import SeedOption
from amends.io.rows import Row
from amends.io.run import describe, run_folder
from amends.io.write import kind_of

K, DRAWS, FOLDS = 10, 21, 5


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """What was found of every row; the run folder holds the same."""

    outcome: Outcome
    """Every row with its fate, and the columns noise_score, label_error, suggested_label and confidence."""
    detector: Any
    """The estimator of `amends.curate._labels.detectors`, fitted to the rows in `used`; classes are numbers."""
    names: list[Any]
    """Labels, as they stand in the data, by the detector's number."""
    used: list[int]
    """Numbers of the rows that were looked at."""
    labels_n: np.ndarray
    """Their labels as numbers, as they were given."""
    texts: list[str]
    """Of all rows; empty where no text column was named."""
    record: dict[str, Any]
    """As run.json has it."""


def run(
    data: Any,
    *,
    label: str,
    text: str | Sequence[str] = (),
    embedder: str | None = None,
    embedding: str | None = None,
    proba: str | None = None,
    method: Method = "simifeat-vote",
    flagged: Flagged = "keep",
    confidence: float = 0.5,
    k: int = K,
    draws: int = DRAWS,
    folds: int = FOLDS,
    out: str | Path | None = None,
    seed: int = 0,
) -> LabelErrors:
    """Find labels that look wrong.

    Parameters
    ----------
    data : path, list of paths, `datasets.Dataset`, data frame, or list of dictionaries
    out : path, optional
        Run folder to make.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "out")}
    for package, name in (("sklearn", "scikit-learn"), ("faiss", "faiss-cpu")):
        check_installed(package, name, "curate")
    from amends.curate._labels.detectors import BY_PROBABILITY, DETECTORS
    from amends.curate._labels.probabilities import among, probabilities_in

    if out is not None:
        check_new(out)
    started = time.time()
    columns = [text] if isinstance(text, str) else list(text)
    _check_options(columns, embedder, embedding, proba, method in BY_PROBABILITY, method, [*DETECTORS])
    _check_unused(method, method in BY_PROBABILITY, proba, k, draws, folds)
    check_flagged(flagged, confidence)
    rows = read_pool(data, JUDGED)
    texts = texts_of(rows, columns)
    labels = [row.data.get(label) for row in rows]
    if all(label not in row.data for row in rows):
        raise InputError(f'{rows[0].where}: no row has the column "{label}". Name another one with --label.')
    names = names_of(value for value in labels if is_label(value))
    numbers = {key: number for number, key in enumerate(names)}
    if proba:
        values = probabilities_in(rows, proba, names)
    else:
        values = [_embedding(row, embedding) if embedding else np.zeros(0) for row in rows]
    width = Counter(len(v) for v in values if not isinstance(v, str)).most_common(1)
    refused: dict[int, Verdict] = {}
    for i in range(len(rows)):
        if reason := _fault(labels[i], texts[i] if texts else None, values[i], width[0][0] if width else 0):
            refused[i] = Verdict("refused", reason)
    used = [i for i in range(len(rows)) if i not in refused]
    if not used:
        raise InputError(f"{rows[0].where}: {refused[0].reason}, and no other row can be judged either. Mend the data.")
    warned = [f"{n} of {len(rows)} rows were refused: {why}." for why, n in _counted(refused)]
    digests: dict[str, str] = {}
    x_nD = _embedded([texts[i] for i in used], embedder, digests) if embedder else np.array([values[i] for i in used])
    labels_n = np.array([numbers[key_of(labels[i])] for i in used])
    if proba:
        x_nD = among(x_nD, np.unique(labels_n))
    how: dict[str, Any] = {"k": k} if method in ("knn", "simifeat-vote", "simifeat-rank") else {"cv": folds}
    how |= {"num_draws": draws} if method.startswith("simifeat") else {}
    how |= {"random_state": seed} if method != "knn" else {}
    how |= {"estimator": "precomputed"} if proba else {}
    say(f"judging {len(used)} labels of {len(set(labels_n.tolist()))} classes by {method}")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            detector = DETECTORS[method](**how).fit(x_nD, labels_n)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"--label {label}, {method}: {error}") from error
    warned += list(dict.fromkeys(str(warning.message) for warning in heard))
    if (wrong := int(detector.flag_.sum())) > (judged := int(np.isfinite(detector.noise_score_).sum())) / 2:
        warned.append(f"{wrong} of {judged} labels look wrong, which is most of them: look at what they are judged by.")
    if texts and (num := _contradictions([texts[i] for i in used], labels_n)):
        warned.append(f"{num} texts stand in more than one row with different labels: at most one of these is right.")
    outcome = outcome_of(rows, label, [*names.values()], used, labels_n, detector, refused, flagged, confidence)
    for warning in warned:
        say(f"warning: {warning}")
    record = describe(
        command="curate label_errors",
        config=options,
        seed=seed,
        data={"pool": outcome.about(data)},
        weights=digests,
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all labels judged",
        warnings=warned,
        method={"title": method, "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " ")},
    )
    found = LabelErrors(outcome, detector, [*names.values()], used, labels_n, texts, record)
    if out is not None:
        write(found, Path(out), kind_of(data))
    return found


def _check_options(
    columns: list[str],
    embedder: str | None,
    embedding: str | None,
    proba: str | None,
    by_probability: bool,
    method: str,
    methods: list[str],
) -> None:
    """Refuse what cannot go together, before anything is read."""
    if method not in methods:
        raise InputError(f"--method {method}: unknown. Choose one of {', '.join(methods)}.")
    if sum(map(bool, (embedder, embedding, proba))) != 1:
        raise InputError("give one of --embedder (with --text), --embedding and --proba: what labels are judged by.")
    if embedder and not columns:
        raise InputError("--embedder: name the columns to embed with --text.")
    if proba and not by_probability:
        raise InputError(f"--proba: {method} judges by neighbours. Give --embedding, or --method confident.")


def _check_unused(method: str, by_probability: bool, proba: str | None, k: int, draws: int, folds: int) -> None:
    """Refuse options that were changed and would be ignored."""
    for name, value, default, needed, is_used in (
        ("--k", k, K, "goes with neighbours (simifeat-vote, simifeat-rank, knn)", not by_probability),
        ("--draws", draws, DRAWS, "goes with SimiFeat (simifeat-vote, simifeat-rank)", method.startswith("simifeat")),
        ("--folds", folds, FOLDS, "goes with a model that is trained here (confident, cleanlab, cores)",
         by_probability and not proba),
    ):  # fmt: skip
        if value != default and not is_used:
            raise InputError(f"{name} {value}: {needed}. Leave it out.")


# What is read ------------------------------------------------------------------------------------------------------


def _embedding(row: Row, column: str) -> Any:
    """Read a list of numbers; a text says what is wrong with it."""
    found = numbers_of(row.data.get(column), np.float64)
    if found is None:
        return f"{column} is no list of numbers"
    return found if np.isfinite(found).all() else f"{column} holds a number that is missing or infinite"


def _fault(label: Any, text: str | None, values: Any, width: int) -> str | None:
    """Say why a row cannot be judged; None if it can."""
    if not is_label(label):
        return "no label" if label is None or isinstance(label, str | float) else "the label is no single value"
    if text is not None and not text.strip():
        return "no text"
    if isinstance(values, str):
        return values
    if len(values) != width:
        return f"{len(values)} numbers, where most rows have {width}"
    return None


def _counted(refused: Mapping[int, Verdict]) -> list[tuple[str, int]]:
    return Counter(str(verdict.reason) for verdict in refused.values()).most_common()


def _contradictions(texts: Sequence[str], labels_n: np.ndarray) -> int:
    """Count the texts that stand there with different labels."""
    said: dict[str, set[int]] = {}
    for text, number in zip(texts, labels_n.tolist(), strict=True):
        said.setdefault(text, set()).add(number)
    return sum(len(numbers) > 1 for numbers in said.values())


def _embedded(texts: Sequence[str], embedder: str, digests: dict[str, str]) -> np.ndarray:
    """Embed texts, (n, D), float32; each once, so that equal ones have the very same numbers, as copies."""
    different = sorted(set(texts))
    place = {text: number for number, text in enumerate(different)}
    found_UD = embeddings([], different, list(place.values()), embedder, None, digests)
    return np.asarray(found_UD[[place[text] for text in texts]])


# What becomes of the rows -------------------------------------------------------------------------------------------


def outcome_of(
    rows: Sequence[Row],
    label: str,
    names: list[Any],
    used: list[int],
    labels_n: np.ndarray,
    detector: Any,
    refused: Mapping[int, Verdict],
    flagged: Flagged,
    confidence: float,
) -> Outcome:
    """Give every row its fate, with the reason, and the columns that are added."""
    verdicts, changed = dict(refused), list(rows)
    added: dict[str, list[Any]] = {name: [None] * len(rows) for name in JUDGED}
    for n, i in enumerate(used):
        if why := detector.why_not_[n]:
            verdicts[i] = Verdict("refused", f"not judged: {why}")
            continue
        doubt = doubt_of(detector, n)
        own, other = names[labels_n[n]], names[doubt.suggested]
        for name, value in zip(JUDGED, doubt.values(other), strict=True):
            added[name][i] = value
        if not doubt.wrong:
            verdicts[i] = Verdict("kept")
            continue
        verdicts[i], replaced = doubt.verdict(own, other, flagged, confidence, "kept")
        if replaced:
            changed[i] = Row({**rows[i].data, label: other}, rows[i].where)
    return Outcome(changed, [verdicts[i] for i in range(len(rows))], added)


def write(found: LabelErrors, out: Path, kind: str) -> None:
    """Write the run folder in one move."""
    from amends.curate._labels.page import page, summary

    with run_folder(out, found.record, summary(found), page(found)) as folder:
        found.outcome.write(folder, kind)


def command(
    data: Annotated[list[str], typer.Argument(help="Rows with labels; several files are one pool.")],
    label: Annotated[str, typer.Option(help="Column of the label.")],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    text: Annotated[list[str] | None, typer.Option(help="Columns of the text, in this order.")] = None,
    embedder: Annotated[
        str | None, typer.Option(help="Embed the text: hub id, folder, or package:NAME/FOLDER.")
    ] = None,
    embedding: Annotated[str | None, typer.Option(help="Column with embeddings, instead of --embedder.")] = None,
    proba: Annotated[
        str | None,
        typer.Option(help="Column with out-of-sample probabilities: by class, or a list in the order of the labels."),
    ] = None,
    method: Annotated[Method, typer.Option(help="How labels are judged; see the page.")] = "simifeat-vote",
    flagged: Annotated[Flagged, typer.Option(help="What becomes of labels that look wrong.")] = "keep",
    confidence: Annotated[
        float, typer.Option(help="Replace a label from this confidence on (--flagged relabel).", min=0, max=1)
    ] = 0.5,
    k: Annotated[int, typer.Option(help="Neighbours; of SimiFeat with the row itself.", min=3)] = K,
    draws: Annotated[int, typer.Option(help="Draws in which neighbours vote (SimiFeat).", min=1)] = DRAWS,
    folds: Annotated[int, typer.Option(help="Folds of the model (confident, cleanlab, cores).", min=2)] = FOLDS,
    seed: SeedOption = 0,
) -> None:
    """Find labels in DATA that look wrong, and keep, drop or replace them."""
    found = run(
        data if len(data) > 1 else data[0],
        label=label,
        text=text or (),
        embedder=embedder,
        embedding=embedding,
        proba=proba,
        method=method,
        flagged=flagged,
        confidence=confidence,
        k=k,
        draws=draws,
        folds=folds,
        out=out,
        seed=seed,
    )
    counts = found.outcome.counts()
    say(f"{int(found.detector.flag_.sum())} of {len(found.used)} labels look wrong")
    say(f"{counts['rows']} rows: {counts['kept']} kept, {counts['dropped']} dropped, {counts['refused']} refused")
    say(f"done: {out / 'report.html'}")
