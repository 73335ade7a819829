"""The sentence on top of an assessment's page."""

import pytest

from amends.report.assessment import in_short

KEPT = {"metric": "forget_rouge_l", "after": 0.3, "verdict": "pass"}
BROKEN = {"metric": "near_accuracy_drop", "after": 0.4, "verdict": "fail"}
NOT_JUDGED = {"metric": "mia_auc", "after": None, "verdict": None}
ASKED_FOR = {"metric": "relearn_excess", "after": None, "verdict": "fail"}
NAMED = "Fails too what was asked for by name and could not be measured: relearn_excess."


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ([KEPT], "All 1 limits are kept."),
        ([KEPT, BROKEN, NOT_JUDGED], "1 of 2 limits are broken: near_accuracy_drop. 1 could not be judged."),
        ([KEPT, ASKED_FOR], f"All 1 limits are kept. {NAMED}"),
        ([KEPT, BROKEN, ASKED_FOR], f"1 of 2 limits are broken: near_accuracy_drop. {NAMED}"),
        ([ASKED_FOR], f"No limit could be judged. {NAMED}"),
        ([NOT_JUDGED], "No limit could be judged."),
    ],
)
def test_a_limit_that_could_not_be_measured_is_not_called_broken(limits, told):
    assert in_short(limits) == told
