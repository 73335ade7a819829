"""Two samples become one: a language model writes, rules check, and what breaks one is written again.

The two cycles, first the instruction and then the answer, each with checks and repairs, are those that the public
reviews of ENTP (arXiv 2510.23160) describe.

In parts (`_pools.scale`): who asks for a draft checks what was answered, too. What is merged: which samples are
paired again, and which instructions are twins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from amends.curate._entp.drafts import PARTS, Draft, Mixing
from amends.curate._entp.prompts import (
    conversation,
    first_prompt,
    read_domain,
    read_part,
    read_plain,
    read_yes_or_no,
    repair_prompt,
    task_of,
)
from amends.curate._entp.rules import RULES, Checker, Loss, Part, badness, can_be_repaired, hard_of
from amends.curate._pools.scale import Here, Workers, merged, shares_of
from amends.lm.chat import Chat, Counts, ask
from amends.lm.pairs import Message

VERSION = "entp-1"
"""Of the prompts; answers to others are not the same thing."""
_CHARACTERS_A_TOKEN = 4


class Said(NamedTuple):
    """What was answered for some drafts; that of other drafts is added."""

    values: list[Any]
    texts: list[str | None]
    reasons: list[str | None]
    """As in `amends.lm.chat.Replies`."""
    losses: list[Loss]
    """Rules that each answer breaks, all but "duplicate"; empty where nothing was checked."""
    counts: Counts

    def __add__(self, other: Any) -> "Said":
        """Put the others behind."""
        return Said(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass
class Writer:
    """A model that is asked, and what asking came to.

    Each of the workers asks for drafts of its own; a function in place of the chat opens it where they are.
    """

    chat: Chat | Callable[[], Chat]
    how: Mixing
    seed: int = 0
    counts: Counts = field(default_factory=Counts)
    workers: Workers = field(default_factory=Here)

    def ask(
        self,
        drafts: Sequence[Draft],
        about: str,
        conversations: list[list[Message]],
        parse: Any,
        checker: Checker | None = None,
    ) -> Said:
        """Ask one thing for each draft; with a checker, say which rules each answer breaks."""
        for draft in drafts:
            draft.asked[about] += 1
        parts = (shares_of(of, self.workers.num_parts) for of in (drafts, conversations))
        checks = None if checker is None else replace(checker, instructions=None)
        shared = [self.workers.share(of) for of in (self.chat, checks)]
        said = merged(
            self.workers, self.workers.each(_said, *parts, shared=[about, parse, *shared, self.how, self.seed])
        )
        self.counts += said.counts
        found: Said = said
        return found


def _said(
    drafts: Sequence[Draft],
    conversations: list[list[Message]],
    about: str,
    parse: Any,
    chat: Chat | Callable[[], Chat],
    checker: Checker | None,
    how: Mixing,
    seed: int,
) -> Said:
    """Local: ask for some drafts, and check what is answered."""
    replies = ask(
        chat if isinstance(chat, Chat) else chat(),
        conversations,
        parse,
        version=VERSION,
        attempts=1,
        max_new_tokens=how.max_new_tokens,
        temperature=how.temperature,
        seed=seed,
        label=about,
    )
    told = list(zip(replies.values, replies.texts, replies.reasons, replies.cut, strict=True))
    losses = [] if checker is None else [_loss(about, d, checker, *of) for d, of in zip(drafts, told, strict=True)]
    return Said(replies.values, replies.texts, replies.reasons, losses, replies.counts)


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
        said = writer.ask([drafts[i] for i in left], part, prompts, read, checker)
        answers = dict(zip(left, zip(said.values, said.texts, said.losses, strict=True), strict=True))
        now |= {i: value or "" for i, (value, _, _) in answers.items()}
        twins = dict[int, str | None]()
        if part == "instruction" and checker.instructions is not None:
            found = checker.instructions.twins([now[i] for i in started], [own[i] for i in started])
            twins = dict(zip(started, found, strict=True))
        again, prompts = [], []
        for i, (value, text, loss) in answers.items():
            if value is not None and (twin := twins.get(i)) is not None:
                loss["duplicate"] = [twin]
            loss = {name: loss[name] for name in RULES if name in loss}
            tried[i].append((value or "", loss))
            if can_be_repaired(loss):
                again.append(i)
                prompts.append(repair_prompt(part, drafts[i], value or text or "", loss))
        left = again
    for i, candidates in tried.items():
        _settle(part, drafts[i], candidates, unchecked=writer.how.control == "unchecked")


def _loss(
    part: Any, draft: Draft, checker: Checker, value: str | None, text: str | None, reason: str | None, cut: bool
) -> Loss:
    if text is None:
        return {"no_answer": [str(reason)]}
    if value is None:
        return {"format": [str(reason)]}
    instruction = draft.texts["instruction"] if part == "response" else None
    loss = checker.loss(part, value, draft.samples, draft.keep[part], instruction)
    if draft.evolves:
        loss.pop("long", None)  # harder is longer
    if cut and draft.form == "plain":  # of an answer in JSON the whole object was read
        loss["truncated"] = [value[-40:]]
    return loss


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


def estimate(
    drafts: Sequence[Draft], how: Mixing, graded: Callable[[Draft], list[Message]] | None = None
) -> dict[str, int]:
    """Say what fusing would take: conversations and tokens, if every pair passes at once and at most.

    Tokens are characters / 4, read and written; at most `max_new_tokens` are written each time, and an instruction is
    supposed to be as long as those of its samples.

    Parameters
    ----------
    graded : function, optional
        What a judge is asked about a draft. It is asked about what is accepted: once a pair, or never.
    """
    at_once = most = 0
    for draft in drafts:
        asked = " ".join(sample.instruction for sample in draft.samples)
        prompts = [conversation(task_of("domain", draft), draft), first_prompt("instruction", draft)]
        draft_with = replace(draft, texts={"instruction": asked})
        prompts.append(first_prompt("response", draft_with))
        read = [sum(len(message["content"]) for message in prompt) // _CHARACTERS_A_TOKEN for prompt in prompts]
        said = sum(len(sample.response) for sample in draft.samples) // _CHARACTERS_A_TOKEN
        at_once += sum(read) + len(asked) // _CHARACTERS_A_TOKEN + min(said, how.max_new_tokens)
        domain, instruction, response = (tokens + how.max_new_tokens for tokens in read)
        again = how.max_new_tokens  # the last candidate, in the prompt
        most += 4 * domain + (1 + how.repairs) * (instruction + response) + 2 * how.repairs * again
    told = {
        "pairs": len(drafts),
        "conversations_if_all_pass_at_once": 3 * len(drafts),
        "most_conversations": (4 + 2 * (1 + how.repairs)) * len(drafts),
        "tokens_if_all_pass_at_once": at_once,
        "most_tokens": most,
    }
    if graded is not None:
        read = [len(message["content"]) for draft in drafts for message in graded(draft)]
        told["most_conversations_of_the_judge"] = len(drafts)
        told["most_tokens_of_the_judge"] = sum(read) // _CHARACTERS_A_TOKEN + 3 * how.max_new_tokens * len(drafts)
    return told
