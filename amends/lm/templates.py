"""Texts as token ids, by themselves and inside a chat template; and the token that closes a model's turn.

A text is always read as text: no control token's name in it ever becomes that token.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import jinja2
from transformers import PreTrainedTokenizerBase

from amends.io.errors import InputError

Messages = Sequence[Mapping[str, str]]


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text in which nothing is a control token.

    That means no special token, and no other added token in brackets (`<think>`, `</tool_call>`, `[IMG]`). Added tokens
    that are words or white space are how the model reads plain text, so they stay.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not any(bracket in unicodedata.normalize("NFKC", text) for bracket in "<[{"):
        return ids
    controls = {i for token, i in tokenizer.get_added_vocab().items() if _BRACKETS.fullmatch(token)}
    if controls.isdisjoint(ids):
        return ids
    # The tokenizer splits special tokens only. Cut through the middle of the others, and what is left of them is text.
    found = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    spans = [span for i, span in zip(ids, found["offset_mapping"], strict=True) if i in controls]
    cuts = [0, *((start + end) // 2 for start, end in spans if end - start > 1), len(text)]
    first, *others = (text[start:end] for start, end in pairwise(cuts))
    return (
        [*plain_ids(tokenizer, first), *(i for piece in others for i in next_ids(tokenizer, piece))] if others else ids
    )


def next_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that goes on from another: a space that the tokenizer would put before it is not there."""
    if text.startswith(" ") and puts_space(tokenizer):
        return plain_ids(tokenizer, text[1:])  # there is one
    return _going_on(tokenizer, text, partial(plain_ids, tokenizer))


def puts_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space before every text (Llama 2, Mistral, and others made with SentencePiece)."""
    return _begins_with_space(tokenizer, plain_ids(tokenizer, "a")[0])


def _begins_with_space(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    return str(tokenizer.convert_ids_to_tokens(token)).startswith("\u2581")


def _going_on(tokenizer: PreTrainedTokenizerBase, text: str, read: Callable[[str], list[int]]) -> list[int]:
    """Read a text behind the end of a line, of which no token reaches into it."""
    if not puts_space(tokenizer):
        return read(text)
    line, both = read("\n"), read(f"\n{text}")
    return both[len(line) :] if both[: len(line)] == line else read(text)


def template_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[list[int], str]:
    """Token ids of what the model reads before it answers, and the spaces that its template has before an answer.

    Those are the answer's: read as a whole, a conversation has them in the answer's first token. Texts that hold a
    control token's name are put into the template afterwards, as text.

    Raises
    ------
    InputError : the chat template does not take the messages, or does not keep their texts.
    """
    asked = _asked(tokenizer, messages)
    contents = [_kept(asked, message) for message in messages]
    named = [_folded(token) for token in tokenizer.get_added_vocab() if token]
    parts = [asked]
    if any(token in _folded(content) for content in contents for token in named):
        marks = [{"role": m["role"], "content": _MARK.format(i)} for i, m in enumerate(messages)]
        parts = _MARKS.split(_asked(tokenizer, marks))  # template, number of a text, template, ..., template
        for i, message in enumerate(messages):
            if str(i) not in parts[1::2]:
                raise _not_kept(message)
    ids, spaces = [], ""
    for place, part in enumerate(parts):
        if place % 2:
            ids += next_ids(tokenizer, spaces + contents[int(part)])
            continue
        text = part.rstrip(" ")
        here = _control_ids(tokenizer, text, goes_on=place > 0)
        ids += here
        spaces = part[len(text) :]
        if not spaces and puts_space(tokenizer):
            further = _control_ids(tokenizer, f"{text}a", goes_on=place > 0)
            if further[: len(here)] == here and _begins_with_space(tokenizer, further[len(here)]):
                spaces = " "  # it puts one behind a special token, too
    return ids, spaces


def _control_ids(tokenizer: PreTrainedTokenizerBase, text: str, goes_on: bool) -> list[int]:
    """Token ids of a piece of a template, with its control tokens."""

    def read(piece: str) -> list[int]:
        ids: list[int] = tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    return _going_on(tokenizer, text, read) if goes_on else read(text)


def _asked(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """Render what stands before an answer that was given without a thought.

    That is what the template writes before an answer in a whole conversation: an empty thought (Qwen3), or the channel
    (gpt-oss), where the prompt it asks with leaves either to the model. What it asks with is taken where it says as
    much, or more (Mistral tells the system's message there alone). If it opens a thought there (DeepSeek-R1), this is
    closed, empty, as that model does by itself where it does not think (https://github.com/deepseek-ai/DeepSeek-R1,
    usage recommendations).
    """
    asked = _render(tokenizer, messages, add_generation_prompt=True)
    before, mark, _ = _render(tokenizer, [*messages, {"role": "assistant", "content": _ANSWER}]).partition(_ANSWER)
    more = asked.startswith(before) or any(_stands(m, asked) and not _stands(m, before) for m in messages)
    text = before if mark and not more else asked
    opened = _OPENED.search(text)
    return f"{text.rstrip()}\n\n</{opened[1]}>\n\n" if opened else text


def _kept(asked: str, message: Mapping[str, str]) -> str:
    """Give what the template keeps of a message: all of it, or, of an earlier answer, what comes after the thought."""
    content = message["content"]
    if _stands(message, asked):
        return content
    said = content.rpartition("</think>")[2].strip()
    if message["role"] != "assistant" or said not in asked:
        raise _not_kept(message)
    return said


def _stands(message: Mapping[str, str], text: str) -> bool:
    content = message["content"]
    return content.strip() in text or json.dumps(content, ensure_ascii=False)[1:-1] in text  # JSON: what a tool gave


def _not_kept(message: Mapping[str, str]) -> InputError:
    return InputError(
        f"The model's chat template drops or changes a message ({message['role']}: {message['content'][:60]!r}). Leave "
        "it out of the data, or say it in the question."
    )


def _folded(text: str) -> str:
    """Text after the normalisations that a tokenizer may make before it looks for added tokens."""
    return unicodedata.normalize("NFKC", text).casefold()


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = False) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                enable_thinking=False,
            )
        )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:  # what a model's template may raise
        raise InputError(f"The model's chat template does not take this conversation: {error}") from error


def turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Find the token that closes the model's turn: the template's, which need not be the tokenizer's EOS (Gemma)."""
    if tokenizer.chat_template is None:
        return end_of_text(tokenizer)
    rendered = _render(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}])
    ids = tokenizer(rendered.partition(_ANSWER)[2].lstrip(), add_special_tokens=False)["input_ids"]
    return ids[:1] if ids and ids[0] in tokenizer.get_added_vocab().values() else end_of_text(tokenizer)


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Give the tokenizer's EOS, if it has one."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def start_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Give the tokenizer's BOS, if it puts one before a text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][0] == bos else []


_BRACKETS = re.compile(r"\s*(<.+>|\[.+\]|\{.+\})\s*", re.DOTALL)
_MARK = "\u241eamends-text-{}\u241e"
_MARKS = re.compile(_MARK.format("([0-9]+)"))
_ANSWER = _MARK.format("answer")
_OPENED = re.compile(r"<(think|thinking|thought|reasoning)>\s*$")
