"""What the tasks in this folder ask and how answers are scored, for lm-evaluation-harness.

The harness calls each data function with its metadata: "muse" or "tofu", where the user's copy is, and "pretrained" or
"tokenizer", which it takes from the model's arguments. Scores are those of `amends bench muse` and of `amends unlearn`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer

from amends.bench._muse import VERBMEM_TOKENS, first_tokens, read_muse, rouge_f1, until_stop
from amends.evaluation.metrics import rouge_l_recall, truth_ratio_score
from amends.evaluation.metrics import truth_ratio as ratio_of
from amends.io.errors import InputError
from amends.io.tables import read_rows
from amends.lm.pairs import Pair, read_pairs
from amends.lm.templates import plain_ids

Splits = dict[str, Dataset]
ALL_ROWS = 10**9


def verbmem(**metadata: Any) -> Splits:
    """Passages of MUSE, each with its first tokens after the prompt as what is expected."""
    tokenizer = _tokenizer(metadata)
    found = read_muse(_place(metadata, "muse"), ["verbmem"], ALL_ROWS).verbmem
    return _test(
        [{"prompt": p.prompt, "answer": first_tokens(tokenizer, p.continuation, VERBMEM_TOKENS)} for p in found]
    )


def knowmem_forget(**metadata: Any) -> Splits:
    """Questions of MUSE on what is to be forgotten, behind their examples."""
    return _knowmem(metadata, "forget")


def knowmem_retain(**metadata: Any) -> Splits:
    """Questions of MUSE on what is to be kept, behind their examples."""
    return _knowmem(metadata, "retain")


def tofu_questions(**metadata: Any) -> Splits:
    """Questions with answers, in the plain layout that `amends` gives to models without a chat template."""
    return _test([{"prompt": _plain(pair), "answer": pair.answer} for pair in _pairs(metadata)])


def tofu_choice(**metadata: Any) -> Splits:
    """Each question with its right answer, in its paraphrase where there is one, and the wrong ones."""
    tokenizer = _tokenizer(metadata)
    rows = []
    for pair in _pairs(metadata):
        if not pair.wrong:
            raise InputError(f"{pair.where}: has no wrong answers (column perturbed_answer) to choose among.")
        choices = [pair.paraphrase or pair.answer, *pair.wrong]
        counts = [len(plain_ids(tokenizer, f" {choice}")) for choice in choices]
        rows.append({"prompt": _plain(pair), "choices": choices, "gold": 0, "num_tokens": counts})
    return _test(rows)


def rouge_f1_of(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-L F1 of an answer, up to its end."""
    return _there({"rouge_l_f1": rouge_f1(doc["answer"], until_stop(results[0]))})


def rouge_f1_whole(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-L F1 of all that was said."""
    return _there({"rouge_l_f1": rouge_f1(doc["answer"], results[0])})


def rouge_recall(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-L recall, as TOFU has it."""
    return _there({"rouge_l_recall": float(rouge_l_recall([results[0]], [doc["answer"]])[0])})


def truth_ratio(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Whether the right answer is the likeliest a token, and the truth ratio of questions to forget, min(R, 1/R)."""
    means = np.array([found[0] for found in results]) / np.array(doc["num_tokens"])
    ratio = ratio_of(means[None, 1:], means[:1])
    return {"acc": float(means.argmax() == doc["gold"]), "truth_ratio": truth_ratio_score(ratio)}


def _there(scores: dict[str, float]) -> dict[str, float]:
    """Leave out what has no value, as no word is expected: the harness takes the mean of what is there."""
    return {name: score for name, score in scores.items() if not math.isnan(score)}


def _knowmem(metadata: Mapping[str, Any], name: str) -> Splits:
    found = read_muse(_place(metadata, "muse"), ["knowmem"], ALL_ROWS).knowmem[name]
    return _test([{"prompt": q.prompt, "answer": q.answer} for q in found])


def _test(rows: list[dict[str, Any]]) -> Splits:
    return {"test": Dataset.from_list(rows)}


def _pairs(metadata: Mapping[str, Any]) -> list[Pair]:
    return read_pairs(read_rows(_place(metadata, "tofu"))).kept


def _plain(pair: Pair) -> str:
    return f"Question: {pair.question}\nAnswer:"


def _place(metadata: Mapping[str, Any], name: str) -> str:
    if not metadata.get(name):
        raise InputError(
            f'Where is your copy? Give its place: --{name}, or to lm_eval --metadata \'{{"{name}": "..."}}\'.'
        )
    return str(metadata[name])


def _tokenizer(metadata: Mapping[str, Any]) -> Any:
    name = metadata.get("tokenizer") or metadata.get("pretrained")
    if not name:
        raise InputError('Which tokenizer? Give its place to lm_eval: --metadata \'{"tokenizer": "..."}\'.')
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False) if isinstance(name, str) else name
