"""Options: what a user can set, checked together when it is set and never changed afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any, Final, Literal

from .credentials import ServiceAccountCredentials
from .errors import raise_configuration_error
from .origin import parse_origin
from .value import Value

VERSION: Final = "0.1.0"

Region = Literal["us", "eu", "in"]
EventsEndpoint = Literal["auto", "track", "import"]


class IdMerge(Enum):
    """How a Mixpanel project joins ids into one person. It is fixed for each project once it holds data.

    Source: Mixpanel's page on identity management, read 2026-08-21.
    """

    LEGACY = "legacy"
    """Projects from before March 2020: only ``$create_alias`` has an effect, and not on events of the past."""
    ORIGINAL = "original"
    """``$identify``, ``$create_alias`` and ``$merge`` join ids, also for events of the past."""
    SIMPLIFIED = "simplified"
    """An event that carries both ``$device_id`` and ``$user_id`` joins them; the three verbs do nothing."""


class Overflow(Enum):
    """What happens to a record for which the queue has no room."""

    DROP_NEWEST = "drop_newest"
    """The record that came last is dropped, counted and reported."""
    DROP_OLDEST = "drop_oldest"
    """The records that have waited longest are dropped, counted and reported, and the new one is taken."""
    WAIT = "wait"
    """The coroutine methods wait for room, at most `BatchPolicy.wait_timeout` seconds, then raise
    `QueueFullError`; `track_nowait` cannot wait and raises at once."""
    RAISE = "raise"
    """`QueueFullError` at the caller."""


def check_number(name: str, value: object, *, minimum: float, maximum: float = inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:  # noqa: PLR0124  NaN
        raise_configuration_error(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not minimum <= value <= maximum:
        raise_configuration_error(f"{name} must be between {minimum:g} and {maximum:g} seconds")


def check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise_configuration_error(f"{name} must be True or False, not {type(value).__name__}")


def check_count(name: str, value: object, *, minimum: int = 1, maximum: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise_configuration_error(f"{name} must be a whole number, not {type(value).__name__}")
    if value < minimum or (maximum is not None and value > maximum):
        raise_configuration_error(
            f"{name} must be at least {minimum}{'' if maximum is None else f' and at most {maximum}'}, not {value}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class BatchPolicy(Value):
    """How records are gathered into requests, and how much may be held in memory.

    Args:
        max_events: records in one request; 1 to 2,000, Mixpanel's own limit.
        max_bytes: uncompressed size of one request's body; 1 to 10,000,000. A larger record goes alone. Mixpanel
            documents 10 MB in one place and 2 MiB in another, so the default keeps to the smaller.
        linger: seconds that the first record of a batch waits for company; 0 to 3,600. A batch that is full, `flush()`
            and `aclose()` cut it short.
        max_pending_events: records held at once, those in flight included; at least 1. A full queue is sent without
            waiting for a full batch.
        max_pending_bytes: encoded size of the records held at once, those in flight included; at least 1.
        max_in_flight: requests under way at once for events, and again for imports; 1 to 100. Profile and group
            updates always have one, as their order matters.
        wait_timeout: with `Overflow.WAIT`, the seconds that a call waits for room; 0 to 3,600.
        at_least_once: send `$add`, `$append` and `$remove` again when it is unknown whether Mixpanel applied them.
            Off by default: such updates are counted as `uncertain`, because a second try may apply them twice.

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RetryPolicy(Value):
    """When a request that may succeed later is sent again.

    Each wait is drawn evenly from 0 to the current ceiling (full jitter); the ceiling starts at `initial` and doubles
    up to `maximum`. A `Retry-After` from Mixpanel is honoured up to 300 seconds and is never undercut.

    Args:
        attempts: tries in all, the first included; at least 1, or None for no limit.
        initial: ceiling in seconds of the first wait; 0 to 3,600. Mixpanel advises 2.
        maximum: largest ceiling in seconds; `initial` to 3,600. Mixpanel advises 60.
        total_timeout: seconds from the first try after which one that failed is the last, or None for no limit. For
            the awaited calls it is also the deadline of the call as a whole.

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
            raise_configuration_error("maximum must be at least initial")
        if self.total_timeout is not None:
            check_number("total_timeout", self.total_timeout, minimum=0.001, maximum=86_400.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ClientOptions(Value):
    """The client's own options, as far as they are plain values. `AsyncMixpanel` says what they mean.

    Raises:
        ConfigurationError: if a value, or a combination of two, cannot work.
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

    def __post_init__(self) -> None:
        if not isinstance(self.token, str) or not self.token.strip() or not self.token.isprintable():
            raise_configuration_error("token must be a string that is not blank")
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
            raise_configuration_error("events_endpoint must be 'auto', 'track' or 'import'")
        if self.identity_retry.attempts is None and self.identity_retry.total_timeout is None:
            raise_configuration_error("identity_retry needs attempts or total_timeout: an awaited call must end")
        check_number("timeout", self.timeout, minimum=0.001, maximum=3600.0)
        check_number("shutdown_timeout", self.shutdown_timeout, minimum=0.0, maximum=3600.0)

    @property
    def origin(self) -> str:
        return parse_origin(self.region, self.api_host, allow_http=self.allow_http)

    @property
    def by_import(self) -> bool:
        """Whether ordinary events go to `/import`."""
        if self.events_endpoint == "auto":
            return self.credentials is not None
        return self.events_endpoint == "import"


def env_options(environ: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The client's options as `MIXPANEL_*` variables give them; a blank variable counts as unset.

    Args:
        environ: the variables.
        given: options that are given otherwise and need not be there.

    Raises:
        ConfigurationError: if the token is missing, a service account is given in part, or a value is not one of
            those allowed.
    """

    def read(name: str) -> str | None:
        return environ.get(f"MIXPANEL_{name}", "").strip() or None

    token = read("TOKEN")
    if token is None and "token" not in given:
        raise_configuration_error("MIXPANEL_TOKEN is not set")
    options: dict[str, Any] = {"token": token}
    if "credentials" not in given and (read("SERVICE_ACCOUNT_USERNAME") or read("SERVICE_ACCOUNT_SECRET")):
        names = ("SERVICE_ACCOUNT_USERNAME", "SERVICE_ACCOUNT_SECRET", "PROJECT_ID")
        if not all(map(read, names)):
            raise_configuration_error(
                f"a service account needs {', '.join(f'MIXPANEL_{name}' for name in names)} together"
            )
        options["credentials"] = ServiceAccountCredentials(*(read(name) or "" for name in names))
    if region := read("REGION"):
        options["region"] = region.lower()
    if api_host := read("API_HOST"):
        options["api_host"] = api_host
    id_merge = read("ID_MERGE")
    if id_merge is not None and "id_merge" not in given:
        try:
            options["id_merge"] = IdMerge(id_merge.lower())
        except ValueError:
            raise_configuration_error("MIXPANEL_ID_MERGE must be legacy, original or simplified")
    return options
