"""Tests of the emulator's feature flags: HTTP endpoints, Python API, flag file, and agreement with the client."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
import yaml
from emulator_wire import TOKEN, Wire
from flags_official import context, definition
from flags_server import CT, ON, flag, until

from mixpanel_async import ServiceAccountCredentials
from mixpanel_async.emulator import Emulator
from mixpanel_async.flags import LocalFlags, RemoteFlags, SelectedVariant

with warnings.catch_warnings():
    # The official package depends on libraries that warn on newer Pythons.
    warnings.simplefilter("ignore")
    pytest.importorskip("mixpanel")
    from mixpanel.flags.types import ExperimentationFlags, RemoteFlagsResponse

OPENAPI = Path(os.environ.get("MIXPANEL_OPENAPI_DIR") or Path(__file__).resolve().parents[3] / "shared/openapi")
PERSON = {"distinct_id": "user-1"}
FALLBACK = SelectedVariant("fb")
AUTH = ("any", "")


def ruled(key: str, rule: Any, **fields: Any) -> dict[str, Any]:
    rollout = {"rollout_percentage": 1.0, "runtime_evaluation_rule": rule}
    return flag(key, {"variants": ON, "rollout": [rollout]}, **fields)


def asked(emulator: Emulator, context: Any = PERSON, status: int = 200, /, **parameters: Any) -> Any:
    """Return the flags in the response of `/flags`."""
    text = context if isinstance(context, str) else json.dumps(context)
    response = Wire(emulator).request("GET", "/flags", params={"context": text, **parameters}, auth=AUTH)
    assert response.status_code == status
    return response.json() if status != 200 else response.json()["flags"]


def test_flags_and_definitions_are_served() -> None:
    emulator = Emulator(
        flags=[flag("a", experiment_id="e1", is_experiment_active=True), flag("off", status="disabled")]
    )
    wire = Wire(emulator)
    response = wire.request("GET", "/flags", params={"context": json.dumps(PERSON)}, auth=AUTH)
    assert response.json() == {
        "code": 200,
        "flags": {
            "a": {
                "variant_key": "on",
                "variant_value": True,
                "experiment_id": "e1",
                "is_experiment_active": True,
                "is_qa_tester": False,
            }
        },
    }
    response = wire.request("GET", "/flags/definitions", auth=AUTH)
    assert [one["key"] for one in response.json()["flags"]] == ["a"]
    again = wire.request("GET", "/flags/definitions", auth=AUTH, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", response.headers["etag"])
    emulator.set_flag("b")
    again = wire.request("GET", "/flags/definitions", auth=AUTH, headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 200
    assert [request.path for request in emulator.requests()] == ["/flags", *["/flags/definitions"] * 3]


def test_single_flag_can_be_requested() -> None:
    emulator = Emulator(flags=[flag("a"), flag("b")])
    assert set(asked(emulator)) == {"a", "b"}
    assert set(asked(emulator, flag_key="b")) == {"b"}
    assert asked(emulator, flag_key="ghost") == {}


@pytest.mark.parametrize("bad", ["", "{", "[]", "5", "{}", '{"distinct_id": 5}', '{"distinct_id": null}'])
def test_invalid_context_is_refused(bad: str) -> None:
    answer = asked(Emulator(flags=[flag("a")]), bad, 400)
    assert answer["status"] == "error"
    assert answer["error"] in {
        "context must be a JSON object",
        "distinct_id must be provided in evalContext as a string",
    }


def test_flag_endpoints_require_credentials() -> None:
    account = ("user", "secret", "123")
    wire = Wire(Emulator(token=TOKEN, secret="project-secret", service_account=account, flags=[flag("a")]))
    for path in ("/flags", "/flags/definitions"):
        parameters = {"context": json.dumps(PERSON)}
        for auth, more, status in (
            (None, {}, 401),
            (("wrong", ""), {}, 401),
            (("user", "secret"), {}, 401),
            (("user", "secret"), {"project_id": "123"}, 200),
            ((TOKEN, ""), {}, 200),
            (("project-secret", ""), {}, 200),
        ):
            response = wire.request("GET", path, params=parameters | more, **({"auth": auth} if auth else {}))
            assert response.status_code == status
            if status == 401:
                assert response.json() == {"error": "Invalid credentials", "status": "error"}
    assert wire.request("POST", "/flags/definitions", auth=AUTH).status_code == 405


def test_python_api_changes_flags() -> None:
    emulator = Emulator(flags=[flag("a")])
    emulator.set_flag("checkout", {"color": "red"}, variant_key="red")
    emulator.set_flag("plain")
    assert set(asked(emulator)) == {"a", "checkout", "plain"}
    assert asked(emulator)["checkout"]["variant_value"] == {"color": "red"}
    emulator.remove_flag("a")
    emulator.remove_flag("ghost")
    emulator.flags()[0]["key"] = "changed by the caller"
    assert set(asked(emulator)) == {"checkout", "plain"}
    emulator.set_flags([{"key": "b", "ruleset": {"variants": ON, "rollout": [{"rollout_percentage": 1}]}}])
    assert set(asked(emulator)) == {"b"}
    assert ExperimentationFlags.from_dict({"flags": emulator.flags()}).flags[0].key == "b"
    emulator.reset()
    assert set(asked(emulator)) == {"a"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (5, "needs a key"),
        ({}, "needs a key"),
        ({"key": ""}, "needs a key"),
        ({"key": "f"}, "flag 'f': ruleset must be an object"),
        ({"key": "f", "ruleset": {"variants": [], "rollout": {}}}, "ruleset.rollout must be a list"),
        ({"key": "f", "ruleset": {"variants": [{"key": "a"}], "rollout": []}}, "has no value"),
        ({"key": "f", "ruleset": {"variants": [{"key": 1, "value": 1}], "rollout": []}}, "must be a string"),
        ({"key": "f", "ruleset": {"variants": ON, "rollout": [{}]}}, "has no rollout_percentage"),
        ({"key": "f", "ruleset": {"variants": ON, "rollout": []}, "x": object()}, "cannot be encoded as JSON"),
    ],
)
def test_malformed_definitions_raise_value_error(bad: Any, words: str) -> None:
    emulator = Emulator(flags=[flag("a")])
    with pytest.raises(ValueError, match=words):
        emulator.set_flags([flag("b"), bad])
    with pytest.raises(ValueError, match=words):
        Emulator(flags=[bad])
    assert set(asked(emulator)) == {"a"}


def test_flag_file_is_reloaded_after_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "flags.json"

    def write(content: str) -> None:
        version = file.stat().st_mtime_ns if file.exists() else 0
        file.write_text(content)
        # A change within the time resolution of the file system.
        os.utime(file, ns=(version + 1_000_000, version + 1_000_000))

    write(json.dumps({"flags": [flag("a")]}))
    emulator = Emulator(flags=file)
    assert set(asked(emulator)) == {"a"}
    write(json.dumps([flag("b")]))
    assert set(asked(emulator)) == {"b"}
    for broken in ("{", "5", '{"flags": 5}', '[{"key": "c"}]'):
        write(broken)
        assert set(asked(emulator)) == set(asked(emulator)) == {"b"}
    file.rename(tmp_path / "away")
    assert set(asked(emulator)) == {"b"}
    # One warning for each unusable content.
    assert len(caplog.records) == 5
    (tmp_path / "away").rename(file)
    emulator.set_flags([flag("by hand")])
    assert set(asked(emulator)) == {"by hand"}
    write(json.dumps([flag("c")]))
    assert set(asked(emulator)) == {"c"}
    emulator.set_flags([])
    emulator.reset()
    assert set(asked(emulator)) == {"c"}


@pytest.mark.parametrize("content", [None, "", "5", '[{"key": "c"}]'])
def test_unusable_flag_file_raises_at_start(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "flags.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises((OSError, ValueError)):
        Emulator(flags=str(file))


def test_flags_can_be_set_over_http() -> None:
    emulator = Emulator()
    wire = Wire(emulator)
    answer = wire.request("POST", "/_emulator/set-flags", json={"flags": [flag("a")]})
    assert answer.status_code == 200
    assert [one["key"] for one in wire.request("GET", "/_emulator/flags").json()] == ["a"]
    assert wire.request("POST", "/_emulator/set-flags", json={"flags": [{}]}).status_code == 400
    assert wire.request("POST", "/_emulator/set-flags", json={"flags": 5}).status_code == 400
    assert wire.request("POST", "/_emulator/set-flags").status_code == 400
    assert set(asked(emulator)) == {"a"}


TAGGED = {"distinct_id": "u", "custom_properties": {"tags": ["Pro", "beta"], "age": 30, "plan": "Pro", "n": {"x": 1}}}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"some": [{"var": "tags"}, {"==": [{"var": ""}, "PRO"]}]}, True),
        ({"all": [{"var": "tags"}, {"in": [{"var": ""}, ["pro", "beta"]]}]}, True),
        ({"all": [{"var": "absent"}, True]}, False),
        ({"none": [{"var": "tags"}, {"==": [{"var": ""}, "free"]}]}, True),
        ({">": [{"reduce": [[1, 2], {"+": [{"var": "current"}, {"var": "accumulator"}]}, 0]}, 2]}, True),
        ({"in": ["pro", {"map": [{"var": "tags"}, {"var": ""}]}]}, True),
        ({"==": [{"filter": [[1, 2, 3], {">": [{"var": ""}, 1]}]}, [2, 3]]}, True),
        ({"<": [18, {"var": "age"}, 65]}, True),
        ({"==": [{"var": "age"}, "30"]}, True),
        ({"===": [{"var": "age"}, 30.0]}, True),
        ({"==": [{"var": "plan"}, None]}, False),
        ({"if": [{"==": [{"var": "plan"}, "pro"]}, True, {"unknown": 1}]}, True),
        ({"or": [True, {"unknown": 1}]}, True),
        ({"unknown": 1}, False),
        ({"missing": ["plan", "ghost"]}, True),
        ({"!": [{"missing_some": [1, ["plan", "ghost"]]}]}, True),
        ({"==": [{"var": "n.x"}, 1]}, True),
        ({"==": [{"var": ["ghost", "default"]}, "DEFAULT"]}, True),
        ({"==": [{"substr": ["Enterprise", 0, 5]}, "enter"]}, True),
        ({"==": [{"cat": ["a", 1]}, "a1"]}, True),
        ({"%": [7, 2]}, True),
        ({"-": [1, 1]}, False),
        ({"/": [1, 0]}, False),
        ({"min": [2, 0]}, False),
        ({"some": "text"}, False),
        ({"some": []}, False),
    ],
)
def test_rules_beyond_local_evaluation_are_supported(rule: Any, expected: bool) -> None:
    assert bool(asked(Emulator(flags=[ruled("f", rule)]), TAGGED)) is expected


def test_too_deep_or_huge_rules_are_false() -> None:
    rule: Any = True
    for _ in range(120):
        rule = {"!!": rule}
    assert asked(Emulator(flags=[ruled("f", rule)]), TAGGED) == {}
    assert asked(Emulator(flags=[ruled("f", {"%": ["%0999999999d", 5]})]), TAGGED) == {}


def simple_rule(chance: Random, depth: int = 0) -> Any:
    """Return a rule of the kind that Mixpanel's UI creates, on which all implementations agree."""
    kind = chance.randrange(7 if depth < 2 else 5)
    if kind == 0:
        return {chance.choice(("==", "!=", "===")): [{"var": "Plan"}, chance.choice(("pro", "Free", "STRASSE"))]}
    if kind == 1:
        return {chance.choice(("<", "<=", ">", ">=", "==")): [{"var": "age"}, chance.choice((17, 18, 40))]}
    if kind == 2:
        return {"in": [{"var": "country"}, chance.sample(["DE", "fr", "IN", "us"], 2)]}
    if kind == 3:
        symbol = chance.choice(("===", "!==", "<", "<=", ">", ">=", "=="))
        versions = ("1.10.0", "v1.9", "2", "1.10.0-rc.1", "1.10.0-rc.11", "1.0.0+b", "1.2.3.4", "01.0.0", "")
        return {"semver_compare": [{"var": "appVersion"}, symbol, chance.choice(versions)]}
    if kind == 4:
        symbol = chance.choice(("===", "!==", "<", "<=", ">", ">="))
        return {"datetime_compare": [{"var": "signup"}, symbol, chance.choice((1784160000000, 1784160000999, -1, "x"))]}
    if kind == 5:
        return {"!": [simple_rule(chance, depth + 1)]}
    return {chance.choice(("and", "or")): [simple_rule(chance, depth + 1) for _ in range(2)]}


def simple_properties(chance: Random) -> dict[str, Any]:
    return {
        "plan": chance.choice(("Pro", "free", "straße")),
        "AGE": chance.choice((17, 18, 39.5, 41)),
        "country": chance.choice(("de", "FR", "us")),
        "appversion": chance.choice(("1.10.0", "V1.10", "1.9.9", "1.10.0-rc.2", "2.0.0+x", "1.0.0-01", "x")),
        "signup": chance.choice(
            ("2026-07-15T23:59:59.999Z", "2026-07-16t05:30:00+05:30", "2026-07-16T00:00:00Z", "2026-02-30T00:00:00Z",
             "2026-07-16", "2026-07-16T00:00:60Z", "1969-12-31T23:59:59-23:59")
        ),
    }  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("rounds", "seed"), [(12, 1), pytest.param(400, 2, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
async def test_remote_and_local_evaluation_agree(rounds: int, seed: int) -> None:
    """Check that two implementations without shared code agree, except on rules known to differ."""
    chance = Random(seed)
    matched = 0
    for _ in range(rounds):
        flags = []
        for number in range(20):
            one = definition(chance, f"flag-{number}")
            one["context"] = chance.choice(("distinct_id", "company_id"))
            for variant in one["ruleset"]["variants"]:
                variant["value"] = chance.choice((True, "text", 5, {"a": [1]}))
            for rollout in one["ruleset"]["rollout"]:
                rollout.pop("runtime_evaluation_rule", None)
                if chance.random() < 0.6:
                    rollout["runtime_evaluation_rule"] = simple_rule(chance)
                if "runtime_evaluation_definition" in rollout:
                    rollout["runtime_evaluation_definition"] = {"plan": "PRO"}
            flags.append(one)
        emulator = Emulator(flags=flags)
        async with emulator.client(local_flags=LocalFlags(poll_interval=None), remote_flags=RemoteFlags()) as mp:
            assert await mp.local_flags.wait_ready(5)
            for _ in range(10):
                person = context(chance)
                person = {name: value for name, value in person.items() if isinstance(value, str)}
                person = {"distinct_id": "u", **person, "custom_properties": simple_properties(chance)}
                remote = await mp.remote_flags.get_all_variants(person)
                assert remote is not None
                for key in (one["key"] for one in flags):
                    ours = mp.local_flags.get_variant(key, FALLBACK, person, report_exposure=False)
                    if ours.fallback_reason is not None and ours.fallback_reason.kind == "BACKEND_ERROR":
                        continue
                    theirs = remote.get(key)
                    seen = (ours.variant_key, ours.variant_value) if ours.variant_source == "local" else None
                    assert (theirs and (theirs.variant_key, theirs.variant_value)) == seen, (key, person)
                    matched += seen is not None
    assert matched > 10 * rounds


@pytest.mark.anyio
async def test_client_evaluates_flags_of_emulator() -> None:
    emulator = Emulator(flags=[flag("checkout", {"variants": CT, "rollout": [{"rollout_percentage": 1.0}]})])
    account = ServiceAccountCredentials("user", "secret", "1")
    async with emulator.serve() as server:
        async with emulator.client(
            http_client=None,
            api_host=server.url,
            credentials=account,
            local_flags=LocalFlags(poll_interval=0.01),
            remote_flags=RemoteFlags(),
        ) as mp:
            assert await mp.local_flags.wait_ready(5)
            local = mp.local_flags.get_variant("checkout", FALLBACK, PERSON)
            remote = await mp.remote_flags.get_variant("checkout", FALLBACK, PERSON)
            assert (
                (local.variant_key, local.variant_value)
                == (remote.variant_key, remote.variant_value)
                == ("control", "c")
            )
            emulator.set_flag("checkout", "new")
            await until(lambda: mp.local_flags.get_variant_value("checkout", 0, PERSON, report_exposure=False) == "new")
            assert await mp.remote_flags.get_variant_value("checkout", 0, PERSON, report_exposure=False) == "new"
            await until(lambda: emulator.requests()[-1].status == 304)
            await mp.flush()
        exposures = emulator.events("$experiment_started")
        assert [event["properties"]["Flag evaluation mode"] for event in exposures] == ["local", "remote"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fail",
    [
        lambda emulator, path: emulator.fail_next(status=500, times=2, path=path),
        lambda emulator, path: emulator.drop_connections(2, path=path),
        lambda emulator, path: emulator.break_next("html", 2, path),
        lambda emulator, path: emulator.break_next("half", 2, path),
        lambda emulator, path: emulator.break_next("empty", 2, path),
        lambda emulator, path: emulator.break_next("truncated", 2, path),
        lambda emulator, path: emulator.break_next("zero", 2, path),
        lambda emulator, path: emulator.break_next("redirect", 2, path),
    ],
    ids=["500", "drop", "html", "half", "empty", "truncated", "zero", "redirect"],
)
async def test_planned_faults_apply_to_flags(fail: Callable[[Emulator, str], None]) -> None:
    emulator = Emulator(flags=[flag("f")])
    async with emulator.client(local_flags=LocalFlags(poll_interval=0.01), remote_flags=RemoteFlags()) as mp:
        assert await mp.local_flags.wait_ready(5)
        fail(emulator, "/flags")
        found = await mp.remote_flags.get_variant("f", FALLBACK, PERSON)
        assert found.fallback_reason is not None
        assert found.fallback_reason.kind == "BACKEND_ERROR"
        await mp.remote_flags.get_variant("f", FALLBACK, PERSON)
        assert await mp.remote_flags.is_enabled("f", PERSON)
        fail(emulator, "/flags/definitions")
        await until(lambda: mp.stats().flags.failures >= 1)  # type: ignore[union-attr]
        assert mp.local_flags.is_enabled("f", PERSON)


def test_random_faults_skip_flags_by_default() -> None:
    emulator = Emulator(flags=[flag("f")])
    emulator.random_faults(1, rate=1.0, kinds=["status"])
    assert set(asked(emulator)) == {"f"}
    emulator.random_faults(1, rate=1.0, kinds=["status"], paths=["/flags"])
    response = Wire(emulator).request("GET", "/flags", params={"context": json.dumps(PERSON)}, auth=AUTH)
    assert response.status_code >= 400


@pytest.mark.anyio
async def test_concurrent_requests_see_consistent_flags() -> None:
    emulator = Emulator()
    async with emulator.client(remote_flags=RemoteFlags()) as mp, anyio.create_task_group() as tasks:

        async def evaluate() -> None:
            for _ in range(20):
                found = await mp.remote_flags.get_variant_value("f", "none", PERSON, report_exposure=False)
                assert found in {"none", *range(20)}

        for _ in range(5):
            tasks.start_soon(evaluate)
        for number in range(20):
            emulator.set_flag("f", number)
            await anyio.lowlevel.checkpoint()


def test_official_sdk_reads_flag_responses() -> None:
    emulator = Emulator(flags=[flag("a", experiment_id="e"), ruled("b", {"==": [1, 1]}), flag("c")])
    wire = Wire(emulator)
    answer = wire.request("GET", "/flags", params={"context": json.dumps(TAGGED)}, auth=AUTH).json()
    assert set(RemoteFlagsResponse.from_dict(answer).flags) == {"a", "b", "c"}
    answer = wire.request("GET", "/flags/definitions", auth=AUTH).json()
    assert [one.key for one in ExperimentationFlags.from_dict(answer).flags] == ["a", "b", "c"]


@pytest.mark.skipif(
    not (OPENAPI / "feature-flags.openapi.yaml").is_file(),
    reason="Mixpanel's OpenAPI file not found; set MIXPANEL_OPENAPI_DIR to its directory",
)
def test_flag_responses_match_openapi_file() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = yaml.safe_load((OPENAPI / "feature-flags.openapi.yaml").read_text())

    def schema(name: str) -> Any:
        return {**document, "$ref": f"#/components/schemas/{name}"}

    emulator = Emulator(flags=[flag("a", experiment_id="e", is_experiment_active=True), flag("b")])
    wire = Wire(emulator)
    answer = wire.request("GET", "/flags", params={"context": json.dumps(PERSON)}, auth=AUTH).json()
    jsonschema.validate(answer, schema("EvaluateFlagsResponse"))
    jsonschema.validate(asked(emulator, "{}", 400), schema("ErrorResponse"))
    answer = wire.request("GET", "/flags/definitions", auth=AUTH).json()
    jsonschema.validate(answer, schema("FlagDefinitionsResponse"))
