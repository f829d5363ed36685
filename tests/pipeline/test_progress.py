"""Progress: a rate that tells of the work alone."""

import io

import pytest
from rich.progress import Progress, TextColumn

from pipeline import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, set by the test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def set_to(seconds):
        now[0] = seconds

    return set_to


def test_lines_count_neither_the_start_nor_what_an_earlier_run_did(clock):
    out = io.StringIO()
    with progress.progress_bar("steps", stream=out) as update:
        clock(40)  # teachers are loaded, readers started
        update(700, 1000)
        clock(60)
        update(740, 1000, "loss 2.0")
        clock(65)
        update(750, 1000)
        clock(190)
        update(1000, 1000)
    assert out.getvalue().splitlines() == [
        "700 of 1,000 steps",
        "740 of 1,000 steps, 2.0/s, 2 min 10 s left, loss 2.0",
        "1,000 of 1,000 steps, 2.0/s",
    ]


def test_work_of_one_report_has_a_rate(clock):
    out = io.StringIO()
    with progress.progress_bar("images", stream=out) as update:
        clock(2)
        update(6, 6)
    assert out.getvalue() == "6 of 6 images, 3.0/s\n"


def test_what_was_over_at_once_has_no_rate(clock):
    out = io.StringIO()
    with progress.progress_bar("images", stream=out) as update:
        clock(20)
        update(5, 6)
        clock(20.001)
        update(6, 6)
        update(6, 6)
    assert out.getvalue().splitlines() == ["5 of 6 images", "6 of 6 images"]  # the end once


def test_what_is_counted_next_has_a_rate_of_its_own(clock):
    out = io.StringIO()
    with progress.progress_bar("images", stream=out) as update:
        clock(10)
        update(100, 250, "indexing")
        clock(20)
        update(250, 250, "indexing")
        clock(90)
        update(16, 250)
        clock(100)
        update(36, 250)
    assert out.getvalue().splitlines()[2:] == ["16 of 250 images", "36 of 250 images, 2.0/s, 1 min 47 s left"]


def test_the_bar_says_the_same(clock):
    bar = Progress(TextColumn("{task.description}"), disable=True)
    update = progress._Bar("steps", bar)
    clock(40)
    update(1, 100)
    assert bar.tasks[0].fields == {"rate": "", "left": "", "note": ""}
    clock(44)
    update(9, 100, "x")
    assert bar.tasks[0].fields == {"rate": "2.0 steps/s", "left": "46 s left", "note": "x"}
