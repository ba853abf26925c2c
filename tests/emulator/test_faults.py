"""Tests of every kind of planned fault, on a socket and in-process, and of random faults."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import anyio
import httpx
import pytest
from emulator_wire import TOKEN, Wire, imported

from mixpanel_async import IdMerge, RetryPolicy
from mixpanel_async.emulator import KINDS, Emulator, FaultKind
from mixpanel_async.emulator.http.faults import ConnectionDroppedError, Fault, FaultPlan, PlannedResponse, RandomFaults
from mixpanel_async.emulator.project.responses import EmulatorResponse

EVENT = {"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u"}}
BROKEN = (httpx.RemoteProtocolError, httpx.ReadError)
# Response of a verbose `/track` with each fault: status, content type and body.
TRUE_BODY = b'{"error":null,"status":1}'
SEEN: dict[FaultKind, tuple[int, str, bytes]] = {
    "status": (503, "text/plain; charset=utf-8", b""),
    "slow": (200, "application/json", TRUE_BODY),
    "drip": (200, "application/json", TRUE_BODY),
    "partial": (
        200,
        "application/json",
        b'{"error":"\'properties\' is invalid: refused by a planned fault","status":0}',
    ),
    "type": (200, "application/octet-stream", TRUE_BODY),
    "zero": (200, "text/plain; charset=utf-8", b"0"),
    "empty": (200, "text/plain; charset=utf-8", b""),
    "truncated": (200, "application/json", TRUE_BODY[: len(TRUE_BODY) // 2]),
    "redirect": (307, "text/plain; charset=utf-8", b""),
}
ALWAYS_STORED = {"slow", "drip", "type"}


# Faults of the first requests to `/import` with seed 1 and rate 0.5.
GOLDEN = [
    ("half", False), ("slow", True), None, None, ("drip", False), ("status", False),
    ("half", True), ("status", True), None, ("truncated", True), ("truncated", True), ("drip", True),
]  # fmt: skip


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(IdMerge.ORIGINAL))


def plan(emulator: Emulator, kind: FaultKind, **options: Any) -> None:
    emulator.break_next(kind, seconds=0.01, rate=2_000, **options)


def stored(kind: FaultKind, *, apply: bool) -> int:
    return int(kind in ALWAYS_STORED or (apply and kind != "partial"))


@pytest.mark.parametrize("apply", [False, True])
@pytest.mark.parametrize("kind", SEEN)
def test_fault_is_identical_on_socket_and_in_process(kind: FaultKind, apply: bool) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    plan(emulator, kind, times=2, apply=apply)
    with emulator.serve() as server, httpx.Client(base_url=server.url, trust_env=False) as http:
        answers = [http.post("/track?verbose=1", json=[EVENT]), Wire(emulator).post("/track?verbose=1", [EVENT])]
        assert len(emulator.events()) == 2 * stored(kind, apply=apply)
        for answer in answers:
            assert (answer.status_code, answer.headers["content-type"], answer.content) == SEEN[kind]
        # The connection stays usable for the next request.
        assert http.post("/track", json=[EVENT]).text == "1"
    assert [request.status for request in emulator.requests()] == [SEEN[kind][0]] * 2 + [200]


def test_html_fault_is_sign_in_page_with_status_200(mixpanel: Wire) -> None:
    mixpanel.emulator.break_next("html")
    answer = mixpanel.post("/import", [imported()])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "Sign in" in answer.text
    assert mixpanel.emulator.events() == []


@pytest.mark.parametrize("apply", [False, True])
@pytest.mark.parametrize("kind", ["drop", "half"])
def test_broken_connection_raises_transport_error(kind: FaultKind, apply: bool) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    plan(emulator, kind, times=2, apply=apply)
    with emulator.serve() as server, httpx.Client(base_url=server.url, trust_env=False) as http:
        with pytest.raises(BROKEN):
            http.post("/track?verbose=1", json=[EVENT])
        with pytest.raises(ConnectionDroppedError):
            Wire(emulator).post("/track?verbose=1", [EVENT])
        assert len(emulator.events()) == 2 * apply
        assert http.post("/track", json=[EVENT]).text == "1"


def test_half_fault_sends_head_and_half_of_body() -> None:
    emulator = Emulator()
    emulator.break_next("half", apply=True)
    received = bytearray()

    def read(response: httpx.Response) -> None:
        for chunk in response.iter_raw():
            received.extend(chunk)

    with (
        emulator.serve() as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
        http.stream("POST", "/track?verbose=1", json=[EVENT]) as response,
    ):
        assert (response.status_code, response.headers["content-length"]) == (200, str(len(TRUE_BODY)))
        with pytest.raises(BROKEN):
            read(response)
    assert received == TRUE_BODY[: len(TRUE_BODY) // 2]


@pytest.mark.parametrize("apply", [False, True])
def test_hang_fault_lasts_until_client_timeout(apply: bool) -> None:
    emulator = Emulator()
    emulator.break_next("hang", apply=apply)
    with emulator.serve() as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/track", json=[EVENT], timeout=0.1, trust_env=False)
        assert len(emulator.events()) == apply
        assert httpx.post(f"{server.url}/track", json=[EVENT], trust_env=False).text == "1"
    assert [request.status for request in emulator.requests()] == [None, 200]


def test_server_stops_at_once_during_hang_fault() -> None:
    emulator = Emulator()
    emulator.break_next("hang", apply=True)
    ended: list[Exception] = []

    def ask(url: str) -> None:
        try:
            httpx.post(f"{url}/track", json=[EVENT], timeout=None, trust_env=False)
        except httpx.TransportError as error:
            ended.append(error)

    with emulator.serve() as server:
        client = threading.Thread(target=ask, args=(server.url,))
        client.start()
        while not emulator.requests():
            threading.Event().wait(0.001)
    client.join()
    assert len(ended) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("before", [False, True])
async def test_slow_fault_delays_before_or_after_effect(before: bool) -> None:
    emulator = Emulator()
    emulator.break_next("slow", seconds=3600, before=before)
    transport = httpx.ASGITransport(app=emulator.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        with anyio.move_on_after(0.05) as scope:
            await http.post("/track", json=[EVENT])
    assert scope.cancelled_caught
    assert len(emulator.events()) == (not before)


def test_abandoned_slow_request_still_takes_effect() -> None:
    emulator = Emulator()
    emulator.break_next("slow", seconds=0.2, before=True)
    with emulator.serve() as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/track", json=[EVENT], timeout=0.05, trust_env=False)
        assert emulator.events() == []
        while not emulator.events():
            threading.Event().wait(0.005)


def test_drip_fault_sends_body_at_rate() -> None:
    body = bytes(range(200))
    for rate in (0.5, 10.0, 200.0, 1_000_000.0):
        parts = list(PlannedResponse(response=EmulatorResponse(status=200, body=body), rate=rate).chunks())
        assert b"".join(part for _, part, _ in parts) == body
        assert sum(seconds for seconds, _, _ in parts) == pytest.approx(len(body) / rate)
        assert max(len(part) for _, part, _ in parts) <= max(1, rate / 50)
        assert [has_more for _, _, has_more in parts] == [True] * (len(parts) - 1) + [False]
    empty = PlannedResponse(response=EmulatorResponse(status=200, body=b""), rate=1.0)
    assert list(empty.chunks()) == [(0.0, b"", False)]


class TestPartialFailure:
    def test_strict_import_reports_refused_records_and_accepts_others(self, mixpanel: Wire) -> None:
        mixpanel.emulator.break_next("partial", indexes=[1, 3, 99])
        batch = [imported(number=number, **{"$insert_id": f"id-{number}"}) for number in range(5)]
        answer = mixpanel.post("/import?strict=1", batch)
        assert answer.status_code == 400
        assert answer.json()["num_records_imported"] == 3
        assert [(each["index"], each["$insert_id"]) for each in answer.json()["failed_records"]] == [
            (1, "id-1"),
            (3, "id-3"),
        ]
        assert all(each["field"] and each["message"] for each in answer.json()["failed_records"])
        assert [event["properties"]["number"] for event in mixpanel.emulator.events()] == [0, 2, 4]
        assert mixpanel.post("/import?strict=1", batch).status_code == 200

    def test_import_without_strict_reports_success(self, mixpanel: Wire) -> None:
        mixpanel.emulator.break_next("partial")
        assert mixpanel.post("/import", [imported(), imported()]).json()["num_records_imported"] == 1

    def test_track(self, mixpanel: Wire) -> None:
        mixpanel.emulator.break_next("partial", path="/track")
        assert mixpanel.post("/track", [EVENT, EVENT]).text == "1"
        assert len(mixpanel.emulator.events()) == 1

    @pytest.mark.parametrize("path", ["/engage", "/groups"])
    def test_updates(self, mixpanel: Wire, path: str) -> None:
        mixpanel.emulator.break_next("partial", path=path)
        envelope = {"$token": TOKEN, "$distinct_id": "u", "$group_key": "k", "$group_id": "g"}
        answer = mixpanel.post(f"{path}?strict=1", [{**envelope, "$set": {name: 1}} for name in "ab"]).json()
        assert (answer["num_good_events"], [each["index"] for each in answer["failed_records"]]) == (1, [0])
        profile = mixpanel.emulator.profile("u") or mixpanel.emulator.group("k", "g") or {}
        assert ("a" in profile, "b" in profile) == (False, True)


def test_redirect_fault_points_to_other_host(mixpanel: Wire) -> None:
    mixpanel.emulator.break_next("redirect", location="http://elsewhere.test/track")
    answer = mixpanel.post("/track", [EVENT])
    assert (answer.status_code, answer.headers["location"]) == (307, "http://elsewhere.test/track")


def test_faults_of_every_kind_apply_in_order_to_their_endpoint(mixpanel: Wire) -> None:
    mixpanel.emulator.break_next("zero", path="/engage")
    mixpanel.emulator.break_next("empty", times=2)
    mixpanel.emulator.break_next("html")
    assert [mixpanel.post("/track", [EVENT]).text[:1] for _ in range(4)] == ["", "", "<", "1"]
    assert mixpanel.engage("u", set={"a": 1}) == "0"
    mixpanel.emulator.break_next("html", times=9)
    mixpanel.emulator.stop_faults()
    assert mixpanel.engage("u", set={"a": 1}) == "1"


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "explode"},
        {"path": "/tracks"},
        {"times": 0},
        {"seconds": -1.0},
        {"seconds": float("nan")},
        {"rate": 0.0},
        {"rate": float("inf")},
        {"location": "http://x/\r\nSet-Cookie: a=b"},
    ],
    ids=str,
)
def test_fault_arguments_out_of_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  each names its own argument
        Emulator().break_next(**{"kind": "drop", **options})


@pytest.mark.parametrize(
    "options",
    [{"rate": 1.1}, {"rate": -0.1}, {"kinds": []}, {"kinds": ["explode"]}, {"paths": ["/x"]}, {"seconds": 0.0}],
    ids=str,
)
def test_random_fault_arguments_out_of_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  each names its own argument
        Emulator().random_faults(1, **options)


class TestRandomPlan:
    def test_fault_depends_only_on_seed_endpoint_and_number(self) -> None:
        plans = [RandomFaults(seed=7, rate=0.5, kinds=KINDS) for _ in range(2)]
        met = [[faults.fault("/import", number) for number in range(200)] for faults in plans]
        assert met[0] == met[1]
        assert met[0] != [RandomFaults(seed=8, rate=0.5, kinds=KINDS).fault("/import", n) for n in range(200)]
        assert met[0] != [plans[0].fault("/track", n) for n in range(200)]

    def test_seed_reproduces_faults_across_releases(self) -> None:
        faults = [RandomFaults(seed=1, rate=0.5).fault("/import", number) for number in range(12)]
        assert [fault and (fault.kind, fault.apply) for fault in faults] == GOLDEN

    def test_rate_and_kinds_match_arguments(self) -> None:
        faults = [RandomFaults(seed="x", rate=0.25, kinds=KINDS).fault("/engage", number) for number in range(4_000)]
        met = Counter(fault.kind for fault in faults if fault is not None)
        assert 900 < sum(met.values()) < 1_100
        assert set(met) == set(KINDS)
        assert min(met.values()) > 40
        assert {fault.apply for fault in faults if fault is not None} == {False, True}

    def test_durations_stay_below_limit(self) -> None:
        faults = [
            RandomFaults(seed=1, rate=1.0, kinds=("slow", "drip"), seconds=0.01).fault("/track", n) for n in range(99)
        ]
        assert all(fault is not None and fault.seconds < 0.01 and 100 / fault.rate <= 0.01 for fault in faults)

    def test_requests_to_other_endpoints_do_not_change_faults(self) -> None:
        def met(order: list[str]) -> dict[str, list[Fault | None]]:
            plan = FaultPlan()
            plan.set_random(RandomFaults(seed=3, rate=0.5))
            seen: dict[str, list[Fault | None]] = {path: [] for path in order}
            for path in order:
                seen[path].append(plan.take(path))
            return seen

        assert met(["/import", "/engage"] * 30) == met(["/engage"] * 30 + ["/import"] * 30)

    def test_faults_apply_to_given_endpoints_until_stopped(self, mixpanel: Wire) -> None:
        mixpanel.emulator.random_faults(1, rate=1.0, kinds=["zero"], paths=["/engage"])
        assert mixpanel.post("/track", [EVENT]).text == "1"
        assert mixpanel.engage("u", set={"a": 1}) == "0"
        mixpanel.emulator.stop_faults()
        assert mixpanel.engage("u", set={"a": 1}) == "1"
        mixpanel.emulator.random_faults(1, rate=1.0, kinds=["zero"])
        mixpanel.emulator.reset()
        assert mixpanel.engage("u", set={"a": 1}) == "1"

    def test_explicit_faults_come_first_and_are_counted(self) -> None:
        plan, faults = FaultPlan(), RandomFaults(seed=1, rate=0.5)
        plan.take("/track")
        plan.set_random(faults)
        plan.add(Fault(kind="drop"), 2)
        assert [plan.take("/track") for _ in range(8)] == [Fault(kind="drop")] * 2 + [
            faults.fault("/track", number) for number in range(2, 8)
        ]

    @pytest.mark.anyio
    @pytest.mark.parametrize("seed", range(4))
    async def test_client_with_retries_loses_nothing(self, seed: int) -> None:
        emulator = Emulator(IdMerge.ORIGINAL)
        emulator.random_faults(seed, rate=0.5, seconds=0.002)
        retry = RetryPolicy(attempts=50, initial=0.001, maximum=0.002)
        async with emulator.client(retry=retry, timeout=0.5) as mp:
            for number in range(12):
                await mp.track(f"user-{number}", "Viewed", {"number": number})
                await mp.flush()
        assert [event["properties"]["number"] for event in emulator.events()] == list(range(12))
        assert len(emulator.requests()) > 12


def test_open_connections_can_be_cut_while_server_runs() -> None:
    emulator = Emulator()
    server = emulator.serve()
    with pytest.raises(RuntimeError):
        server.cut_connections()
    with server, httpx.Client(base_url=server.url, trust_env=False) as http:
        assert http.post("/track", json=[EVENT]).text == "1"
        server.cut_connections()
        # The client notices the dead connection before or while it sends the request.
        try:
            http.post("/track", json=[EVENT])
        except BROKEN:
            http.post("/track", json=[EVENT])
    assert len(emulator.events()) == 2
