"""Times and durations between Python and the API: RFC 3339 text, and seconds."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Union

from .errors import PensumError, invalid

Time = Union[datetime, str]
"""A point in time as argument: an aware datetime, or RFC 3339 text."""

Duration = Union[timedelta, float, str]
"""A duration as argument: a timedelta, seconds, or text such as `1h 30m`."""

# `datetime.fromisoformat` reads neither `Z` nor more than six digits of a second before Python 3.11.
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))",
)


def parse_time(text: object) -> datetime:
    """An aware datetime of RFC 3339 text; digits beyond the microsecond are cut."""
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise PensumError(f"the server sent {text!r} where a time was expected; is it a Pensum server of this version?")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, zulu, sign, offset_hours, offset_minutes = match.groups()[6:]
    microsecond = int((fraction or "0")[:6].ljust(6, "0"))
    zone = timezone.utc
    if not zulu:
        offset = timedelta(hours=int(offset_hours), minutes=int(offset_minutes))
        zone = timezone(-offset if sign == "-" else offset)
    return datetime(year, month, day, hour, minute, second, microsecond, zone)


def parse_duration(seconds: object) -> timedelta:
    """A timedelta of seconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise PensumError(f"the server sent {seconds!r} where seconds were expected; is it a Pensum server?")
    return timedelta(seconds=seconds)


def time_text(value: object, path: str) -> str:
    """What the API takes for a point in time; text goes through as it is, for the server to judge."""
    if isinstance(value, str):
        return value
    if not isinstance(value, datetime):
        raise invalid(path, f"must be a datetime or RFC 3339 text, not {value!r}")
    if value.utcoffset() is None:
        raise invalid(path, "the datetime has no time zone; give it one, such as `datetime.now(timezone.utc)`")
    return value.isoformat()


def duration_json(value: object, path: str) -> float | str:
    """What the API takes for a duration; text goes through as it is, for the server to judge."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise invalid(path, f"must be a timedelta, seconds or text such as '1h 30m', not {value!r}")
    return value


def seconds(value: timedelta | float, path: str) -> float:
    """Seconds of an argument that only this client looks at; zero or more."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise invalid(path, f"must be a timedelta or seconds, zero or more, not {value!r}")
    return float(value)
