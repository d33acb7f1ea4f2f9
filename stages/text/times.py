"""Times of events, however they are written, as seconds since 1970."""

import math
import re
from datetime import UTC, datetime
from typing import Any, Literal

from stages.text.votes import plain_scalar

DateOrder = Literal["day_first", "month_first"]

_LATEST = 4_102_444_800
"""The year 2100; what is later is no time of an event."""
_CLOCK = re.compile(
    r"(?:,?[\sT]+(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.\d+)?)?(?:\s?(?P<half>[ap])\.?m\.?)?)?"
    r"\s*(?P<zone>Z|(?:UTC|GMT)?[+-]\d\d:?\d\d|UTC|GMT)?(?:\s\(.*\))?",
    re.IGNORECASE,
)
_TWO_NUMBERS = re.compile(r"(?P<first>\d{1,2})(?P<sign>[./-])(?P<other>\d{1,2})(?P=sign)(?P<year>\d{4}|\d\d)(?!\d)")
_DATES = (
    re.compile(r"(?P<year>\d{4})[./-](?P<month>\d{1,2})[./-](?P<day>\d{1,2})(?!\d)"),
    re.compile(r"(?:[A-Za-z]{3,9},?\s)?(?P<day>\d{1,2})\.?[\s-](?P<month>[A-Za-z]{3,9})\.?[\s-](?P<year>\d{4})(?!\d)"),
    re.compile(r"(?:[A-Za-z]{3,9},?\s)?(?P<month>[A-Za-z]{3,9})\.?\s(?P<day>\d{1,2}),?\s(?P<year>\d{4})(?!\d)"),
)
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)


class Times:
    """Reads the times of a log.

    Args:
        order: what the first number is of dates such as 02.03.2025; None finds it out from those that `note` is given.
    """

    def __init__(self, order: DateOrder | None = None) -> None:
        self._order = order
        self._seen: set[DateOrder] = set()
        self._has_zoned = self._has_local = False

    def note(self, time: Any) -> None:
        """Take in a time whose day is over 12, which tells how others are written."""
        if isinstance(time, str) and (found := _TWO_NUMBERS.match(time.strip())):
            first, other = int(found["first"]), int(found["other"])
            if (first > 12) != (other > 12):
                self._seen.add("day_first" if first > 12 else "month_first")

    def seconds(self, time: Any) -> float | None:
        """A time as seconds since 1970; None if it can't be read. Times without a zone are taken as UTC."""
        time = plain_scalar(time)
        if isinstance(time, str):
            text = time.strip()
            found = _from_iso(text)
            number = _number(text) if found is None else None
            time = (found or self._from_words(text)) if number is None else number
        if isinstance(time, datetime):
            self._has_zoned |= time.tzinfo is not None
            self._has_local |= time.tzinfo is None
            time = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
            return time if time < _LATEST else None
        if isinstance(time, bool) or not isinstance(time, int | float) or not math.isfinite(time):
            return None
        if 19_700_101 <= time <= 21_000_101 and (day := _from_iso(f"{time:.0f}")) is not None:
            return day.replace(tzinfo=UTC).timestamp()
        # Milliseconds and finer, told apart by their size.
        while abs(time) > 1e11:
            time /= 1000
        return float(time) if time < _LATEST else None

    def why_unread(self, time: Any) -> str:
        """What may be wrong with a time that can't be read, for a message; empty where nothing is known."""
        found = _TWO_NUMBERS.match(str(time).strip())
        if found is None or self._date_order() is not None:
            return ""
        other = " and the log has dates of both kinds" if self._seen else ""
        return f" (day first or month first?{other} ingestion.date_order: day_first or month_first says it)"

    def sentences(self) -> list[str]:
        """What was taken for granted."""
        said = []
        if self._order is None and len(self._seen) == 1:
            order = next(iter(self._seen))
            said.append(f"dates are read {order.replace('_', ' ')}; date_order: {order} says so")
        if self._has_local and self._has_zoned:
            said.append("times without a zone, which stand beside others that have one, are taken as UTC")
        return said

    def _date_order(self) -> DateOrder | None:
        return self._order or (next(iter(self._seen)) if len(self._seen) == 1 else None)

    def _from_words(self, text: str) -> datetime | None:
        """Dates that aren't written as ISO 8601 has them."""
        found = next((match for form in (_TWO_NUMBERS, *_DATES) if (match := form.match(text))), None)
        clock = _CLOCK.fullmatch(text[found.end() :]) if found else None
        if found is None or clock is None:
            return None
        day = self._day(found)
        zone = (clock["zone"] or "").upper().removeprefix("UTC").removeprefix("GMT")
        hour, half = int(clock["hour"] or 0), (clock["half"] or "").lower()
        if day is None or (half and not 1 <= hour <= 12):
            return None
        hour = hour % 12 + 12 * (half == "p") if half else hour
        zone = zone or ("Z" if clock["zone"] else "")
        return _from_iso(f"{day}T{hour:02}:{clock['minute'] or '00'}:{clock['second'] or '00'}{zone}")

    def _day(self, found: re.Match[str]) -> str | None:
        parts = found.groupdict()
        if "first" not in parts:
            month = parts["month"].casefold()
            known = [i for i, name in enumerate(_MONTHS, 1) if name.startswith(month) or month == "sept" == name[:4]]
            number = int(month) if month.isdigit() else known[0] if len(known) == 1 else 0
            return f"{int(parts['year']):04}-{number:02}-{int(parts['day']):02}"
        first, other, order = int(parts["first"]), int(parts["other"]), self._date_order()
        if order is None and first != other:
            return None
        day, month_number = (other, first) if order == "month_first" else (first, other)
        year = int(parts["year"]) + 2000 * (len(parts["year"]) == 2)
        return f"{year:04}-{month_number:02}-{day:02}"


def _from_iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
