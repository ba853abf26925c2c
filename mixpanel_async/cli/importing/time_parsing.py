"""Parsing of times in files. The result is what the client accepts: a number, or a datetime with a time zone."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mixpanel_async import ValidationError

from .text_types import ISO_TIME

UNITS: Final = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
FORMATS: Final = ("auto", "iso", *UNITS)

_OFFSET: Final = re.compile(r"([+-])(\d{2}):?(\d{2})")
_MAX_NUMBER: Final = 10**30
_OUT_OF_RANGE: Final = "is out of range for a time"
# Message of `datetime` for text that matches its pattern.
_DAY_OUT_OF_RANGE: Final = "day is out of range"
_NO_DAY: Final = "names a day that does not exist"
_NOT_ISO: Final = "is not a valid ISO 8601 time such as 2026-11-21T12:00:00Z"


def parse_zone(name: str) -> tzinfo:
    """Return a time zone by name (`Europe/Vienna`, `UTC`) or offset (`+02:00`).

    Raises:
        ValueError: if this machine has no such time zone.
    """
    if name.upper() in {"UTC", "Z"}:
        return timezone.utc
    if match := _OFFSET.fullmatch(name):
        sign, hours, minutes = match.groups()
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        return timezone(offset if sign == "+" else -offset)
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"unknown time zone {name!r}; if the name is correct, install the time zone data: pip install tzdata"
        ) from None


class TimeParser:
    """Parser of times in one format.

    Args:
        format: `auto` (a number is in seconds or milliseconds, as the client decides; text is ISO 8601), `iso`, a unit
            of `UNITS`, or a `strptime` pattern with a `%` in it.
        zone: time zone of times without one; None rejects them.

    Raises:
        ValueError: for any other format.
    """

    def __init__(self, format: str = "auto", zone: tzinfo | None = None) -> None:
        if format not in FORMATS and "%" not in format:
            raise ValueError(
                f"must be one of {', '.join(FORMATS)}, or a pattern such as %d.%m.%Y %H:%M:%S, not {format!r}"
            )
        self._format = format
        self._zone = zone
        self._unit = UNITS.get(format)
        self.is_zone_used = False
        """Whether a time without a zone was parsed."""

    @property
    def passes_numbers(self) -> bool:
        """Whether numbers are passed to the client unchanged."""
        return self._format == "auto"

    def parse(self, value: object, path: str) -> float | datetime:
        """Convert a value to a time. The client checks that the time is in range.

        Args:
            value: the value in the file.
            path: path of the value, for errors.

        Raises:
            ValidationError: if the value is not a time in this format.
        """
        if isinstance(value, datetime):
            return self._with_zone(value, path)
        if isinstance(value, date):
            return self._with_zone(datetime.combine(value, time()), path)
        if isinstance(value, str):
            return self._parse_text(value.strip(), path)
        if value is None:
            raise ValidationError(path, "is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
            raise ValidationError(path, f"must be a time, not {type(value).__name__}")
        if self._unit is not None:
            return _to_seconds(Decimal(value), self._unit, path)
        if self._format != "auto":
            raise ValidationError(path, f"is a number, but --time-format {self._format} expects text")
        # A larger integer does not fit into a float.
        if value > _MAX_NUMBER or value < -_MAX_NUMBER:
            raise ValidationError(path, _OUT_OF_RANGE)
        return float(value) if isinstance(value, Decimal) else value

    def _parse_text(self, text: str, path: str) -> float | datetime:
        if self._unit is not None or self._format == "auto":
            try:
                number = Decimal(text)
            except InvalidOperation:
                if self._unit is not None:
                    raise ValidationError(path, f"is not a number of {self._format}") from None
            else:
                return _to_seconds(number, self._unit or 1, path)
        if "%" in self._format:
            try:
                # Without %z in the pattern the result is naive; `_with_zone` adds the zone or rejects it.
                moment = datetime.strptime(text, self._format)  # noqa: DTZ007
            except ValueError as error:
                if _DAY_OUT_OF_RANGE in str(error):
                    raise ValidationError(path, _NO_DAY) from None
                raise ValidationError(path, f"does not match --time-format '{self._format}'") from None
            return self._with_zone(moment, path)
        return self._with_zone(_parse_iso(text, path), path)

    def _with_zone(self, moment: datetime, path: str) -> datetime:
        if moment.tzinfo is not None and moment.utcoffset() is not None:
            return moment
        if self._zone is None:
            raise ValidationError(path, "has no time zone; set --timezone")
        self.is_zone_used = True
        return moment.replace(tzinfo=self._zone)


def _to_seconds(number: Decimal, unit: int, path: str) -> float:
    if not number.is_finite() or abs(number.adjusted()) > 30:
        raise ValidationError(path, _OUT_OF_RANGE)
    value = number / unit
    # The client rounds to milliseconds, so the precision of a float is sufficient.
    return int(value) if value == value.to_integral_value() else float(value)


def _parse_iso(text: str, path: str) -> datetime:
    match = ISO_TIME.fullmatch(text)
    if match is None:
        raise ValidationError(path, _NOT_ISO)
    day, minutes, seconds, fraction, offset = match.groups()
    normalized = day
    if minutes is not None:
        normalized += f"T{minutes}{seconds or ':00'}.{(fraction or '').ljust(6, '0')[:6]}"
    if offset is not None:
        offset = "+00:00" if offset.upper() in {"Z", "UTC"} else offset
        normalized += offset if ":" in offset else f"{offset[:3]}:{offset[3:] or '00'}"
    try:
        return datetime.fromisoformat(normalized)
    except ValueError as error:
        if _DAY_OUT_OF_RANGE in str(error):
            raise ValidationError(path, _NO_DAY) from None
        raise ValidationError(path, _NOT_ISO) from None
