"""Times as files write them, to what the client takes: a number, or a datetime with a zone."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mixpanel_async import ValidationError

UNITS: Final = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
FORMATS: Final = ("auto", "iso", *UNITS)

_OFFSET: Final = re.compile(r"([+-])(\d{2}):?(\d{2})")
# Before Python 3.11 `fromisoformat` takes no `Z`, no offset without a colon, and three or six digits of a second only.
_ISO: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2})?(?:[.,](\d{1,9}))?\s?(Z|[+-]\d{2}(?::?\d{2})?)?)?", re.IGNORECASE
)


def zone(name: str) -> tzinfo:
    """A time zone by its name (`Europe/Vienna`, `UTC`) or its offset (`+02:00`).

    Raises:
        ValueError: if there is no such zone on this machine.
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
            f"there is no time zone {name!r} on this machine; it may lack the zone data: pip install tzdata"
        ) from None


class Clock:
    """Reads times.

    Args:
        style: `auto` (a number is in seconds or milliseconds, told apart as the client does; anything else is ISO
            8601), `iso`, a unit of `UNITS`, or a pattern of `strptime` with a `%` in it.
        zone: of times that name none; None refuses them.

    Raises:
        ValueError: if the style is none of these.
    """

    def __init__(self, style: str = "auto", zone: tzinfo | None = None) -> None:
        if style not in FORMATS and "%" not in style:
            raise ValueError(f"must be one of {', '.join(FORMATS)}, or a pattern such as %d.%m.%Y %H:%M:%S")
        self._style = style
        self._zone = zone
        self._unit = UNITS.get(style)

    @property
    def passes_numbers(self) -> bool:
        """Whether a number is left to the client as it stands."""
        return self._style == "auto"

    def read(self, value: object, path: str) -> float | datetime:
        """A time for the client.

        Raises:
            ValidationError: naming the path, if the value cannot be read. The client checks what it means.
        """
        if isinstance(value, datetime):
            return self._placed(value, path)
        if isinstance(value, date):
            return self._placed(datetime.combine(value, time()), path)
        if isinstance(value, str):
            return self._text(value.strip(), path)
        if value is None:
            raise ValidationError(path, "is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
            raise ValidationError(path, f"is no time but of type {type(value).__name__}")
        if self._unit is not None:
            return _scaled(Decimal(value), self._unit, path)
        if self._style != "auto":
            raise ValidationError(path, "is a number, and --time-format asks for text")
        return float(value) if isinstance(value, Decimal) else value

    def _text(self, text: str, path: str) -> float | datetime:
        if self._unit is not None or self._style == "auto":
            try:
                number = Decimal(text)
            except InvalidOperation:
                if self._unit is not None:
                    raise ValidationError(path, f"is no number of {self._style}") from None
            else:
                return _scaled(number, self._unit or 1, path)
        if "%" in self._style:
            try:
                # A pattern without %z gives a naive one, which gets its zone, or is refused, below.
                moment = datetime.strptime(text, self._style)  # noqa: DTZ007
            except ValueError:
                raise ValidationError(path, "does not have the form that --time-format gives") from None
            return self._placed(moment, path)
        return self._placed(_iso(text, path), path)

    def _placed(self, moment: datetime, path: str) -> datetime:
        if moment.tzinfo is not None and moment.utcoffset() is not None:
            return moment
        if self._zone is None:
            raise ValidationError(path, "has no time zone; give one with --timezone")
        return moment.replace(tzinfo=self._zone)


def _scaled(number: Decimal, unit: int, path: str) -> float:
    if not number.is_finite() or abs(number.adjusted()) > 30:
        raise ValidationError(path, "is no time but a number out of all bounds")
    value = number / unit
    # The client rounds to milliseconds: what lies below them may go.
    return int(value) if value == value.to_integral_value() else float(value)


def _iso(text: str, path: str) -> datetime:
    match = _ISO.fullmatch(text)
    if match is None:
        raise ValidationError(path, "is no time of ISO 8601, such as 2026-11-21T12:00:00Z")
    day, minutes, seconds, fraction, offset = match.groups()
    written = day
    if minutes is not None:
        written += f"T{minutes}{seconds or ':00'}.{(fraction or '').ljust(6, '0')[:6]}"
    if offset is not None:
        offset = "+00:00" if offset in "zZ" else offset
        written += offset if ":" in offset else f"{offset[:3]}:{offset[3:] or '00'}"
    try:
        return datetime.fromisoformat(written)
    except ValueError:
        raise ValidationError(path, "is no time of ISO 8601, such as 2026-11-21T12:00:00Z") from None
