"""Two samples become one: a language model writes, rules check, and what breaks one is written again.

The two cycles, first the instruction and then the answer, each with checks and repairs, are those that the public
reviews of ENTP (arXiv 2510.23160) describe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from amends.curate._drafts import PARTS, Draft, Mixing
from amends.curate._fusion_prompts import (
    conversation,
    first_prompt,
    read_domain,
    read_part,
    read_plain,
    read_yes_or_no,
    repair_prompt,
    task_of,
)
from amends.curate._fusion_rules import RULES, Checker, Loss, Part, badness, can_be_repaired, hard_of
from amends.lm.chat import Chat, Counts, Replies, ask
from amends.lm.pairs import Message

VERSION = "entp-1"
"""Of the prompts; answers to others are not the same thing."""
_CHARACTERS_A_TOKEN = 4


@dataclass
class Writer:
    """A model that is asked, and what asking came to."""

    chat: Chat
    how: Mixing
    seed: int = 0
    counts: Counts = field(default_factory=Counts)

    def ask(self, drafts: Sequence[Draft], about: str, conversations: list[list[Message]], parse: Any) -> Replies[Any]:
        """Ask one thing for each draft."""
        for draft in drafts:
            draft.asked[about] += 1
        replies = ask(
            self.chat,
            conversations,
            parse,
            version=VERSION,
            attempts=1,
            max_new_tokens=self.how.max_new_tokens,
            temperature=self.how.temperature,
            seed=self.seed,
            label=about,
        )
        self.counts += replies.counts
        return replies


def ask_domains(drafts: Sequence[Draft], writer: Writer) -> None:
    """Ask what the samples of each open draft are about, and whether they go together (DA).

    An answer that cannot be read is asked for once more; then the draft is rejected. Samples of the control one2one are
    asked for too, as their calls are to be the same, but a single sample goes together with itself.
    """
    left = [draft for draft in drafts if draft.status == "open"]
    prompts = [conversation(task_of("domain", draft), draft) for draft in left]
    plain = writer.how.form == "plain"
    for is_last in (False, True):
        if not left:
            return
        replies, again, second = writer.ask(left, "domain", prompts, read_yes_or_no if plain else read_domain), [], []
        for draft, value, text, reason in zip(left, replies.values, replies.texts, replies.reasons, strict=True):
            if value is not None:
                draft.domain = value
                if not value["compatible"] and len(draft.samples) > 1:
                    draft.status, draft.reason = "incompatible", value["reason"] or "no reason given"
            elif is_last or text is None:
                draft.status, draft.reason = "rejected", f"domain: {reason}"
            else:
                again.append(draft)
                wrong = "It was not one word." if plain else RULES["format"].repair
                task = f'Your last answer stands in "last". {wrong} {task_of("domain", draft)}'
                second.append(conversation(task, draft, last=text))
        left, prompts = again, second


def cycle(part: Part, drafts: Sequence[Draft], writer: Writer, checker: Checker, own: Sequence[set[int]]) -> None:
    """Have a part of all open drafts written, checked and repaired; the best candidate of each stays.

    Parameters
    ----------
    own : list of sets
        Of each draft the places of its sources in `checker.instructions`.
    """
    left = [i for i, draft in enumerate(drafts) if draft.status == "open"]
    prompts = [first_prompt(part, drafts[i]) for i in left]
    tried: dict[int, list[tuple[str, Loss]]] = {i: [] for i in left}
    started, now = left, dict[int, str]()
    for _ in range(writer.how.repairs + 1):
        if not left:
            break
        read = read_plain if writer.how.form == "plain" else read_part(part)
        replies = writer.ask([drafts[i] for i in left], part, prompts, read)
        answers = dict(zip(left, zip(replies.values, replies.texts, replies.reasons, strict=True), strict=True))
        now |= {i: value or "" for i, (value, _, _) in answers.items()}
        twins = dict[int, str | None]()
        if part == "instruction":
            found = checker.instructions.twins([now[i] for i in started], [own[i] for i in started])
            twins = dict(zip(started, found, strict=True))
        again, prompts = [], []
        for i, (value, text, reason) in answers.items():
            loss = _loss(part, drafts[i], checker, value, text, reason, twins.get(i))
            tried[i].append((value or "", loss))
            if can_be_repaired(loss):
                again.append(i)
                prompts.append(repair_prompt(part, drafts[i], value or text or "", loss))
        left = again
    for i, candidates in tried.items():
        _settle(part, drafts[i], candidates, unchecked=writer.how.control == "unchecked")


def _loss(
    part: Part,
    draft: Draft,
    checker: Checker,
    value: str | None,
    text: str | None,
    reason: str | None,
    twin: str | None,
) -> Loss:
    if text is None:
        return {"no_answer": [str(reason)]}
    if value is None:
        return {"format": [str(reason)]}
    instruction = draft.texts["instruction"] if part == "response" else None
    loss = checker.loss(part, value, draft.samples, draft.keep[part], instruction)
    if twin is not None:
        loss["duplicate"] = [twin]
    if draft.evolves:
        loss.pop("long", None)  # harder is longer
    return {name: loss[name] for name in RULES if name in loss}


def _settle(part: Part, draft: Draft, candidates: Sequence[tuple[str, Loss]], *, unchecked: bool) -> None:
    """Keep the candidate that breaks the fewest hard rules, then the fewest soft ones, the first of equal ones."""
    text, loss = min(candidates, key=lambda candidate: badness(candidate[1]))
    draft.texts[part], draft.losses[part], draft.history[part] = text, loss, [each for _, each in candidates]
    broken = [name for name in hard_of(loss) if not unchecked or not text or name == "contaminated"]
    if broken:
        draft.status, draft.reason = "rejected", f"{part}: {', '.join(broken)}"
    elif part == "response":
        draft.status = "accepted"


def fuse(
    drafts: Sequence[Draft],
    writer: Writer,
    checker: Checker,
    own: Callable[[Draft], set[int]],
    pair_again: Callable[[Sequence[Draft]], None] | None = None,
) -> None:
    """Take all drafts to their end, each step for all of them together.

    A draft that gets through costs 1 + 1 + n_q + 1 + n_a conversations: its domain, its instruction with n_q repairs,
    its response with n_a; and one more for a domain that could not be read, or after it was paired again.

    Parameters
    ----------
    own : function
        Places of a draft's sources in `checker.instructions`.
    pair_again : function, optional
        Exchange samples among incompatible drafts, and open those that may be tried once more.
    """
    ask_domains(drafts, writer)
    if pair_again and (unfit := [draft for draft in drafts if draft.status == "incompatible"]):
        pair_again(unfit)
        ask_domains(unfit, writer)
    places = [own(draft) for draft in drafts]
    for part in PARTS:
        cycle(part, drafts, writer, checker, places)


def estimate(drafts: Sequence[Draft], how: Mixing) -> dict[str, int]:
    """Say what fusing would take, without a judge: conversations and tokens, at least (nothing to repair) and at most.

    Tokens are characters / 4, read and written; at most `max_new_tokens` are written each time, and an instruction is
    supposed to be as long as those of its samples.
    """
    least = most = 0
    for draft in drafts:
        asked = " ".join(sample.instruction for sample in draft.samples)
        prompts = [conversation(task_of("domain", draft), draft), first_prompt("instruction", draft)]
        draft_with = replace(draft, texts={"instruction": asked})
        prompts.append(first_prompt("response", draft_with))
        read = [sum(len(message["content"]) for message in prompt) // _CHARACTERS_A_TOKEN for prompt in prompts]
        said = sum(len(sample.response) for sample in draft.samples) // _CHARACTERS_A_TOKEN
        least += sum(read) + len(asked) // _CHARACTERS_A_TOKEN + min(said, how.max_new_tokens)
        domain, instruction, response = (tokens + how.max_new_tokens for tokens in read)
        again = how.max_new_tokens  # the last candidate, in the prompt
        most += 4 * domain + (1 + how.repairs) * (instruction + response) + 2 * how.repairs * again
    return {
        "pairs": len(drafts),
        "least_conversations": 3 * len(drafts),
        "most_conversations": (4 + 2 * (1 + how.repairs)) * len(drafts),
        "least_tokens": least,
        "most_tokens": most,
    }
