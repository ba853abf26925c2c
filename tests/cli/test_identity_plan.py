"""The command `mixpanel-async identity plan`: which calls join pairs of ids, and why others are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from repair_command import PlanText, anonymous, run, write_lines

A1, A2, A3 = anonymous(1), anonymous(2), anonymous(3)
B1 = "1a2b3c4d5e6f70-0123456789abcd-1f2e3d4c-75300-1a2b3c4d5e7081"
N1 = "visitor-1"
U1, U2, U9 = "user-1", "user-2", "user-9"
D1, D2 = "device-1", "device-2"

Row = tuple[str, str, str]
TAKEN, IN_FORM = "errAnonDistinctIdAssignedAlready", "errAnonDistinctIdNonGUIDForm"
TWO_USERS = (
    "two user ids cannot become one person in a Simplified project; choose one of them, and send later events and "
    "profile updates under it"
)
ALIASED, MANY, SAME = "errAliasAlreadyExists", "errManyIDs", "errSameIDs"


def tracked(distinct_id: str = "", **properties: str) -> dict[str, Any]:
    own = {f"${name}": value for name, value in properties.items()}
    return {"event": "Viewed", "properties": {"time": 1, "distinct_id": distinct_id, **own}}


def identified(user: str, anon: str, **properties: Any) -> dict[str, Any]:
    return {"event": "$identify", "properties": {"$identified_id": user, "$anon_id": anon, **properties}}


@dataclass(frozen=True)
class Worked:
    """Sequence of the fact sheet. Its calls are pairs, after its earlier events.

    Args:
        name: system and row.
        pairs: kind and ids.
        calls: the calls that are sent.
        left_out: words and codes of the pairs that are left out, in order.
        people: the people after the calls, as far as they change.
        history: earlier events.
        arguments: further arguments of the command.
    """

    name: str
    pairs: Sequence[Row]
    calls: Sequence[Row] = ()
    left_out: Sequence[tuple[str, str]] = ()
    people: Sequence[set[str]] = ()
    history: Sequence[dict[str, Any]] = field(default=())
    arguments: Sequence[object] = ()


def identify(user: str, anon: str) -> Row:
    return "identify", user, anon


def alias(original: str, new: str) -> Row:
    return "alias", original, new


def merge(first: str, second: str) -> Row:
    return "merge", first, second


def link(user: str, device: str) -> Row:
    return "link", user, f"$device:{device}"


MANY_DEVICES = [identify(U1, anonymous(number)) for number in range(510)]
ROW_1 = [tracked(A1), identified(U1, A1)]

SEQUENCES = [
    Worked("original 1", [identify(U1, A1)], [identify(U1, A1)], people=[{U1, A1}], history=[tracked(A1)]),
    Worked("original 2", [identify(U1, A2)], [identify(U1, A2)], people=[{U1, A1, A2}], history=ROW_1),
    Worked("original 3", [identify(U1, A1)], left_out=[("joined", "")], history=[*ROW_1, tracked(A1)]),
    Worked("original 4", [identify(U2, A2)], [identify(U2, A2)], people=[{U2, A2}], history=ROW_1),
    Worked("original 5", [identify(U2, A1)], left_out=[("fails", TAKEN)], history=ROW_1),
    Worked("original 6", [identify(U1, N1)], left_out=[("fails", IN_FORM)]),
    Worked("original 6, browser SDK", [identify(U1, B1)], [identify(U1, B1)], people=[{U1, B1}]),
    Worked("original 7", [identify(A1, A1)], left_out=[("fails", SAME)]),
    Worked(
        "original 8",
        [alias(A1, A2), alias(A2, A3), identify(U1, A1)],
        [identify(U1, A1), alias(A1, A2), alias(A2, A3)],
        people=[{U1, A1, A2, A3}],
    ),
    Worked(
        "original 9",
        [merge(A1, A2), merge(A2, A3), identify(U1, A1)],
        [identify(U1, A1), merge(A1, A2), merge(A2, A3)],
        people=[{U1, A1, A2, A3}],
    ),
    Worked("original 10", [alias(U1, A1), alias(U1, A2)], [alias(U1, A1), alias(U1, A2)], people=[{U1, A1, A2}]),
    Worked("original 11", [alias(U1, "x"), alias(U2, "x")], [alias(U1, "x")], [("fails", ALIASED)], [{U1, "x"}]),
    Worked(
        "original 12",
        [identify(U1, A1)],
        [identify(U1, A1)],
        people=[{U1, A1}],
        history=[tracked(U1, device_id=A1, user_id=U1)],
    ),
    Worked(
        "original 13",
        [identify(U1, A1), identify(U2, A2), merge(U1, U2)],
        [identify(U1, A1), identify(U2, A2), merge(U1, U2)],
        people=[{U1, U2, A1, A2}],
    ),
    Worked("original 14", [merge(A1, A2)], [merge(A1, A2)], people=[{A1, A2}]),
    Worked("original 15", [alias(U1, U9)], [alias(U1, U9)], people=[{U1, U9}]),
    Worked(
        "original 16 and 17",
        MANY_DEVICES,
        MANY_DEVICES[:499],
        [("fails", MANY)] * 11,
        [{U1, *(anonymous(number) for number in range(499))}],
    ),
    Worked(
        "original 18",
        [merge(A1, A2), merge(U1, U2), merge(A1, U1)],
        [merge(A1, A2), merge(U1, U2)],
        [("fails", MANY)],
        [{A1, A2}, {U1, U2}],
        arguments=["--cluster-limit", 3],
    ),
    Worked(
        "original 19", [identify(U1, A1)], [identify(U1, A1)], people=[{U1, A1}], history=[tracked(A1), tracked(U1)]
    ),
    Worked("original 20", [identify(U1, A1)] * 2, [identify(U1, A1)], [("implied", "")], [{U1, A1}]),
    Worked(
        "original 21",
        [identify(U2, A2)],
        left_out=[("fails", TAKEN)],
        history=[
            identified(U1, A1),
            {"event": "$create_alias", "properties": {"distinct_id": U1, "alias": A2}},
        ],
    ),
    Worked("legacy 3", [alias(D1, U1)], [alias(D1, U1)], people=[{D1, U1}], history=[tracked(D1), tracked(U1)]),
    Worked(
        "legacy 6",
        [alias(D2, U1)],
        left_out=[("fails", ALIASED)],
        history=[{"event": "$create_alias", "properties": {"distinct_id": D1, "alias": U1}}, tracked(D2)],
    ),
    Worked("legacy, chain", [alias(D1, U1), alias(U1, U2)], [alias(D1, U1), alias(U1, U2)], people=[{D1, U1, U2}]),
    Worked(
        "legacy, other calls",
        [identify(U1, A1), merge(U1, U2)],
        left_out=[
            ("no-effect", f"{kind} has no effect in a Legacy project; use the kind alias or auto")
            for kind in ("identify", "merge")
        ],
    ),
    Worked(
        "legacy, auto",
        [("auto", D1, U1), ("auto", D2, U1)],
        [alias(D1, U1), alias(D2, D1)],
        people=[{D1, D2, U1}],
    ),
    Worked(
        "simplified, new sign-up",
        [identify(U1, D1)],
        [link(U1, D1)],
        people=[{U1, f"$device:{D1}"}],
        history=[tracked(device_id=D1)],
    ),
    Worked(
        "simplified, second device",
        [merge(D2, U1)],
        [link(U1, D2)],
        people=[{U1, f"$device:{D1}", f"$device:{D2}"}],
        history=[tracked(device_id=D1, user_id=U1), tracked(device_id=D2)],
    ),
    Worked(
        "simplified, reset between two users",
        [identify(U1, D1), identify(U2, D2)],
        [link(U1, D1), link(U2, D2)],
        people=[{U1, f"$device:{D1}"}, {U2, f"$device:{D2}"}],
    ),
    Worked(
        "simplified, no reset",
        [identify(U2, D1)],
        left_out=[("fails", "deviceHasOtherUser")],
        history=[tracked(device_id=D1, user_id=U1)],
    ),
    Worked(
        "simplified, two users",
        [merge(U1, U2), alias(U1, U9)],
        left_out=[("no-effect", TWO_USERS)] * 2,
    ),
    Worked(
        "simplified, id without prefix is a user",
        [identify(U1, "phone")],
        left_out=[("no-effect", TWO_USERS)],
        history=[tracked(user_id="phone")],
    ),
    Worked(
        "simplified, two devices",
        [merge(f"$device:{D1}", f"$device:{D2}")],
        left_out=[
            ("no-effect", "two devices become one person only through a user; pair each of them with the user's id")
        ],
    ),
    Worked(
        "simplified, device of a user and another device",
        [merge(f"$device:{D1}", f"$device:{D2}")],
        [link(U1, D2)],
        people=[{U1, f"$device:{D1}", f"$device:{D2}"}],
        history=[tracked(device_id=D1, user_id=U1)],
    ),
    Worked("simplified, repeated", [identify(U1, D1)] * 2, [link(U1, D1)], [("implied", "")], [{U1, f"$device:{D1}"}]),
    Worked(
        "simplified, linked before",
        [identify(U1, D1)],
        left_out=[("joined", "")],
        history=[tracked(device_id=D1, user_id=U1)],
    ),
]


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda one: one.name)
def test_sequence_of_the_documents_is_planned(tmp_path: Path, sequence: Worked) -> None:
    pairs = write_lines(
        tmp_path / "pairs.ndjson", [{"kind": kind, "first": a, "second": b} for kind, a, b in sequence.pairs]
    )
    history = ["--without-history"]
    if sequence.history:
        history = ["--against", str(write_lines(tmp_path / "history.ndjson", sequence.history))]
    system = sequence.name.split(" ")[0].rstrip(",")
    result = run("plan", pairs, *history, "--id-merge", system, "--allow-user-merge", *sequence.arguments)
    plan = PlanText(tmp_path / "pairs.ndjson.plan")
    assert plan.calls == list(sequence.calls)
    assert [(word, code) for word, _, code in plan.left_out] == list(sequence.left_out)
    if all(len(ids) <= 20 for ids in sequence.people):
        assert set(plan.persons) == {frozenset(ids) for ids in sequence.people}
    apart = [word for word, _ in sequence.left_out if word not in {"joined", "implied"}]
    assert result.status == (3 if apart else 0)


HEADERS = {
    "first,second": "merge",
    "Original,alias_id": "alias",
    "distinct_id1,distinct_id2": "merge",
    "identified_id,anon_id": "identify",
    "$user_id,$device_id": "identify",
}


@pytest.mark.parametrize("header", HEADERS)
def test_header_names_the_call(tmp_path: Path, header: str) -> None:
    (tmp_path / "pairs.csv").write_text(f"{header}\n{U1},{A1}\n")
    run("plan", tmp_path / "pairs.csv", "--without-history", "--id-merge", "original")
    assert PlanText(tmp_path / "pairs.csv.plan").calls == [(HEADERS[header], U1, A1)]


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("pairs.csv", f"{U1},{A1}\n{A2},{U2}\n", ()),
        ("pairs.csv", f"\ufeffkind,second,first,note\nmerge,{A1},{U1},x\n,{U2},{A2},\n", ()),
        ("pairs.csv", f"merge,{U1},{A1}\nauto,{A2},{U2}\n", ()),
        ("pairs.tsv", f"{U1}\t{A1}\n{A2}\t{U2}\n", ()),
        ("pairs.txt", f"{U1};{A1}\n\n{A2};{U2}\n", ("--delimiter", ";")),
        ("pairs.csv", f"mail,device,uid\nx,{A1},{U1}\nx,{U2},{A2}\n", ("--columns", "uid,device")),
        ("pairs.ndjson", f'{{"first":"{U1}","second":"{A1}"}}\n{{"distinct_id1":"{A2}","distinct_id2":"{U2}"}}\n', ()),
        ("pairs.json", f'[{{"uid":"{U1}","d":"{A1}"}},{{"uid":"{A2}","d":"{U2}"}}]', ("--columns", "uid,d")),
    ],
)
def test_every_form_of_pairs_is_read(tmp_path: Path, name: str, text: str, arguments: Sequence[str]) -> None:
    (tmp_path / name).write_text(text)
    result = run("plan", tmp_path / name, "--without-history", "--id-merge", "original", *arguments)
    assert result.status == 0, result
    assert PlanText(tmp_path / f"{name}.plan").calls == [("merge", U1, A1), ("merge", A2, U2)]


def test_lines_without_a_pair_are_listed_with_the_reason(tmp_path: Path) -> None:
    lines = [f"{U1},{A1}", f"{U1}", f"link,{U1},{A2}", "null," + U1, f"merge,{U1},{U1}", f"merge,{U1},"]
    (tmp_path / "pairs.csv").write_text("kind,first,second\nmerge," + "\n".join(lines) + "\n")
    result = run("plan", tmp_path / "pairs.csv", "--without-history", "--id-merge", "original")
    assert result.status == 3
    reasons = [line.partition(" # ")[2] for line in (tmp_path / "pairs.csv.plan").read_text().splitlines()]
    assert [reason for reason in reasons if reason] == [
        "has the wrong number of cells: 1, not 3",
        "has the kind 'link'; use alias, merge, identify or auto",
        "has the wrong number of cells: 2, not 3",
        "both ids are the same",
        "the second id must not be blank",
    ]


def test_summary_names_each_reason_once(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("".join(f"user-{one},person-{one}\n" for one in range(30)))
    result = run("plan", pairs, "--without-history", "--id-merge", "simplified")
    assert result.status == 3, result
    assert f"  pairs.csv:1 and 29 more: {TWO_USERS}\n" in result.output
    assert result.output.count(TWO_USERS) == 1


def test_merge_of_two_users_needs_permission(tmp_path: Path) -> None:
    history = write_lines(tmp_path / "history.ndjson", [identified(A3, A1), identified(U2, A2)])
    (tmp_path / "pairs.csv").write_text(f"{A1},{A2}\n")
    result = run("plan", tmp_path / "pairs.csv", "--against", history, "--id-merge", "original")
    assert result.status == 3
    assert f"merges the users '{A3}' and 'user-2'; allow it with --allow-user-merge" in result.output
    assert PlanText(tmp_path / "pairs.csv.plan").calls == []
    run(
        "plan",
        tmp_path / "pairs.csv",
        "--against",
        history,
        "--replace",
        "--allow-user-merge",
        MIXPANEL_ID_MERGE="Original",
    )
    assert PlanText(tmp_path / "pairs.csv.plan").calls == [("merge", A1, A2)]


PROFILES = [
    {"$distinct_id": U1, "$properties": {"$email": "ann@example.com", "plan": "pro", "$last_seen": "1"}},
    {"$distinct_id": A1, "$properties": {"$email": "a@example.com", "plan": "pro", "$last_seen": "2", "lang": "de"}},
    {"$distinct_id": U2, "$properties": {"$email": "bob@example.com"}},
]


@pytest.mark.parametrize(
    ("system", "pair", "findings"),
    [
        (
            "original",
            f"{U1},{A1}",
            [f'conflict "{U1}" "$email": "{A1}"="a@example.com" "{U1}"="ann@example.com"'],
        ),
        (
            "legacy",
            f"{U1},{A1}",
            [
                f'left-behind "{U1}" "{name}": "{A1}"="{value}"'
                for name, value in (("$email", "a@example.com"), ("plan", "pro"), ("lang", "de"))
            ],
        ),
    ],
)
def test_conflicts_of_profiles_are_listed(tmp_path: Path, system: str, pair: str, findings: list[str]) -> None:
    profiles = write_lines(tmp_path / "people.ndjson", PROFILES)
    (tmp_path / "pairs.csv").write_text(pair)
    run("plan", tmp_path / "pairs.csv", "--without-history", "--profiles", profiles, "--id-merge", system)
    assert PlanText(tmp_path / "pairs.csv.plan").findings == findings


def test_plan_with_odd_ids_is_one_line_for_each_pair(tmp_path: Path) -> None:
    odd = ['a"b\\', "line\nsend merge", "a\u2028\u202e", "ü😀", "x < # x", "\ud800"]
    records = [{"first": U1, "second": one} for one in odd[:-1]]
    result = run(
        "plan",
        write_lines(tmp_path / "pairs.ndjson", records),
        "--without-history",
        "--id-merge",
        "original",
        "--allow-user-merge",
    )
    assert result.status == 0, result
    assert PlanText(tmp_path / "pairs.ndjson.plan").calls == [("merge", U1, one) for one in odd[:-1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--id-merge", "original"], "use --against with raw exports of the project"),
        (["--without-history"], "Missing option '--id-merge'"),
        (["--without-history", "--id-merge", "new"], "'new' is not one of"),
        (["--against", "missing.ndjson", "--id-merge", "original"], "cannot read missing.ndjson"),
        (["--without-history", "--id-merge", "original", "--columns", "x"], "--columns must be two names"),
        (["--without-history", "--id-merge", "original", "--columns", "x,y"], "the header has no column 'x'"),
        (["--without-history", "--id-merge", "original", "--delimiter", ";;"], "--delimiter must be one character"),
        (["--without-history", "--id-merge", "simplified", "--event", "$x"], "--event must not start with $"),
        (["--without-history", "--id-merge", "simplified", "--event", ""], "--event must not be blank"),
    ],
)
def test_usage_error_names_the_option(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "pairs.csv").write_text(f"{U1},{A1}\n")
    result = run(
        "plan",
        tmp_path / "pairs.csv",
        *arguments,
    )
    assert result.status == 2
    assert message in result.errors
    assert not (tmp_path / "pairs.csv.plan").exists()


def test_existing_plan_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(f"{U1},{A1}\n")
    arguments = ("plan", tmp_path / "pairs.csv", "--without-history", "--id-merge", "original")
    assert run(*arguments).status == 0
    text = (tmp_path / "pairs.csv.plan").read_text()
    assert "pairs.csv.plan exists; choose another file" in run(*arguments).errors
    assert run(*arguments, "--replace").status == 0
    assert (tmp_path / "pairs.csv.plan").read_text() == text
    (tmp_path / "pairs.csv.plan.journal").touch()
    assert "was applied" in run(*arguments, "--replace").errors


@pytest.mark.parametrize(("name", "content"), [("a.csv", ""), ("a.csv", "first,second\n\n"), ("a.json", "[]")])
def test_file_without_pairs_is_refused(name: str, content: str, tmp_path: Path) -> None:
    pairs = tmp_path / name
    pairs.write_text(content)
    result = run("plan", pairs, "--without-history", "--id-merge", "original")
    assert (result.status, f"{pairs} has no pairs" in result.errors) == (2, True), result
    assert not pairs.with_name(f"{name}.plan").exists()
