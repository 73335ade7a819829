"""WMDP: multiple-choice questions on hazardous biology, chemistry and cybersecurity, on your copy of them.

Questions are put as lm-evaluation-harness puts them, without examples: the choices stand in the prompt behind letters,
and the letter with the highest log-probability after "Answer:" is the model's. Source: Li et al. 2024 (arXiv
2403.03218).
"""

import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from transformers import PreTrainedTokenizerBase

from amends.bench._files import Split, cell_of, find_split, read_split, shown, taken, text_of, told
from amends.bench._models import Answers, items_of, record_of, table, write
from amends.evaluation.evaluate import mean_logprobs
from amends.evaluation.intervals import Direction, Items, bootstrap_mean, entry, mean_of, numbers
from amends.io.atomic import check_new
from amends.io.bounds import check_options
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.options import ModelOption, check_names, listed
from amends.io.progress import progress
from amends.io.rows import Row
from amends.io.tables import read_rows
from amends.lm.load import Loaded, weights_sha256
from amends.lm.logprobs import PackedRow
from amends.lm.pairs import encode
from amends.lm.rows import context_limit
from amends.lm.templates import plain_ids
from amends.lm.turns import check_models, measure_each

SUBJECTS = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}
ALL, GIVEN = "all", "questions"
"""Name of the mean over all questions, and of a file whose name tells no subject."""


class Question(NamedTuple):
    """A question with its choices, of which one is right."""

    id: str
    prompt: str
    choices: str
    """The end of the prompt, from the first choice on."""
    num_choices: int
    right: int


@dataclass(frozen=True)
class Result:
    """What a measurement leaves in memory; its folder holds the same."""

    summaries: dict[str, dict[str, dict[str, Any]]]
    """Role ("model", "before") to subject to accuracy, interval, meaning."""
    chance: dict[str, float]
    """Accuracy of guessing, by subject."""
    items: list[dict[str, Any]]
    record: dict[str, Any]

    def __getitem__(self, subject: str) -> float:
        """Accuracy of the model on a subject, or on "all"."""
        value: float = self.summaries["model"][subject]["value"]
        return value


def run(
    model: str | Path | Any,
    data: str | Path,
    *,
    out: str | Path | None = None,
    before: str | Path | Any = None,
    subjects: Sequence[str] = (),
    keep: Sequence[str] = (),
    rows: int = 0,
    max_length: int = 2048,
    seed: int = 0,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Result:
    """Measure how many questions a model answers right.

    Parameters
    ----------
    model, before : str, Path or model
        What `amends.lm.load` takes, read in turn, or models that are loaded already (with `processing_class`).
    data : path
        A folder with a table of each subject, or one table; rows {question, choices, answer}, answer from 0.
    subjects : list of str, or str, default those that are there
        Of "bio", "chem", "cyber".
    keep : list of str, or str, default none
        Tables that the model should still know, of those that are asked: higher is better there, and they are no part
        of "all". A table whose name tells no subject is "questions".
    rows : int, at least 0, default 0
        Most questions of each subject, evenly spread; 0: all.
    max_length : int, at least 2, default 2048
        Most tokens of a question; less where the model's context is shorter. Of a longer one the end is kept, which
        must hold the choices.
    seed : int, at least 0, default 0
        Of the bootstrap; nothing else is drawn.

    Returns
    -------
    Result; with `out` also as a folder of wmdp.json, items.jsonl, run.json and manifest.json.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    """
    check_options(command, locals())
    started = time.time()
    subjects, keep = listed(subjects), listed(keep)
    models = {"model": model, "before": before}
    check_models(models, processing_class)
    if out is not None:
        check_new(out)
    asked, read = read_wmdp(data, subjects, rows)
    check_names(keep, asked, "--keep", "table")
    answers = measure_each(models, lambda role, loaded: ask(loaded, asked, role, max_length), processing_class)
    chance = {name: float(np.mean([1 / q.num_choices for q in some])) for name, some in with_all(asked, keep).items()}
    summaries = {role: summarise(said.items, chance, seed, keep) for role, said in answers.items()}
    config = {"data": str(data), "subjects": list(asked), "keep": keep, "rows": rows, "max_length": max_length}
    record = record_of("bench wmdp", models, answers, config, read, seed, started)
    result = Result(summaries, chance, items_of(answers, "subject"), record)
    if out is not None:
        write(Path(out), "wmdp.json", {"accuracy": summaries, "chance": chance}, result.items, record)
    return result


def read_wmdp(
    data: str | Path, subjects: Sequence[str] = (), rows: int = 0
) -> tuple[dict[str, list[Question]], dict[str, dict[str, Any]]]:
    """Read the questions of each subject, and describe each table for run.json.

    Raises
    ------
    InputError : a subject that is none, a file that is missing, a faulty row.
    """
    check_names(subjects, SUBJECTS, "--subjects", "subject")
    splits: dict[str, Split] = {}
    if Path(data).is_file():
        words = re.split(r"[^a-z]+", Path(data).name.lower())
        name = next((subject for subject in SUBJECTS if subject in words), GIVEN)
        if subjects and list(subjects) != [name]:
            raise InputError(f"--subjects: {data} is one table, of {name}. Leave the option out, or give a folder.")
        splits[name] = Split(list(read_rows(data)), [str(data)])
    else:
        wanted = subjects or [name for name in SUBJECTS if find_split(data, _names(name))] or list(SUBJECTS)
        for name in wanted:
            splits[name] = read_split(data, _names(name), "Put it there, or choose others with --subjects.")
    asked = {name: taken(split, _maker(name), rows or len(split.rows)) for name, split in splits.items()}
    return asked, {name: told(split, asked[name]) for name, split in splits.items()}


def _names(subject: str) -> list[str]:
    """Names that a subject's table may have: on the Hub, and in copies with a file each."""
    folders = (f"wmdp-{subject}", f"wmdp_{subject}", subject)
    names = (*(f"{folder}/test" for folder in folders), *folders, f"{subject}-questions", f"{subject}_questions")
    return [place + name for place in ("", "data/") for name in names]


def _maker(subject: str) -> Any:
    of = f" about {SUBJECTS[subject]}" if subject in SUBJECTS else ""
    description = f"The following are multiple choice questions (with answers){of}.\n\n"
    return lambda row, number: question(row, number, description)


def question(row: Row, number: str, description: str) -> Question:
    """Make a question of a row.

    Raises
    ------
    InputError : a column that is missing, choices that are no list of 2 to 26 texts, or an answer that is the number of
        none.
    """
    choices, answer = cell_of(row, "choices"), cell_of(row, "answer")
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices) or not 2 <= len(choices) <= 26:
        raise InputError(
            f'{row.where}: column "choices" holds {shown(choices)}, expected a list of 2 to 26 texts. Mend the file; '
            ".csv holds no lists, .jsonl does."
        )
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise InputError(
            f'{row.where}: column "answer" holds {shown(answer)}, expected the number of a choice, from 0 to '
            f"{len(choices) - 1}. Mend the file."
        )
    lines = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
    end = "\n".join([*lines, "Answer:"])
    prompt = f"{description}{text_of(row, 'question').strip()}\n{end}"
    return Question(number, prompt, end, len(choices), answer)


def with_all(by_subject: Mapping[str, Sequence[Any]], keep: Collection[str] = ()) -> dict[str, list[Any]]:
    """Add the set of all that are not to be kept, where there are several."""
    lost = [some for name, some in by_subject.items() if name not in keep]
    every = [one for some in lost for one in some]
    return {name: list(some) for name, some in by_subject.items()} | ({ALL: every} if len(lost) > 1 else {})


def ask(loaded: Loaded, asked: Mapping[str, Sequence[Question]], role: str, max_length: int) -> Answers:
    """Have one model choose a letter for each question."""
    limit = context_limit(loaded.model, max_length)
    items: dict[str, list[dict[str, Any]]] = {}
    warnings: list[str] = []
    packed: dict[str, list[PackedRow]] = {}
    for name, questions in asked.items():
        rows = [letters(loaded.tokenizer, q.prompt, q.num_choices) for q in questions]
        room = limit - max(len(answer) for row in rows for answer in row.answers) + 1
        for q, row in zip(questions, rows, strict=True):
            needed = min(len(plain_ids(loaded.tokenizer, q.choices)), len(row.prompt))
            if needed > room:
                told = f"--max-length {max_length}" if limit == max_length else f"its context of {limit} tokens"
                raise InputError(
                    f"{role}, {loaded.name}: the choices of question {q.id} on {name} have {needed} tokens, and {told} "
                    f"has room for {max(room, 0)}. {'Raise it' if limit == max_length else 'Leave such questions out'}."
                )
        if cut := sum(len(row.prompt) > room for row in rows):
            warnings.append(f"of {cut} of {len(rows)} questions on {name} only the last {room} tokens fit.")
        packed[name] = [PackedRow(row.prompt[-room:], row.answers) for row in rows]
    with progress(f"{role}: questions", sum(map(len, asked.values()))) as advance:
        for name, questions in asked.items():
            found = mean_logprobs(loaded.model, packed[name], loaded.tokenizer.pad_token_id, advance)
            items[name] = []
            for q, row, means in zip(questions, packed[name], found, strict=True):
                logp = [mean * len(answer) for mean, answer in zip(means, row.answers, strict=True)]
                item = {"id": q.id, "gold": q.right, "choice": int(np.argmax(logp)), "logp": logp}
                items[name].append(item)
    return Answers(weights_sha256(loaded.model), items, warnings)


def letters(tokenizer: PreTrainedTokenizerBase, prompt: str, count: int) -> PackedRow:
    """One row with a letter as each answer, cut where the tokens of the prompt end when both are read together."""
    ids = encode(tokenizer, prompt, [""])[0].prompt
    alone = plain_ids(tokenizer, prompt)
    answers = []
    for letter in ascii_uppercase[:count]:
        both = plain_ids(tokenizer, f"{prompt} {letter}")
        together = both[: len(alone)] == alone and len(both) > len(alone)
        answers.append(both[len(alone) :] if together else plain_ids(tokenizer, f" {letter}"))
    return PackedRow(ids, answers)


def summarise(
    items: Mapping[str, Items], chance: Mapping[str, float], seed: int = 0, keep: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Accuracy of each subject and of all, with 95 % bootstrap intervals over questions.

    Lower is better of a subject, and higher of what is in `keep`; of other questions nobody said which.
    """
    found = {}
    streams = np.random.SeedSequence(seed).spawn(len(chance))
    for (name, rows), stream in zip(with_all(items, keep).items(), streams, strict=True):
        right_N = numbers([item["choice"] == item["gold"] for item in rows])
        better, said = _direction(name, keep)
        meaning = f"Share of questions ({name}) answered right; guessing gives {chance[name]:.3g}; {said}"
        interval = bootstrap_mean(right_N, np.random.default_rng(stream))
        whole = entry(mean_of(right_N), interval, len(right_N), 0, better or "lower", meaning, None)
        found[name] = whole | {"better": better}
    return found


def _direction(name: str, keep: Collection[str]) -> tuple[Direction | None, str]:
    """Which accuracy is better, and how to read it."""
    if name in keep:
        return "higher", "higher: better kept."
    if name == GIVEN:
        return None, f"whether they should be known was not said (--keep {GIVEN}: they should)."
    return "lower", "lower, down to that: less known."


def command(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="Folder of your copy, or one table: question, choices, answer.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    before: Annotated[str | None, typer.Option(help="The model before it forgot, to stand beside.")] = None,
    subjects: Annotated[
        list[str] | None,
        typer.Option(help=f"Subjects, of: {', '.join(SUBJECTS)}; default: those that are there; repeatable."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help=f"Tables that should still be known; {GIVEN}: that of a file of no subject; repeatable."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Most questions of each subject, evenly spread; 0: all.", min=0)] = 0,
    max_length: Annotated[int, typer.Option(help="Most tokens of a question.", min=2)] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Measure how many questions in DATA MODEL answers right."""
    result = run(
        model,
        data,
        out=out,
        before=before,
        subjects=listed(subjects),
        keep=listed(keep),
        rows=rows,
        max_length=max_length,
        seed=seed,
    )
    typer.echo(table(result.summaries))
    typer.echo("by guessing: " + ", ".join(f"{name} {value:.3g}" for name, value in result.chance.items()))
    say(f"done: {out / 'wmdp.json'}")
