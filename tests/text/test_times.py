"""Times of events, however stores write them."""

from datetime import UTC, datetime

import pytest

from stages.text.times import Times

MARCH_2 = 1_740_873_600.0  # 2025-03-02T00:00:00Z


def test_march_2_is_what_the_calendar_says():
    assert datetime(2025, 3, 2, tzinfo=UTC).timestamp() == MARCH_2


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("2025-03-02", 0),
        ("20250302", 0),
        (20250302, 0),
        ("2025-03-02T10:00:00Z", 10),
        ("2025-03-02T10:00:00+02:00", 8),
        ("2025-03-02 10:00:00 UTC", 10),
        ("2025/03/02 10:00", 10),
        ("2025.3.2 10:00", 10),
        ("Sun, 02 Mar 2025 10:00:00 GMT", 10),
        ("Sun, 2 Mar 2025 10:00:00 +0100", 9),
        ("Sun Mar 02 2025 10:00:00 GMT+0100 (Central European Standard Time)", 9),
        ("Mar 2, 2025", 0),
        ("March 2, 2025, 1:30 PM", 13.5),
        ("2 March 2025 12:00 am", 0),
        ("02-Mar-2025 12:15 PM", 12.25),
        (1_740_873_600, 0),
        ("1740873600", 0),
        (1_740_873_600_000, 0),
        (1_740_873_600_000_000, 0),
        (1_740_873_600_000_000_000, 0),
        (datetime(2025, 3, 2, 10, tzinfo=UTC), 10),
    ],
)
def test_times_are_seconds_however_they_are_written(text, hours):
    assert Times().seconds(text) == MARCH_2 + 3600 * hours


@pytest.mark.parametrize(
    "value",
    [
        "inf",
        float("nan"),
        "1e400",
        True,
        "soon",
        "10:00",
        "2125-01-01",
        5e9,
        "2025-03-02 10:00 PST",
        "Foo 2, 2025",
        None,
    ],
)
def test_what_is_no_time_is_none(value):
    assert Times().seconds(value) is None
    assert Times().why_unread(value) == ""


def test_small_numbers_are_taken_as_they_are():
    assert [Times().seconds(value) for value in (0, "0", 7)] == [0, 0, 7]


@pytest.mark.parametrize("text", ["02.03.2025", "2/3/2025", "02-03-2025 10:00", "2/3/25"])
def test_a_day_over_twelve_says_which_number_is_the_day(text):
    times, day_first, month_first, both = Times(), Times(), Times(), Times()
    day_first.note("13.01.2025")
    month_first.note("1/13/2025 10:00")
    for value in ("13.01.2025", "1/13/2025"):
        both.note(value)

    assert times.seconds(text) is both.seconds(text) is None
    assert "day first or month first" in times.why_unread(text)
    assert "dates of both kinds" in both.why_unread(text)
    hour = 10 * 3600 * ("10:00" in text)
    assert day_first.seconds(text) == Times("day_first").seconds(text) == MARCH_2 + hour
    assert month_first.seconds(text) == Times("month_first").seconds(text) == MARCH_2 - 27 * 86400 + hour
    assert month_first.sentences() == ["dates are read month first; date_order: month_first says so"]
    assert Times("day_first").sentences() == []


def test_dates_that_read_alike_either_way_need_no_order():
    assert Times().seconds("03.03.2025") == MARCH_2 + 86400


def test_times_with_and_without_a_zone_are_said():
    times = Times()

    times.seconds("2025-03-02T10:00")
    assert times.sentences() == []
    times.seconds("2025-03-02T10:00Z")
    assert "taken as UTC" in times.sentences()[0]
