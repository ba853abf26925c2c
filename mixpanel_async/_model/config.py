"""Options of the client: immutable, and validated together when they are created."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any, Final, Literal, NoReturn

from .credentials import ServiceAccountCredentials, as_token
from .errors import ConfigurationError, raise_configuration_error, show_text
from .origin import parse_origin

Region = Literal["us", "eu", "in"]
EventsEndpoint = Literal["auto", "track", "import"]
"""Endpoint of events."""
InvalidOption = Literal["raise", "drop"]
"""Policy for data that Mixpanel would not accept."""
NestingOption = Literal["keep", "text", "reject"]
"""Policy for deeply nested values."""

# Spellings of a switch in an environment variable, in any case.
_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("0", "false", "no", "off")


class IdMerge(Enum):
    """Method by which a Mixpanel project joins ids into one person, fixed for each project once it holds data.

    Source: Mixpanel's page on identity management, read 2026-08-21.
    """

    LEGACY = "legacy"
    """Projects from before March 2020: only ``$create_alias`` has an effect, and not on past events."""
    ORIGINAL = "original"
    """``$identify``, ``$create_alias`` and ``$merge`` join ids, also for past events."""
    SIMPLIFIED = "simplified"
    """An event with both ``$device_id`` and ``$user_id`` joins them; `alias`, `identify` and `merge` do nothing."""

    @classmethod
    def _missing_(cls, value: object) -> IdMerge | None:
        return next((one for one in cls if isinstance(value, str) and value.lower() == one.value), None)


IdMergeOption = IdMerge | Literal["legacy", "original", "simplified"]
"""ID Merge system, or its text."""


def as_id_merge(value: object, name: str = "id_merge") -> IdMerge | None:
    """Return an option as `IdMerge`; None stays None.

    Args:
        value: an `IdMerge`, or its text in any case.
        name: name of the option for errors.

    Raises:
        ConfigurationError: if it is neither.
    """
    try:
        return None if value is None else IdMerge(value)
    except ValueError:
        text = show_text(value)
    raise ConfigurationError(f"{name} must be legacy, original or simplified, not {text}")


class Overflow(Enum):
    """Policy for a record that does not fit into the queue."""

    DROP_NEWEST = "drop_newest"
    """Drop the new record; it is counted and reported."""
    DROP_OLDEST = "drop_oldest"
    """Drop the records that have waited longest, and accept the new one; dropped records are counted and reported."""
    WAIT = "wait"
    """Wait for room in coroutine methods, at most `BatchPolicy.wait_timeout` seconds, then raise `QueueFullError`;
    `track_nowait` cannot wait and raises immediately."""
    RAISE = "raise"
    """Raise `QueueFullError`."""


def check_number(name: str, value: object, *, minimum: float, maximum: float = inf) -> None:
    """Check a number of seconds.

    Raises:
        ConfigurationError: if it is not a number or is out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise_configuration_error(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not minimum <= value <= maximum:  # also if it is NaN
        raise_configuration_error(
            f"{name} must be between {minimum:g} and {maximum:g} seconds, not {_show_number(value)}"
        )


def check_switch(name: str, value: object) -> None:
    """Check an option that is on or off.

    Raises:
        ConfigurationError: if it is not a bool.
    """
    if not isinstance(value, bool):
        raise_configuration_error(f"{name} must be True or False, not {type(value).__name__}")


def check_nesting(value: object) -> None:
    """Check the option `nesting`.

    Raises:
        ConfigurationError: if it is none of its values.
    """
    if value not in ("keep", "text", "reject"):
        raise_configuration_error(f"nesting must be 'keep', 'text' or 'reject', not {show_text(value)}")


def check_count(name: str, value: object, *, minimum: int = 1, maximum: int | None = None) -> None:
    """Check a whole number.

    Raises:
        ConfigurationError: if it is not an int or is out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise_configuration_error(f"{name} must be a whole number, not {type(value).__name__}")
    if value < minimum or (maximum is not None and value > maximum):
        raise_configuration_error(
            f"{name} must be at least {minimum}{'' if maximum is None else f' and at most {maximum}'}, "
            f"not {_show_number(value)}"
        )


def _show_number(value: float) -> str:
    # Python refuses to format an int of more than 4,300 digits.
    return f"{value}" if not isinstance(value, int) or abs(value) < 10**20 else "a number of more than 20 digits"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """Limits of batches and of the queue in memory.

    Args:
        max_events: maximum number of records in one request; 1 to 2,000, Mixpanel's own limit.
        max_bytes: maximum uncompressed size of one request body; 1 to 10,000,000. A larger record is sent alone.
            Mixpanel documents 10 MB in one place and 2 MiB in another; the default respects the smaller.
        linger: seconds that the first record of a batch waits for more; 0 to 3,600. A full batch, `flush()` and
            `aclose()` end the wait early.
        max_pending_events: maximum number of records held, including those in flight; at least 1. A full queue is sent
            without waiting for a full batch.
        max_pending_bytes: maximum encoded size of the records held, including those in flight; at least 1.
        max_in_flight: maximum number of concurrent requests for events, and as many for imports; 1 to 100. Profile and
            group updates always have one, because their order matters.
        wait_timeout: seconds that a call waits for room with `Overflow.WAIT`; 0 to 3,600.
        at_least_once: send `$add`, `$append` and `$remove` again when it is unknown whether Mixpanel applied them.
            Off by default: such updates are counted as `uncertain`, because a second attempt may apply them twice.

    Raises:
        ConfigurationError: if a value is out of bounds.
    """

    max_events: int = 2_000
    max_bytes: int = 2_000_000
    linger: float = 1.0
    max_pending_events: int = 250_000
    max_pending_bytes: int = 100 * 1024 * 1024
    max_in_flight: int = 4
    wait_timeout: float = 30.0
    at_least_once: bool = False

    def __post_init__(self) -> None:
        check_count("max_events", self.max_events, maximum=2_000)
        check_count("max_bytes", self.max_bytes, maximum=10_000_000)
        check_number("linger", self.linger, minimum=0.0, maximum=3600.0)
        check_count("max_pending_events", self.max_pending_events)
        check_count("max_pending_bytes", self.max_pending_bytes)
        check_count("max_in_flight", self.max_in_flight, maximum=100)
        check_number("wait_timeout", self.wait_timeout, minimum=0.0, maximum=3600.0)
        check_switch("at_least_once", self.at_least_once)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Retries of a request that may succeed later.

    Each delay is random between 0 and a ceiling (full jitter). The ceiling starts at `initial` and doubles up to
    `maximum`. A `Retry-After` from Mixpanel is a lower bound of the delay and is respected up to 300 seconds.

    Args:
        attempts: maximum number of attempts, including the first; at least 1, or None for no limit.
        initial: ceiling in seconds of the first delay; 0 to 3,600. Mixpanel advises 2.
        maximum: largest ceiling in seconds; `initial` to 3,600. Mixpanel advises 60.
        total_timeout: seconds after the first attempt when retries end; 0.001 to 86,400, or None for no limit. For
            awaited calls it is also the deadline of the whole call.

    Raises:
        ConfigurationError: if a value, or a relation between two of them, is out of bounds.
    """

    attempts: int | None = None
    initial: float = 2.0
    maximum: float = 60.0
    total_timeout: float | None = None

    def __post_init__(self) -> None:
        if self.attempts is not None:
            check_count("attempts", self.attempts)
        check_number("initial", self.initial, minimum=0.0, maximum=3600.0)
        check_number("maximum", self.maximum, minimum=0.0, maximum=3600.0)
        if self.maximum < self.initial:
            raise_configuration_error(f"maximum must be at least initial ({self.initial:g}), not {self.maximum:g}")
        if self.total_timeout is not None:
            check_number("total_timeout", self.total_timeout, minimum=0.001, maximum=86_400.0)


DEFAULT_BATCHING: Final = BatchPolicy()
"""Batching of a client without an outbox that was given none."""
DEFAULT_RETRY: Final = RetryPolicy()
"""Retries of a client without an outbox that was given none."""
# An entry of 500 records costs about as much as one of 2,000, and its delay adds to that of the workers.
_OUTBOX_BATCHING: Final = BatchPolicy(max_events=500, linger=0.25)
# Records that arrive during one put share the next.
_CONFIRMED_BATCHING: Final = BatchPolicy(max_events=500, linger=0.002)
# An engine in the same network is back at once, and a probe costs it nothing.
_OUTBOX_RETRY: Final = RetryPolicy(initial=0.25, maximum=5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Options of the client that are plain values; see `AsyncMixpanel` for their meaning.

    Raises:
        ConfigurationError: if a value, or a combination of two values, is invalid.
    """

    token: str = field(repr=False)
    credentials: ServiceAccountCredentials | None
    region: str
    api_host: str | None
    allow_http: bool
    id_merge: IdMerge | None
    batching: BatchPolicy
    retry: RetryPolicy
    identity_retry: RetryPolicy
    overflow: Overflow
    events_endpoint: str
    timeout: float
    shutdown_timeout: float
    loop_end_timeout: float = 3.0
    invalid: str = "raise"
    nesting: NestingOption = "text"
    enabled: bool = True
    outbox: object = field(default=None, repr=False)
    has_spool: bool = False

    def __post_init__(self) -> None:
        check_switch("enabled", self.enabled)
        # A disabled client needs no token.
        object.__setattr__(self, "token", as_token(self.token, is_required=self.enabled))
        kinds: tuple[tuple[str, type, bool], ...] = (
            ("credentials", ServiceAccountCredentials, True),
            ("id_merge", IdMerge, True),
            ("batching", BatchPolicy, False),
            ("retry", RetryPolicy, False),
            ("identity_retry", RetryPolicy, False),
            ("overflow", Overflow, False),
        )
        for name, kind, optional in kinds:
            value = getattr(self, name)
            if not (isinstance(value, kind) or (optional and value is None)):
                wanted = ", ".join(map(str, kind)) if issubclass(kind, Enum) else f"an instance of {kind.__name__}"
                raise_configuration_error(f"{name} must be {wanted}, not {type(value).__name__}")
        check_switch("allow_http", self.allow_http)
        if self.events_endpoint not in ("auto", "track", "import"):
            raise_configuration_error(
                f"events_endpoint must be 'auto', 'track' or 'import', not {show_text(self.events_endpoint)}"
            )
        if self.invalid not in ("raise", "drop"):
            raise_configuration_error(f"invalid must be 'raise' or 'drop', not {show_text(self.invalid)}")
        check_nesting(self.nesting)
        if self.identity_retry.attempts is None and self.identity_retry.total_timeout is None:
            raise_configuration_error(
                "identity_retry needs attempts or total_timeout, because an awaited call must end"
            )
        if self.outbox is not None:
            self._check_outbox()
        check_number("timeout", self.timeout, minimum=0.001, maximum=3600.0)
        check_number("shutdown_timeout", self.shutdown_timeout, minimum=0.0, maximum=3600.0)
        check_number("loop_end_timeout", self.loop_end_timeout, minimum=0.0, maximum=3600.0)

    def _check_outbox(self) -> None:
        """Check the outbox, and replace the default policies by those for hand-overs, which are cheap and frequent."""
        outbox = self.outbox
        if not callable(getattr(outbox, "writer", None)) or not isinstance(getattr(outbox, "confirm", None), bool):
            refuse_outbox(outbox)
        if self.confirms and self.has_spool:
            raise_configuration_error(
                "an outbox with confirm=True excludes spool=: with a spool, a call returns once its record is on disk"
            )
        if self.batching is DEFAULT_BATCHING:
            object.__setattr__(self, "batching", _CONFIRMED_BATCHING if self.confirms else _OUTBOX_BATCHING)
        if self.retry is DEFAULT_RETRY:
            object.__setattr__(self, "retry", _OUTBOX_RETRY)

    @property
    def has_outbox(self) -> bool:
        """Whether records are handed over to an outbox."""
        return self.outbox is not None

    @property
    def confirms(self) -> bool:
        """Whether calls wait until the outbox has their record."""
        return bool(getattr(self.outbox, "confirm", False))

    @property
    def origin(self) -> str:
        """Origin of every request.

        Raises:
            ConfigurationError: if `region` or `api_host` is invalid.
        """
        return parse_origin(self.region, self.api_host, allow_http=self.allow_http)

    @property
    def by_import(self) -> bool:
        """Whether events are sent to `/import` instead of `/track`."""
        if self.events_endpoint == "auto":
            return self.credentials is not None
        return self.events_endpoint == "import"

    @property
    def mixes_identity(self) -> bool:
        """Whether identity events and ordinary events have the same endpoint, `/track`, and the same authentication.

        With an outbox, identity events have their own lane there.
        """
        return self.credentials is None and not self.by_import and not self.has_outbox

    @property
    def is_recent_only(self) -> bool:
        """Whether events go to `/track`, which accepts only the last five days. The workers of an outbox decide."""
        return not self.by_import and not (self.has_outbox and self.events_endpoint == "auto")


def env_options(environ: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the client options set by `MIXPANEL_*` variables; a blank variable counts as unset.

    Args:
        environ: the variables.
        given: options passed as arguments; their variables are not read.

    Raises:
        ConfigurationError: if the token is missing, a service account is incomplete, or a value is not one of those
            allowed.
    """

    def read(name: str) -> str | None:
        return environ.get(f"MIXPANEL_{name}", "").strip() or None

    is_enabled = given["enabled"] if "enabled" in given else not _is_on("MIXPANEL_DISABLED", read("DISABLED"))
    token = read("TOKEN")
    if token is None and "token" not in given and is_enabled:
        raise_configuration_error("MIXPANEL_TOKEN is not set")
    options: dict[str, Any] = {"token": token or ""}
    if is_enabled:
        options.update(_endpoint_options(read, given))
    else:
        # The other variables are not read: what a disabled client does not use cannot stop the program.
        options["enabled"] = False
    id_merge = read("ID_MERGE")
    if id_merge is not None and "id_merge" not in given:
        options["id_merge"] = as_id_merge(id_merge, "MIXPANEL_ID_MERGE")
    return options


def refuse_outbox(outbox: object) -> NoReturn:
    """Raise the error for a value that is not an outbox. It does not show a URL, which may hold a password.

    Raises:
        ConfigurationError: always.
    """
    kind = outbox.__name__ if isinstance(outbox, type) else type(outbox).__name__
    raise_configuration_error(f"outbox must be an engine such as RedisOutbox(url), not {kind}")


def outbox_url(environ: Mapping[str, str], options: Mapping[str, Any]) -> str | None:
    """Return the URL in `MIXPANEL_OUTBOX`; None if it is blank, or if the options have an outbox or disable the client.

    Args:
        environ: the variables.
        options: all options of the client.
    """
    is_read = options.get("enabled", True) and "outbox" not in options
    return (environ.get("MIXPANEL_OUTBOX", "").strip() or None) if is_read else None


def _is_on(name: str, text: str | None) -> bool:
    """Return the value of a variable that is a switch; unset means off."""
    word = (text or "off").lower()
    if word not in _ON and word not in _OFF:
        raise_configuration_error(
            f"{name} must be one of {', '.join(_ON)}, or of {', '.join(_OFF)}, not {show_text(text)}"
        )
    return word in _ON


def _endpoint_options(read: Callable[[str], str | None], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for the origin and the authentication of requests."""
    options: dict[str, Any] = {}
    if "credentials" not in given and (read("SERVICE_ACCOUNT_USERNAME") or read("SERVICE_ACCOUNT_SECRET")):
        names = ("SERVICE_ACCOUNT_USERNAME", "SERVICE_ACCOUNT_SECRET", "PROJECT_ID")
        if not all(map(read, names)):
            raise_configuration_error(
                f"a service account needs all of {', '.join(f'MIXPANEL_{name}' for name in names)}"
            )
        options["credentials"] = ServiceAccountCredentials(*(read(name) or "" for name in names))
    if region := read("REGION"):
        options["region"] = region
    if api_host := read("API_HOST"):
        options["api_host"] = api_host
    if "allow_http" not in given and _is_on("MIXPANEL_ALLOW_HTTP", read("ALLOW_HTTP")):
        options["allow_http"] = True
    return options
