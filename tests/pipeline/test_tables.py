"""Tables and units for people."""

import io

import pytest

from pipeline.progress import duration, progress_bar
from pipeline.tables import human_bytes, text_table


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1020, "1.02 kB"), (42.5e12, "42.5 TB"), (7.4e18, "7.4e+03 PB")],
)
def test_bytes_have_three_digits_and_decimal_units(count, text):
    assert human_bytes(count) == text


def test_numbers_stand_to_the_right_and_words_to_the_left():
    table = text_table([{"name": "a", "count": 5}, {"name": "longer", "count": 12345}])
    assert table.splitlines() == ["name     count", "------  ------", "a            5", "longer  12,345"]


def test_a_table_too_wide_for_the_screen_goes_on_below_under_its_first_column():
    rows = [{"name": "a", "count": 5, "note": "x" * 8}, {"name": "b", "count": 12, "note": "y"}]
    lines = text_table(rows, width=14).splitlines()
    assert lines[0].split() == ["name", "count"]
    assert lines[5].split() == ["name", "note"]
    assert lines[7].split() == ["a", "x" * 8]
    assert max(map(len, lines)) <= 14
    assert text_table(rows, width=100) == text_table(rows)


def test_no_rows_make_no_table():
    assert text_table([]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, "42 s"), (200, "3 min 20 s"), (18600, "5 h 10 min"), (1.05e6, "12 d 3 h")]
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_progress_off_a_terminal_is_a_plain_last_line():
    stream = io.StringIO()
    with progress_bar("images", stream=stream) as update:
        for done in range(1, 1001):
            update(done, 1000)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("1,000 of 1,000 images")
