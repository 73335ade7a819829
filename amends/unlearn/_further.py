"""Answers that are put behind prompts beside those to forget: templates, unrelated ones, alternates."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from amends.lm.pairs import Opening, Pair, answer_ids, opening


class FurtherAnswers:
    """Token ids of further answers to pairs; prompts and answers are read once, however often they are drawn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> None:
        self.tokenizer, self.pairs = tokenizer, pairs
        self._openings: dict[int, Opening] = {}
        self._ids: dict[tuple[str, tuple[int, ...], str], list[int]] = {}

    def ids(self, index: int, text: str) -> list[int]:
        """Token ids of an answer to the pair of that number; after plain text it begins with a space."""
        prompt = self.pairs[index].prompt
        if index not in self._openings:
            self._openings[index] = opening(self.tokenizer, prompt)
        read = self._openings[index]
        if isinstance(prompt, str) and not prompt[-1:].isspace() and not text[:1].isspace():
            text = f" {text}"
        key = read.spaces, tuple(read.closing), text
        if key not in self._ids:
            self._ids[key] = answer_ids(self.tokenizer, read, text)
        return self._ids[key]
