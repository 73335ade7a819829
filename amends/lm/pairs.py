"""Question-answer pairs: from the column shapes people have to token ids.

Shapes read: question/answer, prompt/completion (texts or messages), instruction(+input)/output, chat `messages`,
ShareGPT's `conversations` and plain `text` that is cut into prefix and continuation. Chat models are asked through
their own chat template, base models in a plain layout.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from amends.io.errors import InputError
from amends.io.rows import Row, list_of, value_of
from amends.lm.templates import next_ids, plain_ids, puts_space, start_of_text, template_ids, turn_end

SHAPES = (("question", "answer"), ("prompt", "completion"), ("instruction", "output"))
SHAREGPT = {"human": "user", "gpt": "assistant"}
"""Roles as ShareGPT writes them."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SAME = "same prompt and answer as"
"""What the reason begins with of a row that is there twice; the others were left out for a fault."""
OR_SKIP = ", or leave such rows out with --skip-bad-rows."
"""What the commands that stop at a faulty row say of it last."""
Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt with its answer.

    `prompt` is a list of chat messages, or a string that the answer continues literally (plain text, no template).
    `paraphrase` and `wrong` are the alternatives that TOFU's truth ratio compares with the answer.
    `right` is the true answer where `answer` is a made-up one (column right_answer).
    """

    id: str
    prompt: list[Message] | str
    answer: str
    where: str
    paraphrase: str | None = None
    wrong: tuple[str, ...] = ()
    right: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether it is a piece of plain text."""
        return isinstance(self.prompt, str)

    @property
    def answers_before(self) -> int:
        """Answers in earlier turns of the conversation."""
        return 0 if isinstance(self.prompt, str) else sum(m["role"] == "assistant" for m in self.prompt)

    @property
    def question(self) -> str:
        """The prompt as a person would read it: the last message, or the text."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]


class Dropped(NamedTuple):
    """A row that was left out: where it stands and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Pairs:
    """Pairs kept, in input order, and rows left out with their reasons."""

    kept: list[Pair]
    dropped: list[Dropped] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Rows read: kept + left out."""
        return len(self.kept) + len(self.dropped)


class Encoded(NamedTuple):
    """Token ids of a prompt and of an answer; the answer ends with the token that closes the model's turn."""

    prompt: list[int]
    answer: list[int]


class Opening(NamedTuple):
    """A prompt as it is read, and what is read with every answer to it."""

    prompt: list[int]
    spaces: str
    """What stands before an answer and is part of its first token."""
    closing: list[int]
    """The token that closes the model's turn; none after plain text."""


def read_pairs(
    rows: Iterable[Row],
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
    skip_bad_rows: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prefix_tokens: int = 100,
    continuation_tokens: int = 100,
) -> Pairs:
    """Turn rows of any known shape into pairs.

    Parameters
    ----------
    rows : Row
        What `amends.io.tables.read_rows` yields, or `rows_of` makes from dictionaries.
    question_column, answer_column : str, optional
        Names to use instead of the known shapes; give both or neither.
    skip_bad_rows : bool, default False
        Leave a faulty row out and count it, instead of stopping at it.
    tokenizer : optional
        Needed for plain `text` rows only, which are cut by tokens.
    prefix_tokens, continuation_tokens : int, default 100
        Length of the two parts that plain text is cut into.

    Raises
    ------
    InputError : unknown columns, an empty or non-text value, a duplicate id, nothing left; with file and line.
    """
    if (question_column is None) != (answer_column is None):
        raise InputError("--question-column and --answer-column go together: give both or neither.")
    columns = (question_column, answer_column) if question_column and answer_column else None
    kept: list[Pair] = []
    dropped: list[Dropped] = []
    seen_ids: dict[str, str] = {}
    seen_texts: dict[tuple[str, str], str] = {}
    source = "the data"
    unnamed: dict[int, str] = {}  # place among those kept, of a row without an id, and its number
    for number, row in enumerate(rows):
        source = row.where.split(":")[0]
        try:
            if columns is None and is_plain_text(row):
                found = _cut_text(row, tokenizer, prefix_tokens, continuation_tokens)
            else:
                found = [_pair(row, columns)]
            for pair in found:
                if pair.id in seen_ids:
                    raise InputError(
                        f"{row.where}: id {pair.id!r} was used before, at {seen_ids[pair.id]}. Ids must be unique."
                    )
        except InputError as error:
            if not skip_bad_rows:
                raise
            dropped.append(Dropped(row.where, str(error).removeprefix(f"{row.where}: ").replace(OR_SKIP, ".")))
            continue
        for pair in found:
            if pair.id:
                seen_ids[pair.id] = row.where
            text = (repr(pair.prompt), pair.answer)
            place = pair.id if pair.is_text else row.where  # a row of text has several
            if text in seen_texts:
                dropped.append(Dropped(place, f"{SAME} {seen_texts[text]}"))
                continue
            seen_texts[text] = place
            if not pair.id:
                unnamed[len(kept)] = str(number)
            kept.append(pair)
    if not kept:
        reasons = f" All {len(dropped)} rows were left out, the first because: {dropped[0].reason}" if dropped else ""
        raise InputError(f"{source}: no usable row.{reasons}")
    for index, name in unnamed.items():  # now it is known which ids are given
        while name in seen_ids:
            name = f"row-{name}"
        kept[index] = replace(kept[index], id=name)
    return Pairs(kept, dropped)


def is_plain_text(row: Row) -> bool:
    """Whether a row is read as plain text: one with a conversation, or a question, beside its text is not."""
    asked = any(row.data.get(question) is not None for question, _ in SHAPES)
    return "text" in row.data and not asked and _messages_of(row) is None


def _pair(row: Row, columns: tuple[str, str] | None) -> Pair:
    """Read a row that is one pair; its id is empty where it has none."""
    messages = None if columns else _messages_of(row)
    if messages is not None:
        prompt, answer = _split_messages(row, messages)
    else:
        question_column, answer_column = columns or _find_shape(row)
        question, answer = _text(row, question_column), _text(row, answer_column)
        if question_column == "instruction" and columns is None and value_of(row, "input") is not None:
            question = f"{question}\n\n{_text(row, 'input')}"
        prompt = [{"role": "user", "content": question}]
    identity, wrong = value_of(row, "id"), list_of(row, "perturbed_answer") or ()
    paraphrase, right = value_of(row, "paraphrased_answer"), value_of(row, "right_answer")
    if not isinstance(wrong, list | tuple) or not all(isinstance(text, str) and text.strip() for text in wrong):
        raise InputError(f"{row.where}: perturbed_answer must be a list of non-empty texts.")
    if not isinstance(paraphrase, str | None):
        raise InputError(f"{row.where}: paraphrased_answer must be a text.")
    if not isinstance(right, str | None):
        raise InputError(
            f"{row.where}: right_answer must be the true answer beside a made-up one, as text. Rename the column if it "
            "is something else."
        )
    return Pair("" if identity is None else str(identity), prompt, answer, row.where, paraphrase, tuple(wrong), right)


def _find_shape(row: Row) -> tuple[str, str]:
    there = [shape for shape in SHAPES if all(column in row.data for column in shape)]
    if there:  # a table of several kinds of rows has null where a row is of another kind
        return next((shape for shape in there if all(row.data[column] is not None for column in shape)), there[0])
    for question, answer in SHAPES:
        if (question in row.data) != (answer in row.data):
            given, gone = (question, answer) if question in row.data else (answer, question)
            raise InputError(
                f'{row.where}: column "{gone}" is missing beside "{given}" (found: {", ".join(row.data)}). '
                "Rename it or name yours with --question-column and --answer-column."
            )
    raise InputError(
        f"{row.where}: no known columns (found: {', '.join(row.data) or 'none'}). Needed: question and answer, prompt "
        "and completion, instruction and output, messages, conversations, or text; or name yours with "
        "--question-column and --answer-column."
    )


def _text(row: Row, column: str) -> str:
    return _text_as_it_is(row, column).strip()


def _text_as_it_is(row: Row, column: str) -> str:
    """Give a text with the white space around it, which alone is none."""
    if column not in row.data:
        raise InputError(f'{row.where}: column "{column}" is missing (found: {", ".join(row.data)}).')
    value = row.data[column]
    if not isinstance(value, str):
        raise InputError(
            f'{row.where}: column "{column}" holds {type(value).__name__}, expected text. Write one{OR_SKIP}'
        )
    if not value.strip():
        raise InputError(f'{row.where}: column "{column}" is empty. Fill it{OR_SKIP}')
    return value


def _messages_of(row: Row) -> Any:
    """Messages of a row that has some, in whichever column, be they sound or not; None of a row in texts."""
    prompt, completion = value_of(row, "prompt"), value_of(row, "completion")
    if (messages := value_of(row, "messages")) is not None:
        return messages
    if (turns := value_of(row, "conversations")) is not None:
        return _from_sharegpt(turns)
    if isinstance(prompt, list | tuple) and isinstance(completion, list | tuple):  # as TRL has them
        return [*prompt, *completion]
    return None


def _split_messages(row: Row, messages: Any) -> tuple[list[Message], str]:
    well_formed = isinstance(messages, list | tuple) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    if not well_formed or len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise InputError(
            f"{row.where}: messages must be a list of {{role, content}}, or conversations one of {{from, value}}, that "
            "ends with the assistant's answer; so must prompt and completion together, where they are lists."
        )
    for role in (m["role"] for m in messages):  # it stands in the template, where text may be a control token
        if role not in ROLES:
            raise InputError(f"{row.where}: there is no role {role[:60]!r}. Write one of {', '.join(ROLES)}.")
    if not messages[-1]["content"].strip():
        raise InputError(f"{row.where}: the last message is empty. Fill it{OR_SKIP}")
    return [{"role": m["role"], "content": m["content"]} for m in messages[:-1]], messages[-1]["content"].strip()


def _from_sharegpt(turns: Any) -> Any:
    """Make messages of turns that are told by "from" and "value"; others stay as they are."""
    if not isinstance(turns, list | tuple) or not all(
        isinstance(t, Mapping) and {"from", "value"} <= t.keys() for t in turns
    ):
        return turns
    return [{"role": SHAREGPT.get(str(t["from"]), t["from"]), "content": t["value"]} for t in turns]


def _cut_text(
    row: Row, tokenizer: PreTrainedTokenizerBase | None, prefix_tokens: int, continuation_tokens: int
) -> list[Pair]:
    """Cut one text into windows of prefix + continuation, which follow each other without overlap.

    White space at a border stays, so that a window that is written down and cut again is the same window. At the end of
    the whole text (the last line of a file ends in one, too) it never makes a window, nor does it where it is all of a
    continuation.
    """
    if tokenizer is None:
        raise InputError(
            f"{row.where}: plain text, where a question and its answer are needed. Name their columns with "
            "--question-column and --answer-column; from Python, text is cut with tokenizer=."
        )
    text = _text_as_it_is(row, "text")
    put = int(text.startswith(" ") and puts_space(tokenizer))  # one that the tokenizer puts there itself
    read = tokenizer(text[put:], add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    spans = read["offset_mapping"]
    # A token's span may lack its space, and two may share a character: each begins where the one before it ends.
    border = [0, *(put + min(one[1], other[0]) for one, other in pairwise(spans)), len(text)]
    num_tokens = sum(start < len(text.rstrip()) for start in border[:-1])
    window = prefix_tokens + continuation_tokens
    shortest = min(2, continuation_tokens)  # a rest of one token is no continuation
    identity = row.where if (own := value_of(row, "id")) is None else own
    pairs = []
    for start in range(0, num_tokens, window):
        first, middle, end = (border[min(i, len(spans))] for i in (start, start + prefix_tokens, start + window))
        if num_tokens - start >= prefix_tokens + (shortest if start else 1) and text[middle:end].strip():
            pairs.append(Pair(f"{identity}#{start}", text[first:middle], text[middle:end], row.where))
    if not pairs:
        raise InputError(
            f"{row.where}: the text has {num_tokens} tokens; {prefix_tokens} go to the prefix, none is left to forget. "
            "Lower --prefix-tokens."
        )
    return pairs


def encode(tokenizer: PreTrainedTokenizerBase, prompt: list[Message] | str, answers: Sequence[str]) -> list[Encoded]:
    """Token ids of one prompt with each of its answers.

    The prompt is tokenised apart from the answers, so that no token crosses the border. Texts are always read as text:
    `<|im_start|>` inside a question never becomes a control token. A model that can think is asked for its answer
    without a thought (`amends.lm.templates`).

    Raises
    ------
    InputError : the chat template does not take the messages, or does not keep their texts.
    """
    read = opening(tokenizer, prompt)
    return [Encoded(read.prompt, answer_ids(tokenizer, read, answer)) for answer in answers]


def opening(tokenizer: PreTrainedTokenizerBase, prompt: list[Message] | str) -> Opening:
    """Read a prompt, which takes longer than the answers to it; raises as `encode`."""
    if isinstance(prompt, str):
        # The answer continues the text and goes on after its last token, so no end is taught or forgotten.
        return Opening(start_of_text(tokenizer) + plain_ids(tokenizer, prompt), "", [])
    if tokenizer.chat_template is None:
        text = (
            "".join(f"{_PLAIN_ROLES.get(m['role'], m['role'].title())}: {m['content']}\n" for m in prompt) + "Answer:"
        )
        ids, spaces = start_of_text(tokenizer) + plain_ids(tokenizer, text), " "
    else:
        ids, spaces = template_ids(tokenizer, prompt)
    return Opening(ids, spaces, turn_end(tokenizer))


def answer_ids(tokenizer: PreTrainedTokenizerBase, read: Opening, answer: str) -> list[int]:
    """Token ids of an answer behind a prompt that was read."""
    return [*next_ids(tokenizer, read.spaces + answer), *read.closing]


_PLAIN_ROLES = {"system": "Instruction", "user": "Question", "assistant": "Answer"}
