"""Which rows of a pool are unusable, and which of the others have a low and which a high score.

That is the purge of ENTP (arXiv 2510.23160), which its public reviews describe: a split by curated score. Where the cut
lies, and what counts as unusable, is not known from them: both are [design], a choice of this tool.

In parts (`_pools.scale`): each row is read alone; what is merged is which rows are equal, by digests.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from amends.curate._entp.benchmarks import Benchmark, words_of
from amends.curate._pools.pool import Verdict
from amends.curate._pools.scale import Here, Workers
from amends.io.errors import InputError, check_installed
from amends.io.rows import Row
from amends.lm.pairs import SAME, Pair, read_pairs

LEAST_WORDS = 2
"""Of a response."""
SURE = 0.5
"""Chance from which on a text is taken to be in a language."""
MOST_READ = 4_000
"""Characters by which its language is told."""

RAW = (
    "The rows were split by raw scores. A rater's mistakes put good rows among the low ones, where they are fused "
    "away: mend the scores first (amends curate ds2), and name the column with --curated."
)


@dataclass(frozen=True)
class Purging:
    """How the pool is split; the options of the same names."""

    curated: str | None = None
    """Column of the curated score; "curated" if neither this nor `raw` is given."""
    raw: str | None = None
    """Column of a rater's score as it came."""
    low: float = 2.0
    high: float = 3.0
    """Largest low and least high score: [design]."""
    question_column: str | None = None
    answer_column: str | None = None
    licence_column: str | None = None
    never_mix: tuple[str, ...] = ()
    """Pairs of licences, A|B, that no row may carry together."""
    language: str | None = None
    """ISO 639-1 code; rows that are surely in another one are refused."""

    @property
    def column(self) -> str:
        """Column of the score."""
        return self.raw or self.curated or "curated"


class Sample(NamedTuple):
    """A row that can be fused."""

    row: int
    """Its number in the pool."""
    id: str
    where: str
    instruction: str
    response: str
    licence: str | None


class Purged(NamedTuple):
    """What a purge found."""

    verdicts: list[Verdict]
    """Of every row; those of low rows are for the time being."""
    usable: list[Sample]
    """Low and high ones, and those between."""
    low: list[Sample]


class Seen(NamedTuple):
    """Rows of a part, each looked at alone."""

    samples: list[Sample | None]
    """None of a row without a score, or with a fault."""
    scores: list[float | None]
    faults: list[str | None]
    """What of its instruction or response is missing."""
    keys: list[tuple[str | None, bytes] | None]
    """Of a sample its id, if it has one, and a digest of its texts."""
    wheres: list[str]


def purge(rows: Sequence[Row], how: Purging, benchmark: Benchmark | None = None) -> Purged:
    """Split a pool.

    A row without a score is refused; so is one that is surely in another language than the one that is named, and a
    low one without a licence where a column of licences is named. Dropped
    are rows without an instruction or a response, rows equal to an earlier one, responses shorter than `LEAST_WORDS`
    words, rows that share a run of words with the benchmark, and those between the two cuts.

    Raises
    ------
    InputError : cuts that overlap, a column that is missing everywhere, a score that is no number, no usable row.
    """
    check_scored(rows, how)
    (found,) = purge_in_parts(Here(), [rows], [0], how, benchmark)
    return found


def _check_cuts(how: Purging) -> None:
    if how.curated and how.raw:
        raise InputError("--curated and --raw: give one of them, the scores to cut by.")
    if not how.low < how.high:
        raise InputError(f"--low {how.low:g}, --high {how.high:g}: the first must be below the second.")


def check_scored(rows: Sequence[Row], how: Purging) -> None:
    """Refuse a pool in which no row has a column that is named, and cuts that overlap.

    Raises
    ------
    InputError : names the column.
    """
    _check_cuts(how)
    for name in (how.column, how.licence_column):
        if name and not any(name in row.data for row in rows):
            found = ", ".join(rows[0].data)[:200]
            raise InputError(
                f'{rows[0].where}: the column "{name}" is missing (found: {found}). Name the curated score with '
                "--curated (amends curate ds2 makes one), a raw one with --raw."
            )


def purge_in_parts(
    workers: Workers, parts: Sequence[Any], first: Sequence[int], how: Purging, benchmark: Benchmark | None = None
) -> list[Any]:
    """Split a pool whose rows lie in parts, as `purge` does.

    Parameters
    ----------
    parts : list of lists of `Row`, or what stands for them
    first : list of int
        Number of the first row of each part.

    Returns
    -------
    list of `Purged`, one a part, or what stands for them

    Raises
    ------
    InputError : as `purge`.
    """
    _check_cuts(how)
    seen = workers.each(_seen, parts, first, shared=[how])
    earlier, shared_ids = _earlier(workers.bring(workers.each(_keys, seen)), how)
    return workers.each(_purged, seen, earlier, shared=[how, workers.share(benchmark), shared_ids])


def _seen(rows: Sequence[Row], first: int, how: Purging) -> Seen:
    """Local: read the score and the texts of each row."""
    found = Seen([], [], [], [], [])
    for number, row in enumerate(rows, first):
        score = _score(row, how.column)
        sample, fault, key = (None, None, None) if score is None else _read(number, row, how)
        found.samples.append(sample)
        found.scores.append(score)
        found.faults.append(fault)
        found.keys.append(key)
        found.wheres.append(row.where)
    return found


def _read(number: int, row: Row, how: Purging) -> tuple[Sample | None, str | None, tuple[str | None, bytes] | None]:
    """Read a row alone: the sample, or its fault; and what tells its equals."""
    try:
        (pair,) = read_pairs([row], question_column=how.question_column, answer_column=how.answer_column).kept
    except InputError as error:
        if not str(error).startswith(f"{row.where}: "):
            raise  # of an option, not of the row
        return None, str(error).removeprefix(f"{row.where}: ").partition(". ")[0], None
    name, text = row.data.get("id"), repr((pair.prompt, pair.answer)).encode(errors="surrogatepass")
    key = (None if name is None else str(name), hashlib.blake2b(text, digest_size=16).digest())
    return _sample(number, row, pair, how.licence_column), None, key


def _keys(seen: Seen) -> tuple[list[Any], list[str], bool, str | None]:
    """Local: what tells rows of all parts that are equal; whether one has a score, and the first fault."""
    fault = next((fault for fault in seen.faults if fault), None)
    return seen.keys, seen.wheres, any(score is not None for score in seen.scores), fault


def _earlier(
    parts: Sequence[tuple[list[Any], list[str], bool, str | None]], how: Purging
) -> tuple[list[dict[int, str]], frozenset[str]]:
    """Merge: of each part the places of rows that were there before, and where; ids that different rows have."""
    where = next((wheres[0] for _, wheres, _, _ in parts if wheres), "data")
    if not any(is_rated for _, _, is_rated, _ in parts):
        raise InputError(f'{where}: the column "{how.column}" has no number in any row. Name another one.')
    if not any(any(keys) for keys, _, _, _ in parts):
        fault = next(fault for _, _, _, fault in parts if fault)
        raise InputError(f"{where.split(':')[0]}: no usable row. All were left out, the first because: {fault}")
    by_id, by_text, shared_ids = dict[str, bytes](), dict[bytes, tuple[int, int]](), set[str]()
    found = list[dict[int, str]]()
    for number, (keys, _, _, _) in enumerate(parts):
        found.append({})
        for place, key in enumerate(keys):
            if key is None:
                continue
            here, (name, text) = (number, place), key
            if (before := by_text.setdefault(text, here)) != here:
                found[-1][place] = f"{SAME} {parts[before[0]][1][before[1]]}"
            if name is not None and by_id.setdefault(name, text) != text:
                shared_ids.add(name)
    return found, frozenset(shared_ids)


def _purged(
    seen: Seen, earlier: dict[int, str], how: Purging, benchmark: Benchmark | None, shared_ids: frozenset[str]
) -> Purged:
    """Apply: what becomes of each row. One whose id others have too, as files may, is known by where it stands."""
    foreign = None if how.language is None else other_language(how.language)
    found = Purged([], [], [])
    for place, (sample, score, fault) in enumerate(zip(seen.samples, seen.scores, seen.faults, strict=True)):
        if score is None:
            verdict = Verdict("refused", f'no score in "{how.column}"')
        elif sample is None or (fault := earlier.get(place) or _unusable(sample, benchmark)):
            verdict = Verdict("dropped", f"unusable: {fault}")
        elif foreign and (told := foreign(f"{sample.instruction}\n{sample.response}")):
            verdict = Verdict("refused", told)
        else:
            if sample.id in shared_ids:
                sample = sample._replace(id=sample.where)
            found.usable.append(sample)
            if score >= how.high:
                verdict = Verdict("kept")
            elif score > how.low:
                verdict = Verdict("dropped", f"score {score:g} is neither low nor high")
            elif how.licence_column and not sample.licence:
                verdict = Verdict("refused", f'no licence in "{how.licence_column}"')
            else:
                verdict = Verdict("dropped", f"low score {score:g}")
                found.low.append(sample)
        found.verdicts.append(verdict)
    return found


def _sample(number: int, row: Row, pair: Pair, licence_column: str | None) -> Sample:
    given, licence = row.data.get("id"), row.data.get(licence_column) if licence_column else None
    return Sample(
        number,
        row.where if given is None else str(given),
        row.where,
        _asked(pair),
        pair.answer,
        licence.strip() or None if isinstance(licence, str) else None,
    )


def other_language(code: str) -> Callable[[str], str | None]:
    """Make a function that says of a text why it is surely not in this language, by `py3langid`; else None.

    Sure is a chance of `SURE` or more for another one. [design] Short texts, code, and names are of no sure language.

    Raises
    ------
    InputError : a language that is not known, or `py3langid` is not installed.
    """
    check_installed("py3langid", "py3langid", "curate")
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if code not in identifier.labels:
        raise InputError(f"--language {code}: unknown. Give a code of ISO 639-1, such as en, de or zh.")

    def told(text: str) -> str | None:
        found, chance = identifier.classify(text[:MOST_READ])
        return f"looks like language {found} ({chance:.2f}), not {code}" if found != code and chance >= SURE else None

    return told


def never_mixed(pairs: Sequence[str]) -> set[frozenset[str]]:
    """Read pairs of licences, A|B each.

    Raises
    ------
    InputError : one that is no pair.
    """
    found = [[name.strip().casefold() for name in pair.split("|")] for pair in pairs]
    for pair, names in zip(pairs, found, strict=True):
        if len(names) != 2 or not all(names):
            raise InputError(f"--never-mix {pair!r}: expected two licences as they stand in the column, A|B.")
    return {frozenset(names) for names in found}


def can_mix(one: Sample, other: Sample, never: set[frozenset[str]]) -> bool:
    """Whether a row may carry the licences of both."""
    return frozenset((str(one.licence).casefold(), str(other.licence).casefold())) not in never


def _score(row: Row, column: str) -> float | None:
    """Read a score; a missing one is None, in CSV an empty one."""
    value = row.data.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value) if isinstance(value, str | Real) else math.inf
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise InputError(f'{row.where}: the column "{column}" holds {str(value)[:60]!r}, which is no score.')
    return None if math.isnan(number) else number


def _unusable(sample: Sample, benchmark: Benchmark | None) -> str | None:
    if len(words_of(sample.response)) < LEAST_WORDS:
        return f"the response is shorter than {LEAST_WORDS} words"
    if benchmark and (place := benchmark.place_of(f"{sample.instruction}\n{sample.response}")):
        return f"shares a run of words with the benchmark, {place}"
    return None


def _asked(pair: Pair) -> str:
    """Give what a row asks as one text; turns before the last are named."""
    if isinstance(pair.prompt, str) or len(pair.prompt) == 1:
        return pair.question
    return "\n".join(f"{message['role']}: {message['content']}" for message in pair.prompt)


def warnings_of(how: Purging, licences_of_low: Collection[str]) -> list[str]:
    """Say what makes a purge doubtful."""
    licences = sorted(licences_of_low)
    found = [RAW] if how.raw else []
    if len(licences) > 1 and not how.never_mix:
        found.append(
            f"Rows have {len(licences)} licences ({', '.join(licences)[:200]}), and each fused row carries those of "
            "both its sources. Say with --never-mix which of them no row may carry together."
        )
    return found
