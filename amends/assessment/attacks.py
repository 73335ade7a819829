"""Ways to get at what was to be forgotten: a question put in other ways, and a few steps of training on a part of it.

Shapes: as in `amends.lm.logprobs`; S samples of a batch.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, set_seed

from amends.assessment.weights import check_lora
from amends.io.errors import InputError
from amends.io.rows import Row, list_of, value_of
from amends.lm.callbacks import Bar
from amends.lm.load import add_lora
from amends.lm.pairs import Message, Pair, encode
from amends.lm.quiet import quiet
from amends.lm.templates import turn_end
from amends.lm.trainer import training_arguments
from amends.maths.rouge import Words, spaced
from amends.unlearn._neighbours import WORD, words_of_names
from amends.unlearn._teach import TeachTrainer

EASY = "question"
PREFIX_TOKENS = (1, 3, 5)
NUM_SHOTS = 5
MOST_PARAPHRASES = 3
BLANK = "____"
MIXED = "Por favor, responde en inglés a la siguiente pregunta: {}"
"""A question in another language's sentence; the answer is asked for in English, so that its words can be compared."""
LONGEST_TYPO_FREE = 3
"""Words of more letters than this may get a typo: the letters inside change places."""

RELEARN_ITEMS = 5
RELEARN_STEPS = (0, 5, 10, 20, 50)
RELEARN_RATE = 1e-3
RELEARN_RANK = 16
ADAPTER = "relearn"


# Elicitation


class Wordings(NamedTuple):
    """A question to forget as the data put it otherwise."""

    paraphrases: Sequence[str] = ()
    reversed: tuple[str, str] | None = None
    """A question that names what was asked for, and its answer, which names what was asked about."""


class Ask(NamedTuple):
    """One prompt and what it should not bring out (or, of questions to keep, should)."""

    item_set: str
    id: str
    variant: str
    """ "question": the plain one."""
    shown: str
    """The prompt as a person would read it."""
    prompt: list[int]
    expected: str
    """The part of the answer that the prompt does not give away."""


def variants(
    tokenizer: PreTrainedTokenizerBase, pair: Pair, wordings: Wordings, shots: Sequence[Pair], seed: int
) -> list[Ask]:
    """Put a question to forget in several ways; the plain one is the first.

    question; paraphrase_1, ... and reversed as the data give them; prefix_1, _3, _5: the answer's first tokens are
    given; few_shot: after NUM_SHOTS other questions with their answers; cloze: the answer alone, up to a gap for its
    last name or number (`cut`); typos: letters change places in every other longer word; mixed: within a sentence of
    another language. What a prompt gives away is not expected of the answer. Variants that cannot be made of this pair
    are left out.

    Parameters
    ----------
    wordings : Wordings
        The question as the data put it otherwise.
    shots : sequence of Pair
        Questions to keep; only those of the same kind (chat or plain text) are used.
    seed : int
        Of the typos.

    Returns
    -------
    list of Ask, of the set "forget".
    """

    def ask(variant: str, prompt: list[Message] | str, expected: str = pair.answer) -> Ask:
        shown = replace(pair, prompt=prompt).question
        return Ask("forget", pair.id, variant, shown, encode(tokenizer, prompt, ["a"])[0].prompt, expected)

    asks = [ask(EASY, pair.prompt)]
    asks += [ask(f"paraphrase_{k}", reworded(pair.prompt, text)) for k, text in enumerate(wordings.paraphrases, 1)]
    if wordings.reversed is not None:
        asks.append(ask("reversed", reworded(pair.prompt, wordings.reversed[0]), wordings.reversed[1]))
    asks += prefixed(tokenizer, asks[0], pair)
    if (many := with_shots(pair.prompt, shots)) is not None:
        asks.append(ask("few_shot", many))
    given, hidden = cut(pair)
    if given and has_words(hidden) and not pair.is_text:
        asks.append(ask("cloze", reworded(pair.prompt, f"Complete this sentence: {given} {BLANK}"), hidden))
    if (wrong := with_typos(pair.question, random.Random(f"{seed} typos {pair.id}"))) != pair.question:
        asks.append(ask("typos", reworded(pair.prompt, wrong)))
    if not pair.is_text:
        asks.append(ask("mixed", reworded(pair.prompt, MIXED.format(pair.question))))
    return asks


def cut(pair: Pair) -> tuple[str, str]:
    """Cut an answer where the last name or number begins that stands in it for the first time: what is before, and it.

    Without such a one behind two words the answer is cut in half. An answer of one word has nothing before. Where a
    script is written without spaces, its characters are the words.
    """
    words, between = pair.answer.split(), " "
    if len(words) < 2:
        words, between = spaced(pair.answer).split(), ""
    names = words_of_names([pair.question, pair.answer])

    def is_fact(word: str) -> bool:
        return any(c.isdigit() for c in word) or not names.isdisjoint(WORD.findall(word))

    def bare(word: str) -> str:
        return "".join(c for c in word.casefold() if c.isalnum())

    end = len(words)
    while end > 2:
        start = end
        while start > 0 and is_fact(words[start - 1]):
            start -= 1
        known = {bare(word) for word in words[:start]}
        if 2 <= start < end and not known.issuperset(map(bare, words[start:end])):
            return between.join(words[:start]), between.join(words[start:end])
        end = min(start, end - 1)
    return between.join(words[: len(words) // 2]), between.join(words[len(words) // 2 :])


def has_words(text: str) -> bool:
    """Whether ROUGE finds a word in a text; of one without, such as a full stop, nothing can ever be said."""
    return bool(Words(use_stemmer=False).tokenize(text))


def prefixed(tokenizer: PreTrainedTokenizerBase, plain: Ask, pair: Pair) -> list[Ask]:
    """Give the answer's first tokens, as long as words are left to say."""
    closing = turn_end(tokenizer) if not pair.is_text else []
    ids = encode(tokenizer, pair.prompt, [pair.answer])[0].answer
    ids = ids[: len(ids) - len(closing)] if closing and ids[-len(closing) :] == closing else ids
    found = []
    for count in PREFIX_TOKENS:
        hidden = str(tokenizer.decode(ids[count:], skip_special_tokens=True)).strip()
        if has_words(hidden):
            given = tokenizer.decode(ids[:count], skip_special_tokens=True)
            shown, prompt = f"{plain.shown}\n{given} ...", plain.prompt + ids[:count]
            found.append(plain._replace(variant=f"prefix_{count}", shown=shown, prompt=prompt, expected=hidden))
    return found


def reworded(prompt: list[Message] | str, text: str) -> list[Message] | str:
    """Put a text in the place of the question."""
    return text if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": text}]


def with_shots(prompt: list[Message] | str, shots: Sequence[Pair]) -> list[Message] | str | None:
    """Put other questions with their answers before it; None where there are none of its kind.

    Of plain text an answer is what comes next, white space and all.
    """
    if isinstance(prompt, str):
        texts = [f"{s.prompt}{s.answer}" for s in shots if isinstance(s.prompt, str)]
        return "\n\n".join([*texts, prompt]) if texts else None
    turns: list[Message] = []
    for shot in shots:
        if not shot.is_text and len(shot.prompt) == 1:
            turns += [*shot.prompt, {"role": "assistant", "content": shot.answer}]
    return [*prompt[:-1], *turns, prompt[-1]] if turns else None


def with_typos(text: str, draw: random.Random) -> str:
    """Let two neighbouring letters inside every other longer word change places."""
    count = 0

    def swap(match: re.Match[str]) -> str:
        nonlocal count
        word = match[0]
        places = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
        count += 1
        if count % 2 == 0 or not places:
            return word
        i = draw.choice(places)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]

    return re.sub(rf"[^\W\d_]{{{LONGEST_TYPO_FREE + 1},}}", swap, text)


def wordings(rows: Sequence[Row]) -> dict[str, Wordings]:
    """Read how the data put each question otherwise, by the place of its row.

    That is the columns paraphrased_question, a text or a list of texts, and reversed_question with reversed_answer.

    Raises
    ------
    InputError : another kind of value there; a reversed question without its answer.
    """
    found = {}
    for row in rows:
        value = list_of(row, "paraphrased_question")
        texts = [value] if isinstance(value, str) else value or []
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"{row.where}: paraphrased_question must be a text or a list of texts, none empty.")
        both = [value_of(row, name) for name in ("reversed_question", "reversed_answer")]
        if both != [None, None] and not all(isinstance(text, str) for text in both):
            raise InputError(
                f"{row.where}: reversed_question needs reversed_answer beside it, both of them text, none empty: what "
                "the question is turned round to ask for."
            )
        turned = (str(both[0]).strip(), str(both[1]).strip()) if both[0] is not None else None
        found[row.where] = Wordings([text.strip() for text in texts][:MOST_PARAPHRASES], turned)
    return found


# Relearning


class Curve(NamedTuple):
    """What a model says again of items it was not trained on, after some steps on others."""

    steps: tuple[int, ...]
    scores_NS: list[list[float]]
    """One row an item, one score a step."""


def relearn(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Pair],
    score: Callable[[Any], Sequence[float]],
    *,
    seed: int,
    label: str,
    steps: Sequence[int] = RELEARN_STEPS,
    learning_rate: float = RELEARN_RATE,
) -> Curve:
    """Train a fresh adapter on a few items, and score the model at some steps; the model is left as it was.

    Plain fine-tuning: mean negative log-likelihood of the answers, all items in each batch, AdamW at a constant rate,
    LoRA of rank RELEARN_RANK on all linear layers, the same for every model.

    Parameters
    ----------
    items : list of Pair
        What is trained on.
    score : callable
        model -> a score of each item that is tested.
    steps : sequence of int
        When to score, from 0 on.

    Raises
    ------
    InputError : an adapter that is not a plain LoRA; an item that is longer than the model's context.
    """
    found: list[list[float]] = [list(score(model))]
    set_seed(seed)
    with fresh_adapter(model, RELEARN_RANK) as attacked:
        args = training_arguments(
            TrainingArguments,
            ".",  # made if it is not there; nothing is written to it
            max_steps=max(steps),
            per_device_train_batch_size=len(items),
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            seed=seed,
            disable_tqdm=True,
        )
        look = ScoreAt(steps, lambda: found.append(list(score(attacked))))
        trainer = TeachTrainer(attacked, args, list(items), tokenizer, callbacks=[Bar(label, "probability"), look])
        trainer.train()
        attacked.eval()
    return Curve(tuple(steps), [list(row) for row in zip(*found, strict=True)])


class ScoreAt(TrainerCallback):
    """Score the model after some of the steps."""

    def __init__(self, steps: Sequence[int], score: Callable[[], None]) -> None:
        self.steps, self.score = frozenset(steps), score

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Look whether this is one of them."""
        if state.global_step in self.steps:
            model.eval()
            self.score()
            model.train()


@contextmanager
def fresh_adapter(model: Any, rank: int) -> Iterator[PeftModel]:
    """Put a new LoRA adapter on a model, beside the one it may have, and take it away again.

    Only its weights require gradients. Not a weight of the model is changed.

    Raises
    ------
    InputError : the model has an adapter that is not a plain LoRA.
    """
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    was_training = model.training
    if isinstance(model, PeftModel):
        check_lora(model)
        wrapped, own = model, list(model.active_adapters)
        settings: Any = model.peft_config[own[0]]
        places = {name: getattr(settings, name) for name in ("target_modules", "target_parameters")}
        config = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM", **places)
        with quiet():
            model.add_adapter(ADAPTER, config)
        tuner: Any = model.base_model
        tuner.set_adapter([*own, ADAPTER])
        for name, weight in model.named_parameters():
            weight.requires_grad_(f".{ADAPTER}." in name)
    else:
        own, wrapped = [], add_lora(model, rank)
    try:
        yield wrapped
    finally:
        if own:
            wrapped.delete_adapter(ADAPTER)
            tuner.set_adapter(own)
        else:
            wrapped.unload()
            if hasattr(model, "peft_config"):
                del model.peft_config
        model.train(was_training)
        for name, weight in model.named_parameters():
            weight.requires_grad_(flags[name])
            weight.grad = None


def fitting(asks: Sequence[Ask], most: int | None) -> tuple[list[Ask], Mapping[str, int]]:
    """Leave out prompts of more than `most` tokens; how many of each variant."""
    left_out: dict[str, int] = {}
    kept = []
    for ask in asks:
        if most is None or len(ask.prompt) <= most:
            kept.append(ask)
        else:
            left_out[ask.variant] = left_out.get(ask.variant, 0) + 1
    return kept, left_out
