import io

import pytest
from rich.console import Console

from amends.io import progress as module
from amends.io.progress import bars, progress, track


@pytest.fixture
def log(monkeypatch):
    """What is written where there is no terminal, each time that a clock of one step a call stands at a full minute."""
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    lines = []
    monkeypatch.setattr(module, "say", lines.append)
    return lines


def test_without_a_terminal_a_line_a_minute_says_how_far_a_job_is(log):
    assert list(track("abcdefgh", "spelling")) == list("abcdefgh")
    assert log == ["spelling: 3 of 8", "spelling: 6 of 8"]  # 20 s an item, and to tell takes a look at the clock


def test_what_has_no_length_is_counted(log):
    assert list(track((x for x in "abcd"), "spelling")) == list("abcd")
    assert log == ["spelling: 3"]


def test_nothing_is_shown_where_nothing_is_wanted(log):
    assert list(track("abcdefgh", "spelling", shown=False)) == list("abcdefgh")
    assert log == []


def test_a_terminal_has_a_bar_and_labels_are_no_markup(monkeypatch, log):
    screen = Console(file=io.StringIO(), force_terminal=True, width=60)
    monkeypatch.setattr(module, "console", screen)
    with progress("[b]odd", 4) as advance:
        advance(2)
    assert "[b]odd" in screen.file.getvalue() and log == []


def test_without_a_terminal_bars_leave_no_trace(monkeypatch):
    log = Console(file=io.StringIO(), force_terminal=False)
    monkeypatch.setattr(module, "console", log)
    with bars() as bar:
        bar.update(bar.add_task("spelling", total=2), completed=1)
    assert log.file.getvalue() == ""
