"""Outcome of each status and body. No response, however hostile, causes an error or a leak."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime, formatdate
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import ServiceAccountCredentials
from mixpanel_async._encoding.batch_body import BatchBody
from mixpanel_async._encoding.requests import RequestEncoder, zlib_compressor
from mixpanel_async._encoding.responses import MAX_RETRY_AFTER, parse_retry_after, read_api_response, read_response
from mixpanel_async._model.credentials import Secret
from mixpanel_async._model.errors import FailedRecord
from mixpanel_async._model.outcomes import (
    ConfigurationRefused,
    Delivered,
    Outcome,
    PartialFailure,
    Refused,
    Response,
    Retry,
    SplitBatch,
    TransportFailure,
)
from mixpanel_async._model.records import DropReason, RecordKind

NOW = 1_700_000_000.0
CANARY = "canary-secret-7f3a9b"
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def outcome(status: int, body: Any = b"", *, count: int = 10, after: str | None = None, secrets: Any = ()) -> Outcome:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_response(Response(status=status, body=data, retry_after=after), count, now=NOW, secrets=secrets)


def indexes(result: Outcome) -> list[int]:
    assert isinstance(result, PartialFailure)
    return [record.index for record in result.failed]


# Statuses

MISCONFIGURED = {401, 402, 403, 404, 405, 407, *range(300, 400)}
HALVED = {400: DropReason.REJECTED, 422: DropReason.REJECTED, 413: DropReason.TOO_LARGE}
AGAIN_AS_NOT_APPLIED = {429, 503}
AGAIN_MAYBE_APPLIED = {408, *range(500, 600)} - {501, 503, 505}
# Mixpanel does not send these statuses. The records are kept.
STRANGE = {*range(100, 200), *range(200, 300)}


def expected_of(status: int) -> tuple[type[Outcome], object]:
    """Return the expected outcome and its detail, from the table in the module's docstring and fault catalogue C1."""
    if status in MISCONFIGURED:
        return ConfigurationRefused, None
    if status in HALVED:
        return SplitBatch, HALVED[status]
    if status in AGAIN_AS_NOT_APPLIED:
        return Retry, False
    if status in AGAIN_MAYBE_APPLIED or status in STRANGE:
        return Retry, True
    return Refused, None


@pytest.mark.parametrize("body", [b"", b"<html>gateway</html>", b'{"error": "words"}'], ids=["empty", "page", "words"])
def test_each_of_the_500_statuses_has_its_outcome(body: bytes) -> None:
    for status in range(100, 600):
        result = outcome(status, body)
        assert not isinstance(result, Delivered), status
        detail = (
            result.reason if isinstance(result, SplitBatch) else result.applied if isinstance(result, Retry) else None
        )
        assert (type(result), detail) == expected_of(status), status
        assert result.status == status
        assert result.message, status
        if b"words" in body and status not in STRANGE:
            assert result.message == "words", status


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "credentials"),
        (403, "credentials"),
        (404, "no such endpoint"),
        (429, "over its rate limit"),
        (413, "too large"),
        (503, "could not serve"),
        (302, "not accepted"),
        (410, "rejected"),
    ],
)
def test_status_without_a_message_gets_a_default_message(status: int, words: str) -> None:
    result = outcome(status)
    assert not isinstance(result, Delivered)
    assert words in result.message


def test_only_status_200_is_a_success() -> None:
    for status in {*range(100, 600)} - {200}:
        for body in (1, {"status": 1}, {"code": 200, "num_records_imported": 10, "status": "OK"}):
            assert not isinstance(outcome(status, body), Delivered), status


@pytest.mark.parametrize("sent", [True, False])
def test_transport_failure_is_uncertain_only_if_bytes_were_sent(sent: bool) -> None:
    result = read_response(TransportFailure(sent=sent, message="connection reset"), 10, now=NOW)
    assert result == Retry(message="connection reset", applied=sent)


# Documented bodies (fact sheet 1.5)


@pytest.mark.parametrize(
    "body",
    [
        b"1",
        b"1\n",
        b" 1 ",
        {"status": 1},
        {"status": 1, "error": None},
        {"error": "", "status": 1},
        {"status": 1, "num_good_events": 10},
        {"code": 200, "num_records_imported": 2000, "status": "OK"},
        {"code": 200, "status": "OK"},
        {"code": 200, "num_records_imported": 1, "status": 1},
        {"status": 1, "failed_records": []},
        {"status": "OK", "failed_records": None},
    ],
    ids=str,
)
def test_documented_success_is_delivered(body: Any) -> None:
    assert outcome(200, body) == Delivered()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"0", "Mixpanel accepted no record of the request"),
        (b"0\n", "Mixpanel accepted no record of the request"),
        ({"status": 0}, "Mixpanel accepted no record of the request"),
        ({"status": 0, "error": None}, "Mixpanel accepted no record of the request"),
        ({"status": 0, "error": "some text"}, "some text"),
    ],
    ids=str,
)
def test_documented_failure_with_status_200_splits_the_batch(body: Any, message: str) -> None:
    assert outcome(200, body) == SplitBatch(reason=DropReason.REJECTED, status=200, message=message)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"2",
        b"-1",
        b"true",
        b"false",
        b"null",
        b'"1"',
        b'"OK"',
        b"[]",
        b"[1]",
        b"{}",
        b'{"status": true}',
        b'{"status": false}',
        b'{"status": "1"}',
        b'{"status": "ok"}',
        b'{"status": null}',
        b'{"status": 2}',
        b'{"status": [1]}',
        b'{"status": {"status": 1}}',
        b'{"status": "OK", "code": 400}',
        b'{"status": "error", "error": "some text"}',
        b'{"code": 200}',
        b'{"status": 1',
        b'{"code":200,"num_records_imp',
        b"1;",
        b"11",
        b"\xef\xbb\xbf1",
        b"\xff\xfe1",
        b"<!doctype html><title>Sign in to the hotel</title>",
        b"<html>1</html>",
    ],
)
def test_status_200_with_an_unknown_body_is_retried(body: bytes) -> None:
    """A captive portal or a proxy must neither lose records nor count them as delivered (fault catalogue, C14)."""
    result = outcome(200, body)
    assert isinstance(result, Retry)
    assert result.applied


STRICT_400 = {
    "code": 400,
    "error": "some data points in the request failed validation",
    "failed_records": [
        {"index": 0, "$insert_id": "13c0b661", "field": "properties.time", "message": "must be specified"},
        {"index": 2, "insert_id": "f8ac0b4e", "field": "properties.utm_source", "message": "should be valid utf8"},
    ],
    "num_records_imported": 8,
    "status": "Bad Request",
}


@pytest.mark.parametrize("status", [400, 422, 200])
def test_failed_records_are_listed_in_the_outcome(status: int) -> None:
    """Fault catalogue, C12. Mixpanel documents both spellings of the key."""
    body = STRICT_400 if status != 200 else {**STRICT_400, "status": 1}
    assert outcome(status, body) == PartialFailure(
        failed=(
            FailedRecord(index=0, field="properties.time", message="must be specified", insert_id="13c0b661"),
            FailedRecord(index=2, field="properties.utm_source", message="should be valid utf8", insert_id="f8ac0b4e"),
        ),
        status=status,
        message="some data points in the request failed validation",
    )


def test_three_failed_records_of_2_000_fail_alone() -> None:
    body = {"failed_records": [{"index": index} for index in (1999, 0, 77)]}
    assert indexes(outcome(400, body, count=2000)) == [0, 77, 1999]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            401,
            {"code": 401, "error": "Invalid credentials", "status": "Unauthorized"},
            ConfigurationRefused(status=401, message="Invalid credentials"),
        ),
        (
            403,
            {"error": "some text", "status": "error"},
            ConfigurationRefused(status=403, message="some text"),
        ),
        (
            413,
            {
                "code": 413,
                "error": "request exceeds max limit of 2097152 bytes",
                "status": "Request Entity Too Large",
            },
            SplitBatch(reason=DropReason.TOO_LARGE, status=413, message="request exceeds max limit of 2097152 bytes"),
        ),
        (
            429,
            {"code": 429, "error": "Project exceeded rate limits.", "status": "Too Many Requests"},
            Retry(message="Project exceeded rate limits.", applied=False, status=429),
        ),
    ],
)
def test_message_quotes_other_documented_bodies(status: int, body: Any, expected: Outcome) -> None:
    assert outcome(status, body) == expected


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_retry_after_is_read_from_every_retryable_response(status: int) -> None:
    result = outcome(status, after="17")
    assert isinstance(result, Retry)
    assert result.retry_after == 17.0


# Invalid lists of failed records


@pytest.mark.parametrize(
    "index", [-1, 10, 10**6, 2**63, 2**64 - 1, True, False, 1.0, 1e300, "1", None, [1], {"index": 1}], ids=repr
)
def test_invalid_record_index_is_ignored(index: Any) -> None:
    entry = {"index": index, "message": "odd"}
    assert isinstance(outcome(400, {"failed_records": [entry]}), SplitBatch)
    assert indexes(outcome(400, {"failed_records": [entry, {"index": 3}]})) == [3]


def test_record_listed_twice_counts_once_with_the_first_reason() -> None:
    result = outcome(400, {"failed_records": [{"index": 4, "message": "first"}, {"index": 4, "message": "second"}]})
    assert isinstance(result, PartialFailure)
    assert [(record.index, record.message) for record in result.failed] == [(4, "first")]


def test_failed_records_are_sorted_by_index() -> None:
    assert indexes(outcome(400, {"failed_records": [{"index": 5}, {"index": 0}, {"index": 3}]})) == [0, 3, 5]


def test_missing_and_invalid_fields_become_empty() -> None:
    entries = [
        {"index": 0},
        {"index": 1, "field": None, "message": None, "$insert_id": None},
        {"index": 2, "field": 5, "message": ["x"], "insert_id": {"a": 1}},
    ]
    result = outcome(400, {"failed_records": entries})
    assert isinstance(result, PartialFailure)
    assert result.failed == tuple(FailedRecord(index=index, field="", message="") for index in range(3))


def test_documented_insert_id_key_has_priority() -> None:
    result = outcome(400, {"failed_records": [{"index": 0, "$insert_id": "prose", "insert_id": "schema"}]})
    assert isinstance(result, PartialFailure)
    assert result.failed[0].insert_id == "prose"


def test_strings_instead_of_failed_records_become_the_message() -> None:
    """Observed in Simplified projects."""
    result = outcome(400, {"error": "some failed", "failed_records": ["$merge is not supported"]})
    assert result == SplitBatch(reason=DropReason.REJECTED, status=400, message="$merge is not supported")
    assert indexes(outcome(400, {"failed_records": ["words", {"index": 1}]})) == [1]


@pytest.mark.parametrize("listed", ["text", 5, {"0": {"index": 0}}, True, [None], [[{"index": 0}]], [5], [True]])
def test_invalid_list_of_failed_records_splits_the_batch(listed: Any) -> None:
    for status in (400, 422, 200):
        assert isinstance(outcome(status, {"failed_records": listed, "status": 1}), SplitBatch)


@given(entries=st.lists(st.integers(-3, 12), max_size=20), count=st.integers(1, 10))
@PROPERTY
def test_failed_indexes_are_always_within_the_batch(entries: list[int], count: int) -> None:
    result = outcome(400, {"failed_records": [{"index": index} for index in entries]}, count=count)
    named = sorted({index for index in entries if 0 <= index < count})
    if named:
        assert indexes(result) == named
    else:
        assert isinstance(result, SplitBatch)


# Hostile responses

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["status", "error", "code", "failed_records", "index", "message", "field", "$insert_id", "x"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=15,
)


def check(result: Outcome, count: int) -> None:
    if isinstance(result, Delivered):
        return
    texts = [result.message]
    if isinstance(result, PartialFailure):
        found = [record.index for record in result.failed]
        assert found
        assert found == sorted(set(found))
        assert all(type(index) is int and 0 <= index < count for index in found)
        for record in result.failed:
            texts += [record.field, record.message, record.insert_id or ""]
    assert all(len(text) <= 200 and (text.isprintable() or not text) for text in texts)
    if isinstance(result, Retry) and result.retry_after is not None:
        assert 0 <= result.retry_after <= MAX_RETRY_AFTER


@given(body=st.binary(max_size=200), status=st.sampled_from([200, 400, 401, 413, 429, 500, 406]))
@PROPERTY
def test_any_body_has_an_outcome(body: bytes, status: int) -> None:
    check(outcome(status, body), 10)


@given(body=JSON, status=st.sampled_from([200, 400, 422, 401, 413, 429, 500, 406]), count=st.integers(1, 20))
@PROPERTY
def test_any_json_body_has_an_outcome(body: Any, status: int, count: int) -> None:
    result = outcome(status, body, count=count)
    check(result, count)
    if isinstance(result, Delivered):
        assert status == 200
        if body != 1:
            assert body["status"] in {1, "OK"}
            assert not body.get("failed_records")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"error":' * 100_000,
        b'{"error": "\\ud800"}',
        b'{"status": 1e400}',
        b'{"status": ' + b"1" * 400 + b"}",
        b'{"failed_records": [' + b'{"index": 1},' * 100_000 + b'{"index": 1}]}',
        b'{"error": "' + b"x" * 1_000_000 + b'"}',
        b'{"status": 1, "status": 0}',
        b"\x00" * 1000,
        b"\xf0\x28\x8c\x28",
    ],
    ids=range(10),
)
def test_hostile_body_has_an_outcome(body: bytes) -> None:
    for status in (200, 400, 503):
        check(outcome(status, body), 10)


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\u2028b", "a\u202eb", "a\x00b", "a\tb"])
def test_server_message_is_one_printable_line(text: str) -> None:
    result = outcome(400, {"error": text, "failed_records": [{"index": 0, "field": text, "message": text}]})
    assert isinstance(result, PartialFailure)
    for shown in (result.message, result.failed[0].field, result.failed[0].message):
        assert shown.isprintable()
        assert (shown[0], shown[-1]) == ("a", "b")


# Secrets

ACCOUNT = ServiceAccountCredentials("account", CANARY + " +/ü", "12345")


def secrets(*, account: bool) -> tuple[str, ...]:
    encoder = RequestEncoder(
        token="project-token-123",
        credentials=ACCOUNT if account else None,
        events_by_import=account,
        new_compressor=zlib_compressor,
    )
    secret = None if account else Secret(CANARY)
    return encoder.request(RecordKind.IMPORTS, BatchBody([b"{}"]), secret=secret).secrets


def spellings(*, account: bool) -> list[str]:
    plain = ACCOUNT.secret if account else CANARY
    user = "account:" + plain if account else plain + ":"
    return [plain, quote(plain, safe=""), base64.b64encode(user.encode()).decode()]


def shown(result: Outcome) -> str:
    return repr(result)


@pytest.mark.parametrize("account", [True, False], ids=["service account", "project secret"])
@pytest.mark.parametrize("spelling", range(3), ids=["plain", "in a URL", "as sent"])
def test_repeated_secret_is_masked_everywhere(account: bool, spelling: int) -> None:
    secret = spellings(account=account)[spelling]
    text = f"no access for {secret}, and {secret} it was"
    entry = {"index": 0, "field": text, "message": text, "$insert_id": text}
    bodies = ({"error": text, "status": 0}, {"error": text, "failed_records": [entry]}, {"failed_records": [text]})
    for status in (200, 400, 401, 404, 406, 413, 422, 429, 500):
        for body in bodies:
            result = outcome(status, body, secrets=secrets(account=account))
            assert secret not in shown(result)
            assert CANARY not in shown(result)
            if "no access" in shown(result):
                assert "no access for ***, and *** it was" in shown(result)


@pytest.mark.parametrize("account", [True, False])
@pytest.mark.parametrize("start", [160, 180, 190, 195, 199])
def test_secret_across_the_length_limit_is_masked(account: bool, start: int) -> None:
    """Messages are shortened to 200 characters. The first half of a secret must not remain."""
    for secret in spellings(account=account):
        text = "x" * start + secret
        entry = {"index": 0, "field": text, "message": text, "$insert_id": text}
        for body in ({"error": text}, {"failed_records": [entry]}, {"failed_records": [text]}):
            result = shown(outcome(400, body, secrets=secrets(account=account)))
            assert secret[:6] not in result


def test_request_without_authentication_has_no_secrets_to_mask() -> None:
    encoder = RequestEncoder(token="t", credentials=None, events_by_import=False, new_compressor=zlib_compressor)
    for kind in (RecordKind.EVENTS, RecordKind.PEOPLE, RecordKind.GROUPS, RecordKind.IDENTITY):
        assert encoder.request(kind, BatchBody([b"{}"])).secrets == ()


def test_service_account_name_is_not_masked() -> None:
    result = outcome(401, {"error": "account may not import"}, secrets=secrets(account=True))
    assert result == ConfigurationRefused(status=401, message="account may not import")


# Retry-After


def http_date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW, timezone.utc) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("5", 5.0),
        ("0", 0.0),
        ("00", 0.0),
        ("1.5", 1.5),
        (" 7 ", 7.0),
        ("300", 300.0),
        ("301", 300.0),
        ("99999999999", 300.0),
        ("9" * 100, 300.0),
        ("9" * 101, None),
        (http_date(60), 60.0),
        (http_date(0), 0.0),
        (http_date(-60), 0.0),
        (http_date(10**6), 300.0),
        ("Tue, 14 Nov 2023 22:14:20 -0000", 60.0),
        ("Tue, 14 Nov 2023 22:14:20 +0000", 60.0),
        ("Tue, 14 Nov 2023 23:14:20 +0100", 60.0),
        ("Tuesday, 14-Nov-23 22:14:20 GMT", 60.0),
        ("Tue Nov 14 22:14:20 2023", 60.0),
        ("", None),
        (" ", None),
        ("-3", None),
        ("-0", None),
        ("+5", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("infinity", None),
        ("1e400", None),
        ("1_000", None),
        ("0x10", None),
        ("5s", None),
        ("5, 10", None),
        ("5;10", None),
        ("five", None),
        ("５", None),
        ("٥", None),
        ("5\x00", None),
        ("1" * 10_240, None),
        ("x" * 10_240, None),
        ("Tue, 32 Nov 2023 22:14:20 GMT", None),
        ("Tue, 14 Nov 99999 22:14:20 GMT", None),
        ("Tue, 14 Nov 2023 22:14:20 +9999999", None),
        ("Tue, 14 Nov 2023", None),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_retry_after_accepts_each_form(value: str | None, expected: float | None) -> None:
    """Fault catalogue, C2."""
    if value == "Tue, 14 Nov 2023":
        assert parse_retry_after(value, now=NOW) in {None, 0.0}
    else:
        assert parse_retry_after(value, now=NOW) == expected


@given(value=st.text(max_size=120) | st.text("0123456789.-+eE ,:;GMTanovue", max_size=40))
@PROPERTY
def test_invalid_retry_after_is_ignored_or_limited(value: str) -> None:
    seconds = parse_retry_after(value, now=NOW)
    assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER


@given(seconds=st.integers(-(10**9), 10**9), hours=st.integers(-12, 14))
@PROPERTY
def test_retry_after_date_is_independent_of_the_time_zone(seconds: int, hours: int) -> None:
    moment = datetime.fromtimestamp(NOW, timezone.utc) + timedelta(seconds=seconds)
    value = format_datetime(moment.astimezone(timezone(timedelta(hours=hours))))
    assert parse_retry_after(value, now=NOW) == min(max(seconds, 0), MAX_RETRY_AFTER)


@pytest.mark.parametrize("error", [-10 * 86_400, -7_200, -30, 0, 30, 7_200, 10 * 86_400])
@pytest.mark.parametrize("read", [read_response, read_api_response])
def test_retry_after_date_is_compared_with_the_date_of_the_response(read: Callable[..., Outcome], error: int) -> None:
    after = formatdate(NOW + 20, usegmt=True)
    reply = Response(status=503, body=b"", retry_after=after, date=formatdate(NOW, usegmt=True))
    result = read(reply, now=NOW + error)
    assert isinstance(result, Retry)
    assert result.retry_after == 20.0


@pytest.mark.parametrize("date", [None, "", "yesterday", "Thu, 99 Jan 1970 00:00:00 GMT"])
def test_retry_after_date_without_a_date_of_the_response_uses_the_local_clock(date: str | None) -> None:
    reply = Response(status=429, body=b"", retry_after=formatdate(NOW + 20, usegmt=True), date=date)
    result = read_response(reply, now=NOW)
    assert isinstance(result, Retry)
    assert result.retry_after == 20.0


@pytest.mark.parametrize("date", [None, formatdate(NOW, usegmt=True)])
def test_retry_after_in_seconds_ignores_every_clock(date: str | None) -> None:
    result = read_response(Response(status=429, body=b"", retry_after="7", date=date), now=NOW + 1e6)
    assert isinstance(result, Retry)
    assert result.retry_after == 7.0
