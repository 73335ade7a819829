"""A language model grades what was fused: beside the rules, which see words and not sense.

Reviews of ENTP (arXiv 2510.23160) name an operator ICD and do not say what it is; that a judge is asked, what for, and
the scale are [design], choices of this tool.
"""

from collections.abc import Sequence

from amends.curate._entp.drafts import Draft
from amends.curate._entp.fusion import Writer
from amends.curate._entp.prompts import conversation
from amends.lm.chat import json_object
from amends.lm.pairs import Message

LOWEST, HIGHEST = 1, 5
_TASK = (
    'Grade "instruction" and "response" as training data, from 1 (wrong or of no use) to 5 (clear, right and '
    "complete). The samples are what they were made of. "
)
_FORMS = {"json": 'Answer {"grade": NUMBER, "reason": TEXT}.', "plain": "Answer with one digit."}


def grade_prompt(draft: Draft) -> list[Message]:
    """Ask for the grade of a draft that has both texts."""
    return conversation(_TASK + _FORMS[draft.form], draft, **draft.texts)


def read_grade(answer: str) -> int:
    """Read a whole grade from the JSON object that was asked for.

    Raises
    ------
    ValueError : no such object, or no whole number from 1 to 5.
    """
    grade = json_object(answer).get("grade")
    if isinstance(grade, bool) or not isinstance(grade, int) or not LOWEST <= grade <= HIGHEST:
        raise ValueError(f'"grade" is {str(grade)[:40]!r}, no whole number from {LOWEST} to {HIGHEST}')
    return grade


def read_digit(answer: str) -> int:
    """Read a grade that stands alone.

    Raises
    ------
    ValueError : anything but one digit from 1 to 5.
    """
    word = answer.strip().rstrip(".")
    if word not in {str(grade) for grade in range(LOWEST, HIGHEST + 1)}:
        raise ValueError(f"expected one digit from {LOWEST} to {HIGHEST}, not {answer.strip()[:40]!r}")
    return int(word)


def judge(drafts: Sequence[Draft], writer: Writer) -> None:
    """Grade the accepted drafts; one below the least grade is rejected, one whose grade cannot be read stays.

    Parameters
    ----------
    writer : Writer
        With the model that judges; its `how.least_grade` rejects, None never does.
    """
    accepted = [draft for draft in drafts if draft.status == "accepted"]
    if not accepted:
        return
    read = read_digit if writer.how.form == "plain" else read_grade
    replies = writer.ask(accepted, "grade", [grade_prompt(draft) for draft in accepted], read)
    least = writer.how.least_grade
    for draft, grade, reason in zip(accepted, replies.values, replies.reasons, strict=True):
        draft.grade, draft.no_grade = grade, None if grade is not None else str(reason)
        if grade is not None and least is not None and grade < least:
            draft.status, draft.reason = "rejected", f"judge: grade {grade} of {HIGHEST}, below {least}"
