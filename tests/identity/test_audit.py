"""Tests of `Audit`: it finds each kind of fault in an export, and none in a healthy one."""

from __future__ import annotations

import random
from typing import Any

import pytest
from export_generator import FAULTS, SYSTEMS, healthy, seeded
from identity_events import Event, alias, dated, device, identify, merge, track, visitor

from mixpanel_async import ConfigurationError, ValidationError
from mixpanel_async.identity import Audit, AuditReport, FindingKind, Order, Reason

A1, A2 = visitor(1), visitor(2)


def audit(system: Any, events: list[Event], **options: Any) -> AuditReport:
    check = Audit(system, **options)
    for event in events:
        check.add(event)
    return check.report()


def kinds(report: AuditReport) -> set[FindingKind]:
    return {one.kind for one in report.findings}


def cases(report: AuditReport, kind: FindingKind) -> list[tuple[str, ...]]:
    return [case.ids for one in report.findings if one.kind is kind for case in one.cases]


@pytest.mark.parametrize("system", SYSTEMS)
def test_healthy_export_has_no_findings(system: str) -> None:
    events = dated(healthy(system, 200, seed=7))
    random.Random(7).shuffle(events)
    report = audit(system, events)
    assert [(one.kind, one.cases) for one in report.findings] == []
    assert report.persons == 200
    assert (report.finding_count, report.events) == (0, len(events))


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name: str) -> None:
    kind, system, fault = FAULTS[name]
    events = dated([*healthy(system, 20, seed=1), *fault()])
    report = audit(system, events)
    assert kind in kinds(report)
    (finding,) = (one for one in report.findings if one.kind is kind)
    assert (finding.title, finding.advice) != ("", "")


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("seed", range(3))
def test_all_faults_of_a_system_are_found_in_any_order(system: str, seed: int) -> None:
    events, expected = seeded(system, users=100, seed=seed)
    random.Random(seed).shuffle(events)
    assert expected <= kinds(audit(system, events))


def test_every_kind_of_finding_has_a_fault() -> None:
    assert {kind for kind, _, _ in FAULTS.values()} == set(FindingKind)
    assert len(FAULTS) == 12


@pytest.mark.parametrize("order", [Order.ARRIVAL, Order.TIME])
def test_order_of_the_input_does_not_matter(order: Order) -> None:
    events, _ = seeded("original", users=60, seed=3)
    first = audit("original", events, order=order)
    random.Random(4).shuffle(events)
    second = audit("original", events, order=order)
    assert [(one.kind, one.reason, one.count) for one in first.findings] == [
        (one.kind, one.reason, one.count) for one in second.findings
    ]
    assert (first.sizes, first.outcomes) == (second.sizes, second.outcomes)


def test_arrival_decides_although_times_differ() -> None:
    """A call with an old `time`, such as an import, counts when it arrives."""
    early, late = dated([identify("user-1", A1), identify("user-2", A1)])
    late["properties"]["time"] = 1
    assert cases(audit("original", [late, early]), FindingKind.FAILED_CALLS) == [("user-2", A1)]
    assert cases(audit("original", [late, early], order=Order.TIME), FindingKind.FAILED_CALLS) == [("user-1", A1)]
    assert cases(audit("original", [late, early], order=Order.INPUT), FindingKind.FAILED_CALLS) == [("user-1", A1)]


def test_milliseconds_and_seconds_are_one_scale() -> None:
    events = [identify("user-1", A1), identify("user-2", A1)]
    events[0]["properties"]["time"] = 1_700_000_000_000
    events[1]["properties"]["time"] = 1_700_000_001
    report = audit("original", events)
    assert cases(report, FindingKind.FAILED_CALLS) == [("user-2", A1)]
    assert report.ordered_by_time == 2


def test_merge_by_track_has_no_effect() -> None:
    (event,) = dated([merge("user-1", "user-2")])
    del event["properties"]["$import"]
    report = audit("original", [event])
    assert [(one.kind, one.reason) for one in report.findings] == [(FindingKind.IGNORED_CALLS, Reason.NEEDS_IMPORT)]
    assert audit("original", [merge("user-1", "user-2")]).persons == 1


def test_recorded_failure_is_believed() -> None:
    """The call that assigned the anonymous id may be older than the export."""
    refused = identify("user-1", A1)
    refused["properties"]["$failure_reason"] = "errAnonDistinctIdAssignedAlready"
    report = audit("original", [refused])
    (finding,) = report.findings
    assert (finding.reason, finding.count, report.persons) == (Reason.ALREADY_ASSIGNED, 1, 2)


def test_repeated_call_is_no_finding() -> None:
    report = audit("original", dated([identify("user-1", A1), identify("user-1", A1)]))
    assert (report.findings, report.outcomes) == ((), {"merged": 1, "repeated": 1})


def test_cases_are_limited_and_all_are_counted() -> None:
    report = audit("original", [track(f"user-{number}-undefined") for number in range(9)], cases=4)
    (finding,) = report.findings
    assert (finding.count, len(finding.cases), report.finding_count) == (9, 4, 9)
    assert report.as_dict()["findings"][0]["cases"][0]["ids"] == ["user-0-undefined"]


@pytest.mark.parametrize(
    "placeholder",
    [
        "undefined", "NULL", "None", "[object Object]", "00000000-0000-0000-0000-000000000000", "$device:undefined",
        " ", "ffffffff-ffff-ffff-ffff-ffffffffffff", "NaN", "user-undefined", "${userId}", "{{ user.id }}", "%s",
        "(not set)", "null@example.com",
    ],
)  # fmt: skip
def test_placeholder_is_found(placeholder: str) -> None:
    assert cases(audit("original", [track(placeholder)]), FindingKind.PLACEHOLDER_IDS) == [(placeholder,)]


def test_placeholder_that_was_merged_says_how_many_ids_it_has() -> None:
    report = audit("original", [identify("undefined", A1), track("undefined")])
    (finding,) = [one for one in report.findings if one.kind is FindingKind.PLACEHOLDER_IDS]
    assert finding.cases[0].detail == "a person of 2 ids"


@pytest.mark.parametrize(
    "fine", ["user-1", A1, "11111111", "nullable-7", "Nancy", "anna@null.example.com", "undefinedable", "banana", "7"]
)
def test_usual_id_is_no_placeholder(fine: str) -> None:
    assert audit("original", [track(fine)]).findings == ()


def test_placeholders_that_simplified_ignores_are_found() -> None:
    events = [track("user-1", user_id="undefined", device_id="null")]
    assert set(cases(audit("simplified", events), FindingKind.PLACEHOLDER_IDS)) == {("undefined",), ("null",)}


def test_id_with_and_without_prefix_is_a_variant() -> None:
    report = audit("original", [track(f"$device:{A1}"), track(A1)])
    assert cases(report, FindingKind.ID_VARIANTS) == [(f"$device:{A1}", A1)]
    joined = audit("original", [track(f"$device:{A1}"), track(A1), merge(A1, f"$device:{A1}")])
    assert joined.findings == ()


def test_device_of_one_person_with_two_ids_is_not_shared() -> None:
    events = [track("user-1", device_id=A1), track("user-2", device_id=A1)]
    assert kinds(audit("original", events)) == {FindingKind.SHARED_DEVICES}
    assert audit("original", [*events, merge("user-1", "user-2")]).findings == ()


def test_events_before_a_refused_call_are_left_behind() -> None:
    events = dated([track("visitor"), track("visitor"), identify("user-1", "visitor"), track("user-1")])
    report = audit("original", events)
    (finding,) = (one for one in report.findings if one.kind is FindingKind.EVENTS_LEFT_BEHIND)
    assert [(case.ids, case.events) for case in finding.cases] == [(("visitor", "user-1"), 2)]


def test_events_of_another_user_are_not_left_behind() -> None:
    report = audit("original", dated([track(A1), identify("user-1", A1), identify("user-2", A1)]))
    assert kinds(report) == {FindingKind.FAILED_CALLS}


def test_second_device_of_a_legacy_user_is_left_behind() -> None:
    events = [track(A1), alias(A1, "user-1"), track(A2), alias(A2, "user-1")]
    report = audit("legacy", dated(events))
    assert cases(report, FindingKind.FAILED_CALLS) == [(A2, "user-1")]
    assert cases(report, FindingKind.EVENTS_LEFT_BEHIND) == [(A2, "user-1")]


def test_legacy_alias_after_events_leaves_them() -> None:
    report = audit("legacy", dated([track(A1), track("user-1"), alias(A1, "user-1")]))
    (finding,) = report.findings
    assert [(case.ids, case.events) for case in finding.cases] == [(("user-1", A1), 1)]


def test_report_counts_people_by_size() -> None:
    events = dated([identify("user-1", A1), identify("user-1", A2), track("user-2"), merge("user-3", "user-4")])
    report = audit("original", events)
    assert report.sizes == {1: 1, 2: 1, 3: 1}
    assert [(one.person, one.ids) for one in report.largest] == [("user-1", 3), ("user-3", 2)]
    assert (report.persons, report.joined_persons, report.ids, report.calls) == (3, 2, 6, 3)
    assert report.persons_of_several_users == 0
    both = dated([identify("user-1", A1), identify("user-2", A2), merge("user-1", "user-2")])
    assert audit("original", both).persons_of_several_users == 1


def test_incomplete_call_is_counted() -> None:
    assert audit("original", [identify("user-1", "")]).incomplete_calls == 1


def test_audit_ends_with_its_report() -> None:
    check = Audit("simplified")
    check.add(device("d1", "user-1"))
    assert check.report() is check.report()
    assert check.graph.cluster("user-1") == {"user-1", "$device:d1"}
    with pytest.raises(RuntimeError, match="takes no events after its report"):
        check.add(track("user-2"))


@pytest.mark.parametrize("wrong", [[], {}, {"event": "Viewed"}, {"event": 1, "properties": {}}])
def test_malformed_event_is_refused(wrong: Any) -> None:
    check = Audit("original")
    with pytest.raises(ValidationError):
        check.add(wrong)
    assert check.report().events == 0


@pytest.mark.parametrize("options", [{"near_limit": 0}, {"near_limit": 1.1}, {"cases": -1}, {"cluster_limit": 1}])
def test_invalid_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Audit("original", **options)
