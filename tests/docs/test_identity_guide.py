"""Tables of the identity guides: they say what the client and the emulator do."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from page_snippets import DOCS

import mixpanel_async
from mixpanel_async import ApiError, AsyncMixpanel, IdentityError, IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.identity import FindingKind, Reason
from mixpanel_async.identity.findings import TITLES

GUIDES = DOCS / "guides"
VISITOR = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"
CALLS: dict[str, Callable[[AsyncMixpanel], Awaitable[None]]] = {
    "alias": lambda mp: mp.alias("user-1", VISITOR),
    "identify": lambda mp: mp.identify("user-1", VISITOR),
    "merge": lambda mp: mp.merge(distinct_id1="user-1", distinct_id2=VISITOR),
    "track": lambda mp: mp.track("user-1", "Signed in", user_id="user-1", device_id=VISITOR),
}


def table_below(page: str, heading: str) -> list[dict[str, str]]:
    """Return the rows of the first table below a heading, each by column."""
    text = (GUIDES / page).read_text("utf-8").partition(f"# {heading}\n")[2]
    lines = re.search(r"^\|.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    assert lines is not None
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[0].splitlines())
    return [dict(zip((name.strip("| ") for name in header), row, strict=True)) for row in rows]


@pytest.mark.anyio
@pytest.mark.parametrize("id_merge", IdMerge)
@pytest.mark.parametrize("call", CALLS)
async def test_call_does_what_the_table_says(call: str, id_merge: IdMerge) -> None:
    (row,) = [row for row in table_below("identity.md", "Which calls join ids") if row["Call"].startswith(f"`{call}(")]
    said = row[id_merge.value.capitalize()]
    emulator = Emulator(id_merge)
    visitor = f"$device:{VISITOR}" if id_merge is IdMerge.SIMPLIFIED else VISITOR
    # Without `id_merge`, the client does not know that a call has no effect.
    async with emulator.client() as mp:
        for distinct_id in (visitor, "user-1"):
            await mp.track(distinct_id, "Before")
        await mp.flush()
        # `/import` refuses a merge in Simplified. The other calls without effect are accepted.
        with suppress(ApiError):
            await CALLS[call](mp)
    is_joined = emulator.resolve("user-1") == emulator.resolve(visitor)
    past = {event["properties"]["distinct_id"] for event in emulator.events("Before")}
    results = {
        (True, 1): "joins both, also past events",
        (True, 2): "points to",
        (False, 2): "nothing|plain properties",
    }
    assert re.search(results[is_joined, len(past)], said)
    async with emulator.client(id_merge=id_merge) as mp:
        if said == "nothing":
            with pytest.raises(IdentityError):
                await CALLS[call](mp)
        else:
            await CALLS[call](mp)


@pytest.mark.anyio
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("id_merge", IdMerge)
async def test_sign_in_sends_what_the_table_says(id_merge: IdMerge, *, is_new: bool) -> None:
    case = "Sign-up, `is_new=True`" if is_new else "Login"
    (row,) = [row for row in table_below("identity.md", "What sign_in sends") if row["Case"] == case]
    emulator = Emulator(id_merge)
    async with emulator.client(id_merge=id_merge) as mp:
        await mp.bind(device_id=VISITOR).sign_in("user-1", is_new=is_new)
    name = "Signed up" if is_new else "Signed in"
    sent = {
        "the event with both ids": [name],
        "`identify`, then the event": ["$identify", name],
        "`alias` of the user id to the device id, then the event": ["$create_alias", name],
        "`alias` of the device id to the user id, then the event": ["$create_alias", name],
    }
    said = row[id_merge.value.capitalize()]
    events = emulator.raw_events()
    assert [event["event"] for event in events] == sent[said]
    if "alias" in said:
        assert events[0]["properties"]["alias"] == ("user-1" if "user id to" in said else VISITOR)


def test_every_public_error_is_in_the_table() -> None:
    text = "".join(cell for row in table_below("identity.md", "Errors") for cell in row.values())
    for name in mixpanel_async.__all__:
        if name.endswith("Error"):
            assert f"`{name}`" in text


def test_every_code_of_a_refused_call_is_in_the_table() -> None:
    codes = {
        row["`$failure_reason`"].strip("`") for row in table_below("identity-original.md", "When identify is refused")
    }
    assert codes == {reason.value for reason in Reason if reason.value.startswith("err")}


def test_table_has_an_action_for_every_finding() -> None:
    rows = table_below("identity-tools.md", "Act on the findings")
    assert sorted(row["`kind` in JSON"].strip("`") for row in rows) == sorted(kind.value for kind in FindingKind)
    for row in rows:
        assert row["Finding"].replace("`", "").startswith(TITLES[FindingKind(row["`kind` in JSON"].strip("`"))])
