"""Options: bounds, hosts, environment variables and credentials."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
import pprint
import re
import reprlib
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixpanel_async.emulator
from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    ConfigurationError,
    IdMerge,
    MixpanelException,
    Overflow,
    RetryPolicy,
    ServiceAccountCredentials,
)
from mixpanel_async._model.config import DEFAULT_BATCHING, DEFAULT_RETRY, ClientOptions, env_options
from mixpanel_async._model.credentials import Secret, as_secret, basic_auth
from mixpanel_async._model.origin import REGION_ORIGINS, parse_origin
from mixpanel_async.outbox import MemoryOutbox

CANARY = "canary-secret-7f3a9b"
PACKAGE = str(Path(mixpanel_async.__file__).parent)
ACCOUNT = ServiceAccountCredentials("account", CANARY, "12345")
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True, database=None)
NAN, INF = float("nan"), float("inf")

GIVEN: dict[str, Any] = {
    "token": "the-token",
    "credentials": None,
    "region": "us",
    "api_host": None,
    "allow_http": False,
    "id_merge": None,
    "batching": BatchPolicy(),
    "retry": RetryPolicy(),
    "identity_retry": RetryPolicy(attempts=3),
    "overflow": Overflow.DROP_NEWEST,
    "events_endpoint": "auto",
    "timeout": 10.0,
    "shutdown_timeout": 10.0,
}


def options(**changes: Any) -> ClientOptions:
    return ClientOptions(**{**GIVEN, **changes})


def refused(call: Callable[..., object], /, *args: Any, **kwargs: Any) -> str:
    """Return the message of the ConfigurationError, which must not contain a secret."""
    with pytest.raises(ConfigurationError) as caught:
        call(*args, **kwargs)
    assert isinstance(caught.value, (MixpanelException, ValueError))
    message = str(caught.value)
    assert message
    assert CANARY not in message
    return message


# Outbox


@pytest.mark.parametrize(("confirm", "linger"), [(False, 0.25), (True, 0.002)])
def test_outbox_has_other_default_policies(*, confirm: bool, linger: float) -> None:
    chosen: dict[str, Any] = {"batching": DEFAULT_BATCHING, "retry": DEFAULT_RETRY}
    made = options(outbox=MemoryOutbox(confirm=confirm), **chosen)
    assert (made.batching, made.retry) == (
        BatchPolicy(max_events=500, linger=linger),
        RetryPolicy(initial=0.25, maximum=5.0),
    )
    assert (options(**chosen).batching, options(**chosen).retry) == (BatchPolicy(), RetryPolicy())


def test_outbox_leaves_given_policies() -> None:
    chosen: dict[str, Any] = {"batching": BatchPolicy(), "retry": RetryPolicy()}
    made = options(outbox=MemoryOutbox(), **chosen)
    assert (made.batching, made.retry) == (BatchPolicy(), RetryPolicy())


# Bounds

COUNTS: list[tuple[type, str, int, int | None]] = [
    (BatchPolicy, "max_events", 1, 2_000),
    (BatchPolicy, "max_bytes", 1, 10_000_000),
    (BatchPolicy, "max_pending_events", 1, None),
    (BatchPolicy, "max_pending_bytes", 1, None),
    (BatchPolicy, "max_in_flight", 1, 100),
    (RetryPolicy, "attempts", 1, None),
]
SECONDS: list[tuple[Callable[..., Any], str, float, float]] = [
    (BatchPolicy, "linger", 0.0, 3600.0),
    (BatchPolicy, "wait_timeout", 0.0, 3600.0),
    (lambda initial: RetryPolicy(initial=initial, maximum=3600.0), "initial", 0.0, 3600.0),
    (lambda maximum: RetryPolicy(initial=0.0, maximum=maximum), "maximum", 0.0, 3600.0),
    (RetryPolicy, "total_timeout", 0.001, 86_400.0),
    (options, "timeout", 0.001, 3600.0),
    (options, "shutdown_timeout", 0.0, 3600.0),
]


def shown(value: object) -> str:
    return getattr(value, "__name__", None) or repr(value)[:20]


@pytest.mark.parametrize(("make", "name", "least", "most"), COUNTS, ids=shown)
def test_count_is_a_whole_number_within_bounds(make: type, name: str, least: int, most: int | None) -> None:
    for value in (least, 10**30 if most is None else most):
        assert getattr(make(**{name: value}), name) == value
    bads: list[Any] = [least - 1, -1, 1.0, 1.5, True, "1", None, NAN, [1], *([] if most is None else [most + 1])]
    for bad in bads:
        if not (name == "attempts" and bad is None):
            assert name in refused(make, **{name: bad})


@pytest.mark.parametrize(("make", "name", "least", "most"), SECONDS, ids=shown)
def test_duration_is_a_number_of_seconds_within_bounds(
    make: Callable[..., Any], name: str, least: float, most: float
) -> None:
    for value in (least, most, int(most)):
        assert getattr(make(**{name: value}), name) == value
    huge = (10**400, -(10**400), 10**30)
    bads: tuple[Any, ...] = (least - 0.001, most + 0.001, -1, NAN, INF, -INF, True, False, "1", None, [1], 1j, *huge)
    for bad in bads:
        if not (name == "total_timeout" and bad is None):
            assert name in refused(make, **{name: bad})


@pytest.mark.parametrize("make", [BatchPolicy, options])
def test_switch_accepts_only_true_and_false(make: Callable[..., Any]) -> None:
    """The string `"false"` of a settings file must not enable an option."""
    name = "at_least_once" if make is BatchPolicy else "allow_http"
    for value in (True, False):
        assert getattr(make(**{name: value}), name) is value
    bads: list[Any] = ["false", "", 0, 1, None, []]
    for bad in bads:
        assert name in refused(make, **{name: bad})


def test_maximum_delay_is_at_least_the_initial_delay() -> None:
    assert RetryPolicy(initial=5.0, maximum=5.0).maximum == 5.0
    assert "initial" in refused(lambda: RetryPolicy(initial=5.0, maximum=4.9))
    assert "initial" in refused(lambda: RetryPolicy(maximum=1.0))


def test_defaults_match_the_readme() -> None:
    assert dataclasses.asdict(BatchPolicy()) == {
        "max_events": 2_000,
        "max_bytes": 2_000_000,
        "linger": 1.0,
        "max_pending_events": 250_000,
        "max_pending_bytes": 100 * 1024 * 1024,
        "max_in_flight": 4,
        "wait_timeout": 30.0,
        "at_least_once": False,
    }
    assert dataclasses.asdict(RetryPolicy()) == {
        "attempts": None,
        "initial": 2.0,
        "maximum": 60.0,
        "total_timeout": None,
    }


@pytest.mark.parametrize("made", [BatchPolicy(), RetryPolicy(), options()], ids=shown)
def test_options_are_immutable(made: Any) -> None:
    for name in (field.name for field in dataclasses.fields(made)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, getattr(made, name))
    assert not hasattr(made, "__dict__")


@pytest.mark.parametrize("make", [BatchPolicy, RetryPolicy])
def test_options_are_keyword_only(make: Any) -> None:
    with pytest.raises(TypeError):
        make(1)


# Options of the client


@pytest.mark.parametrize("token", ["t", "0123456789abcdef0123456789abcdef", "with space"])
def test_token_is_any_printable_text(token: str) -> None:
    assert options(token=token).token == token


@pytest.mark.parametrize("token", [" t", "t\n", "\r\nt \t", "t\u00a0"])
def test_white_space_around_the_token_is_removed(token: str) -> None:
    assert options(token=token).token == "t"


@pytest.mark.parametrize("token", ["", " ", "\t", "a\nb", "a\x00", "a\r\nX: y", "\ud800", None, 5, b"token", ["t"]])
def test_invalid_token_is_rejected(token: object) -> None:
    assert "token" in refused(lambda: options(token=token))


@pytest.mark.parametrize("name", list(GIVEN))
@pytest.mark.parametrize(
    "junk",
    [object(), [], {}, {1}, 1j, b"x", type, lambda: None, "no such thing", ...],
    ids=lambda junk: type(junk).__name__,
)
def test_option_of_a_wrong_type_raises_only_configuration_errors(name: str, junk: object) -> None:
    if (name, junk) != ("token", "no such thing"):
        refused(lambda: options(**{name: junk}).origin)


@pytest.mark.parametrize("name", ["batching", "retry", "identity_retry", "overflow"])
def test_option_with_a_default_cannot_be_none(name: str) -> None:
    assert name in refused(lambda: options(**{name: None}))


def test_repr_of_options_omits_the_token() -> None:
    assert "the-token" not in repr(options())


def test_policies_are_not_interchangeable() -> None:
    assert "batching" in refused(lambda: options(batching=RetryPolicy()))
    assert "retry" in refused(lambda: options(retry=BatchPolicy()))
    assert "overflow" in refused(lambda: options(overflow="drop_newest"))
    assert "id_merge" in refused(lambda: options(id_merge="original"))
    assert "credentials" in refused(lambda: options(credentials=("account", CANARY, "1")))


def test_identity_retry_must_be_limited() -> None:
    assert "identity_retry" in refused(lambda: options(identity_retry=RetryPolicy()))
    assert options(identity_retry=RetryPolicy(attempts=1))
    assert options(identity_retry=RetryPolicy(total_timeout=1.0))


@pytest.mark.parametrize(
    ("endpoint", "credentials", "expected"),
    [
        ("auto", None, False),
        ("auto", ACCOUNT, True),
        ("track", ACCOUNT, False),
        ("import", None, True),
    ],
)
def test_credentials_select_the_import_endpoint_by_default(
    endpoint: str, credentials: ServiceAccountCredentials | None, expected: bool
) -> None:
    assert options(events_endpoint=endpoint, credentials=credentials).by_import is expected


# Region and host


def test_regions_are_constants() -> None:
    assert dict(REGION_ORIGINS) == {
        "us": "https://api.mixpanel.com",
        "eu": "https://api-eu.mixpanel.com",
        "in": "https://api-in.mixpanel.com",
    }
    for region, origin in REGION_ORIGINS.items():
        assert options(region=region).origin == origin
        assert options(region=region, api_host="proxy.example").origin == "https://proxy.example"


@pytest.mark.parametrize("region", ["EU", "Eu", " eu\n"])
def test_region_is_accepted_in_any_case(region: Any) -> None:
    assert options(region=region).origin == REGION_ORIGINS["eu"]


@pytest.mark.parametrize("region", ["", " ", "uk", "u s", "api.evil.test", None, 1, [], {}, b"us"])
def test_unknown_region_is_rejected(region: Any) -> None:
    assert "'us', 'eu', 'in'" in refused(lambda: parse_origin(region, None))


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("api.mixpanel.com", "https://api.mixpanel.com"),
        ("https://api.mixpanel.com", "https://api.mixpanel.com"),
        ("https://api.mixpanel.com/", "https://api.mixpanel.com"),
        ("API.Mixpanel.COM", "https://api.mixpanel.com"),
        ("proxy.example:8443", "https://proxy.example:8443"),
        ("proxy.example:00443", "https://proxy.example:443"),
        ("https://proxy.example/mp", "https://proxy.example/mp"),
        ("https://proxy.example/mp/v1/", "https://proxy.example/mp/v1"),
        ("https://proxy.example/track/v1", "https://proxy.example/track/v1"),
        ("https://proxy.example/tracking", "https://proxy.example/tracking"),
        ("proxy.example/a-b_c.d~e", "https://proxy.example/a-b_c.d~e"),
        ("https://proxy.example/CaseKept", "https://proxy.example/CaseKept"),
        ("proxy", "https://proxy"),
        ("under_score.example", "https://under_score.example"),
        ("xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("a." * 126 + "a", "https://" + "a." * 126 + "a"),
        ("host.example.", "https://host.example."),
        ("203.0.113.9", "https://203.0.113.9"),
        ("[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
        ("https://[::1]", "https://[::1]"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://LOCALHOST:8080", "http://localhost:8080"),
        ("http://mixpanel.localhost", "http://mixpanel.localhost"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.255.0.1", "http://127.255.0.1"),
        ("http://[::1]:8080/mp", "http://[::1]:8080/mp"),
        ("localhost:1", "https://localhost:1"),
        ("localhost:65535", "https://localhost:65535"),
    ],
)
def test_host_or_origin_is_accepted(host: str, origin: str) -> None:
    assert parse_origin("eu", host) == origin


BAD_HOSTS = [
    # user-info
    "api.mixpanel.com@evil.test",
    "https://api.mixpanel.com@evil.test",
    "https://user:pass@api.mixpanel.com",
    "https://:@api.mixpanel.com",
    "@api.mixpanel.com",
    # query, fragment, parameters
    "evil.test/?x=",
    "evil.test?",
    "evil.test#",
    "https://evil.test/#@api.mixpanel.com",
    "evil.test;x",
    "evil.test/a;b",
    "evil.test/a&b=c",
    # slashes and dots
    "",
    "/",
    "//",
    "//evil.test",
    "///evil.test",
    "https://",
    "https:///evil.test",
    "https:/evil.test",
    "https:evil.test",
    "https:\\\\evil.test",
    "evil.test\\@api.mixpanel.com",
    "evil.test\\",
    "evil.test/a//b",
    "evil.test/..",
    "evil.test/a/../b",
    "evil.test/./b",
    "evil.test/%2e%2e/b",
    "evil.test/%00",
    "evil..test",
    ".evil.test",
    ".",
    "..",
    # endpoints, which the client adds
    "https://api.mixpanel.com/track",
    "https://api.mixpanel.com/import/",
    "proxy.example/mp/engage",
    "proxy.example/groups",
    # other schemes
    "ftp://evil.test",
    "file:///etc/passwd",
    "javascript://evil.test",
    "HTTPS://evil.test",
    "https://https://evil.test",
    "://evil.test",
    "ws://evil.test",
    # plain HTTP elsewhere
    "http://evil.test",
    "http://api.mixpanel.com",
    "http://0.0.0.0",
    "http://localhost.evil.test",
    "http://127.0.0.1.evil.test",
    "http://notlocalhost",
    "http://[2001:db8::1]",
    "http://10.0.0.1",
    "http://[::]",
    # ports
    "evil.test:",
    "evil.test:0",
    "evil.test:65536",
    "evil.test:99999",
    "evil.test:123456",
    "evil.test:-1",
    "evil.test:+80",
    "evil.test:80a",
    "evil.test:８０",
    "evil.test:80:80",
    # addresses that programs interpret differently
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.0.0.1.",
    "127.0.0.256",
    "1.2.3.4.5",
    "evil.0x7f",
    # IPv6
    "::1",
    "[::1",
    "::1]",
    "[]",
    "[::g]",
    "[::1]evil.test",
    "[fe80::1%25eth0]",
    "[fe80::1%eth0]",
    "[127.0.0.1]",
    "[::1]:",
    # characters
    " api.mixpanel.com",
    "api.mixpanel.com ",
    "api .mixpanel.com",
    "api.mixpanel.com\n",
    "api.mixpanel.com\r\nHost: evil.test",
    "api.mixpanel.com\t",
    "api.mixpanel.com\x00",
    "api.mixpanel.com\x7f",
    "bücher.example",
    "аpi.mixpanel.com",
    "api。mixpanel。com",
    "api.mixpanel․com",
    "evil.test/é",
    "evil.test/a b",
    "evil.test/a\n",
    "*.mixpanel.com",
    "-evil.test",
    "evil-.test",
    "evil.-test",
    "a" * 64 + ".test",
    "a." * 127 + "a",
    "$(evil).test",
    "{evil}.test",
]


@pytest.mark.parametrize("host", BAD_HOSTS, ids=lambda host: ascii(host)[:40])
def test_invalid_host_is_rejected_without_repeating_it(host: str) -> None:
    """Fault catalogue, G3: hosts that look like Mixpanel and are not."""
    message = refused(lambda: parse_origin("us", host))
    assert "api_host" in message
    assert len(host) < 4 or host not in message


@pytest.mark.parametrize("host", [5, b"api.mixpanel.com", ["api.mixpanel.com"], True, object()])
def test_host_must_be_a_string(host: Any) -> None:
    assert "must be a string" in refused(lambda: parse_origin("us", host))


def test_plain_http_to_other_hosts_needs_allow_http() -> None:
    assert parse_origin("us", "http://emulator:8080", allow_http=True) == "http://emulator:8080"
    assert options(api_host="http://emulator:8080", allow_http=True).origin == "http://emulator:8080"
    assert "allow_http" in refused(lambda: options(api_host="http://emulator:8080").origin)
    refused(lambda: parse_origin("us", "ftp://emulator", allow_http=True))
    refused(lambda: parse_origin("us", "http://user@emulator", allow_http=True))


GRAMMAR = re.compile(
    r"(https|http)://(\[[0-9a-f:.]+\]|[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?)(:[1-9][0-9]{0,4})?(/[A-Za-z0-9._~-]+)*"
)


@given(
    host=st.text(max_size=30)
    | st.lists(
        st.sampled_from([*"://@?#\\[]%.- a1\n", "https://", "http://", "localhost", "evil.test", "127.0.0.1", "::1"]),
        max_size=8,
    ).map("".join)
)
@PROPERTY
def test_accepted_origin_contains_only_scheme_host_port_and_path(host: str) -> None:
    try:
        origin = parse_origin("us", host)
    except ConfigurationError:
        return
    assert GRAMMAR.fullmatch(origin)
    assert "/.." not in origin
    if origin.startswith("http://"):
        assert re.match(r"http://((.+\.)?localhost|127\.|\[)", origin)


# The environment


def env(**variables: str) -> dict[str, str]:
    return {f"MIXPANEL_{name}": value for name, value in variables.items()}


def from_env(variables: Mapping[str, str], given_: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return env_options(variables, given_ or {})


def test_environment_sets_every_option() -> None:
    made = from_env(
        env(
            TOKEN="t",
            SERVICE_ACCOUNT_USERNAME="account",
            SERVICE_ACCOUNT_SECRET=CANARY,
            PROJECT_ID="12345",
            REGION="EU",
            API_HOST="proxy.example",
            ID_MERGE="Original",
        )
    )
    credentials = made.pop("credentials")
    assert (credentials.username, credentials.secret, credentials.project_id) == ("account", CANARY, "12345")
    assert made == {"token": "t", "region": "EU", "api_host": "proxy.example", "id_merge": IdMerge.ORIGINAL}
    assert options(region=made["region"]).origin == REGION_ORIGINS["eu"]


def test_only_the_token_is_required_and_blank_variables_are_unset() -> None:
    blank = dict.fromkeys(["SERVICE_ACCOUNT_USERNAME", "SERVICE_ACCOUNT_SECRET", "REGION", "API_HOST", "ID_MERGE"], " ")
    assert from_env(env(TOKEN=" t ")) == from_env(env(TOKEN="t", **blank)) == {"token": "t"}
    assert from_env(env(TOKEN="t", PROJECT_ID="1")) == {"token": "t"}


def test_other_variables_are_ignored() -> None:
    assert from_env({"MIXPANEL_TOKEN": "t", "MIXPANEL_TIMEOUT": "x", "TOKEN": "other"}) == {"token": "t"}


@pytest.mark.parametrize("variables", [{}, env(TOKEN=""), env(TOKEN=" "), {"TOKEN": "t"}])
def test_missing_token_is_reported(variables: dict[str, str]) -> None:
    assert "MIXPANEL_TOKEN" in refused(lambda: from_env(variables))
    assert "token" in {**from_env(variables, {"token": "given"}), "token": "given"}


@pytest.mark.parametrize(
    "part",
    [
        env(SERVICE_ACCOUNT_USERNAME="account"),
        env(SERVICE_ACCOUNT_SECRET=CANARY),
        env(SERVICE_ACCOUNT_USERNAME="account", SERVICE_ACCOUNT_SECRET=CANARY),
        env(SERVICE_ACCOUNT_USERNAME="account", PROJECT_ID="1"),
        env(SERVICE_ACCOUNT_SECRET=CANARY, PROJECT_ID="1"),
    ],
)
def test_incomplete_service_account_is_rejected(part: dict[str, str]) -> None:
    message = refused(lambda: from_env({**env(TOKEN="t"), **part}))
    for name in ("USERNAME", "SECRET", "PROJECT_ID"):
        assert name in message
    assert "credentials" not in from_env({**env(TOKEN="t"), **part}, {"credentials": None})


def test_variable_of_an_option_passed_as_argument_is_ignored() -> None:
    """An overridden variable may have an invalid value."""
    broken = env(
        TOKEN="t",
        SERVICE_ACCOUNT_USERNAME="a:b",
        SERVICE_ACCOUNT_SECRET=CANARY,
        PROJECT_ID="1",
        ID_MERGE="bogus",
    )
    refused(lambda: from_env(broken))
    made = from_env(broken, {"credentials": ACCOUNT, "id_merge": IdMerge.LEGACY})
    assert {**made, "credentials": ACCOUNT, "id_merge": IdMerge.LEGACY}["token"] == "t"


@pytest.mark.parametrize("value", ["bogus", "1", "originals"])
def test_unknown_id_merge_is_rejected(value: str) -> None:
    assert "MIXPANEL_ID_MERGE" in refused(lambda: from_env(env(TOKEN="t", ID_MERGE=value)))


# Credentials


def test_white_space_around_credentials_is_removed() -> None:
    made = ServiceAccountCredentials(" account ", f"\t{CANARY}\n", " 1 ")
    assert (made.username, made.secret, made.project_id) == ("account", CANARY, "1")


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("bad", ["", " ", "\t\n", "a\x00b", "a\r\nb", "a\x7fb", None, 5, b"x", ["x"], True])
def test_each_part_of_a_service_account_is_printable_text(at: int, bad: Any) -> None:
    parts: list[Any] = ["account", CANARY, "12345"]
    parts[at] = bad
    assert ("username", "secret", "project_id")[at] in refused(lambda: ServiceAccountCredentials(*parts))


def test_user_name_with_a_colon_is_rejected() -> None:
    assert "colon" in refused(lambda: ServiceAccountCredentials("a:b", CANARY, "1"))
    assert ServiceAccountCredentials("a", "b:c", "1").secret == "b:c"


def test_error_contains_no_part_of_the_secret() -> None:
    for bad in (f"{CANARY}\x00", f"{CANARY}\nx"):
        refused(ServiceAccountCredentials, "account", bad, "1")
        refused(as_secret, bad)
    refused(lambda: as_secret(f"{CANARY}:x"))


@pytest.mark.parametrize("value", [None, ""])
def test_empty_secret_becomes_none(value: object) -> None:
    assert as_secret(value) is None


@pytest.mark.parametrize("value", [" ", "a:b", "a\nb", "a\x00", 5, b"x", ["x"], True, 0])
def test_invalid_secret_is_rejected(value: object) -> None:
    assert "api_secret" in refused(lambda: as_secret(value))


def test_basic_auth_follows_rfc_7617() -> None:
    """Examples of RFC 7617."""
    assert basic_auth("Aladdin", "open sesame") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert basic_auth("test", "123£") == "Basic dGVzdDoxMjPCow=="


@dataclasses.dataclass
class Holder:
    held: object


OPAQUE: dict[str, object] = {"credentials": ACCOUNT, "secret": Secret(CANARY), "options": options(credentials=ACCOUNT)}
opaque = pytest.mark.parametrize("held", OPAQUE.values(), ids=list(OPAQUE))


def printed(value: object) -> str:
    out = io.StringIO()
    pprint.pprint(value, stream=out)
    return out.getvalue()


SHOWN_BY: dict[str, Callable[[Any], str]] = {
    "repr": repr,
    "str": str,
    "ascii": ascii,
    "format": format,
    "f-string": lambda value: f"{value} {value!r} {value!s} {value!a}",
    "percent": lambda value: "%s %r %a" % (value, value, value),  # noqa: UP031
    "pprint": printed,
    "reprlib": reprlib.repr,
    "in a list": lambda value: repr([value]),
    "in a dict": lambda value: repr({"held": value}),
    "in an exception": lambda value: repr(ValueError(value)) + str(ValueError(value)),
    "in a dataclass": lambda value: repr(Holder(value)),
    "asdict": lambda value: repr(dataclasses.asdict(Holder(value))),
    "astuple": lambda value: repr(dataclasses.astuple(Holder(value))),
    "copy": lambda value: repr(copy.copy(value)),
    "deepcopy": lambda value: repr(copy.deepcopy(value)),
    "json": lambda value: json.dumps({"held": value}, default=str),
    "orjson": lambda value: orjson.dumps({"held": str(value)}).decode(),
    "dir": lambda value: " ".join(dir(value)),
    "class": lambda value: repr(vars(type(value))),
    "slots": lambda value: repr([getattr(value, name, None) for name in type(value).__slots__ if name != "_value"]),
}


@opaque
@pytest.mark.parametrize("way", list(SHOWN_BY))
def test_secret_is_never_shown(held: Any, way: str) -> None:
    assert CANARY not in SHOWN_BY[way](held)


@pytest.mark.skipif(not hasattr(object, "__getstate__"), reason="new in Python 3.11")
def test_state_of_credentials_hides_the_secret() -> None:
    holders: list[Any] = [ACCOUNT, options(credentials=ACCOUNT)]
    for holder in holders:
        state = repr(holder.__getstate__())
        assert CANARY not in state
        assert "'***'" in state


@opaque
def test_secret_has_no_instance_dict(held: Any) -> None:
    with pytest.raises(TypeError):
        vars(held)


@opaque
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_secret_cannot_be_pickled(held: Any, protocol: int) -> None:
    with pytest.raises(TypeError, match="cannot be pickled") as caught:
        pickle.dumps(held, protocol)
    assert CANARY not in str(caught.value)


@opaque
def test_traceback_with_locals_does_not_show_a_secret(held: Any) -> None:
    def fail(argument: Any) -> None:
        local = {"argument": argument, "list": [argument]}  # noqa: F841  a traceback shows it
        raise RuntimeError("something else")

    try:
        fail(held)
    except RuntimeError as error:
        shown_ = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "local = " in shown_
    assert CANARY not in shown_


def locals_of_package(error: BaseException) -> str:
    """Return the local variables of the package's frames in the traceback."""
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [frame for frame in found.stack if frame.filename.startswith(PACKAGE)]
    assert frames
    return "".join(repr(frame.locals) for frame in frames)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ServiceAccountCredentials("a:b", CANARY, "1"),
        lambda: ServiceAccountCredentials("", CANARY, "1"),
        lambda: ServiceAccountCredentials("account", CANARY, ""),
        lambda: ServiceAccountCredentials("account", f"{CANARY}\x00", "1"),
        lambda: as_secret(f"{CANARY}:x"),
    ],
)
def test_error_leaves_no_secret_in_frames_of_the_package(make: Callable[[], object]) -> None:
    """Error reporters send the local variables of each frame."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert CANARY not in locals_of_package(caught.value)


def test_copy_of_credentials_is_the_same_object() -> None:
    assert copy.copy(ACCOUNT) is ACCOUNT
    assert copy.deepcopy([ACCOUNT])[0] is ACCOUNT
    assert copy.deepcopy(options(credentials=ACCOUNT)).credentials is ACCOUNT


def test_equal_secrets_have_equal_hashes() -> None:
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert Secret("a").reveal() == "a"


@pytest.mark.parametrize("system", IdMerge)
@pytest.mark.parametrize("spell", [lambda one: one, lambda one: one.value, lambda one: one.value.upper()])
def test_id_merge_is_accepted_as_enum_and_as_text(system: IdMerge, spell: Callable[[IdMerge], Any]) -> None:
    given = spell(system)
    emulator = mixpanel_async.emulator.Emulator(given)
    assert emulator.id_merge is system
    for client in (
        mixpanel_async.AsyncMixpanel("token", id_merge=given),
        mixpanel_async.AsyncMixpanel.from_env({"MIXPANEL_TOKEN": "token"}, id_merge=given),
        emulator.client(id_merge=given),
    ):
        assert client.id_merge is system


@pytest.mark.parametrize("value", ["", "simple", 1, b"original", ["original"], IdMerge])
def test_client_refuses_an_unknown_id_merge(value: Any) -> None:
    text = refused(lambda: mixpanel_async.AsyncMixpanel("token", id_merge=value))
    assert text.startswith("id_merge must be legacy, original or simplified, not ")


@pytest.mark.parametrize(("text", "is_on"), [("1", True), ("YES", True), (" on ", True), ("0", False), ("", False)])
def test_environment_allows_http(text: str, is_on: bool) -> None:
    variables = {"MIXPANEL_TOKEN": "t", "MIXPANEL_API_HOST": "http://emulator:8080", "MIXPANEL_ALLOW_HTTP": text}
    if is_on:
        AsyncMixpanel.from_env(variables)
    else:
        with pytest.raises(ConfigurationError, match="MIXPANEL_ALLOW_HTTP=1"):
            AsyncMixpanel.from_env(variables)
    AsyncMixpanel.from_env(variables, allow_http=True)
    with pytest.raises(ConfigurationError, match="must use https"):
        AsyncMixpanel.from_env(variables, allow_http=False)


def test_misspelled_permission_of_http_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="MIXPANEL_ALLOW_HTTP must be one of"):
        AsyncMixpanel.from_env({"MIXPANEL_TOKEN": "t", "MIXPANEL_ALLOW_HTTP": "maybe"})
