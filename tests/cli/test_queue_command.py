"""Command `mixpanel-async queue` with a real server: output, exit status and effect on the queue."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any, Final

import pytest
from redis_server import RedisServer
from typer.testing import CliRunner, Result

from mixpanel_async import DropReason
from mixpanel_async.cli.app import app
from mixpanel_async.outbox import DeadEntry, Entry, QueuePurged, RedisOutbox
from mixpanel_async.outbox.packing import pack, stored_form, unpack

TOKEN: Final = "0123456789abcdef0123456789abcdef"
# A redirection to a wrong server must not show it.
SECRET: Final = "s3cret"


def event(number: int, person: str = "ada") -> bytes:
    properties = {"token": TOKEN, "distinct_id": person, "time": 1_700_000_000_000, "number": number}
    return json.dumps({"event": "Viewed", "properties": properties}, separators=(",", ":")).encode()


def update(person: str, operation: str) -> bytes:
    return json.dumps({"$token": TOKEN, "$distinct_id": person, operation: {"a": 1}}, separators=(",", ":")).encode()


def entry(
    lane: str, records: Sequence[bytes], *, once_only: tuple[int, ...] = (), sequence: int | None = None
) -> Entry:
    return Entry(
        lane=lane,
        records=len(records),
        body=pack(records, TOKEN).body,
        non_idempotent=once_only,
        accepted_at=1_700_000_000.0,
        sequence=sequence,
    )


@pytest.fixture
def outbox(redis_server: RedisServer) -> RedisOutbox:
    """Queue with three waiting events, a waiting `$set` and `$add`, a rejected event and an uncertain `$add`.

    A live worker has read the waiting updates.
    """
    outbox = RedisOutbox(redis_server.url, partitions=2)

    async def fill() -> None:
        writer, inbox = outbox.writer(TOKEN, "web-1"), outbox.inbox(TOKEN, "worker-1")
        await writer.open()
        await inbox.open()
        await inbox.heartbeat()
        await writer.put([entry("events", [event(0), event(1, "eve\x1b[2J")])])
        await writer.put([entry("people:0", [update("bob", "$add")], once_only=(0,), sequence=1)])
        found = {one.id.lane: one for one in await inbox.read(["events", "people:0"], max_records=100, wait=0)}
        events, updates = found["events"], found["people:0"]
        await inbox.settle(
            [events.id, updates.id],
            [
                DeadEntry(
                    id=events.id,
                    reason=DropReason.REJECTED,
                    records=stored_form(events.entry)[1:],
                    message="bad\nvalue",
                ),
                DeadEntry(
                    id=updates.id,
                    reason=DropReason.UNCERTAIN,
                    records=stored_form(updates.entry),
                    non_idempotent=(0,),
                ),
            ],
        )
        await writer.put(
            [entry("people:1", [update("ada", "$set"), update("bob", "$add")], once_only=(1,), sequence=1)]
        )
        await inbox.read(["people:1"], max_records=100, wait=0)
        await writer.put([entry("events", [event(number) for number in (2, 3, 4)])])
        await writer.aclose()
        await inbox.aclose()

    asyncio.run(fill())
    return outbox


def run(*arguments: object, url: str | None = None, env: dict[str, str] | None = None) -> Result:
    command, *options = map(str, arguments)
    return CliRunner().invoke(app, ["queue", command, *([] if url is None else [url]), *options], env=env)


def output(outbox: RedisOutbox, *arguments: object) -> str:
    result = run(*arguments, url=outbox.url)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def output_json(outbox: RedisOutbox, *arguments: object) -> Any:
    return json.loads(output(outbox, *arguments, "--json"))


def letters(outbox: RedisOutbox) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output(outbox, "list", "--json").splitlines()]


def assert_accounted(outbox: RedisOutbox) -> dict[str, Any]:
    status: dict[str, Any] = output_json(outbox, "status")
    counters = status["counters"]
    ended = sum(counters[name] for name in ("out", "dead", "uncertain", "purged", "lost"))
    assert counters["in"] + counters["retried"] == ended + status["records"]
    assert status["records"] == sum(one["records"] for one in status["waiting"].values())
    assert status["bytes"] == sum(one["bytes"] for one in status["waiting"].values())
    return status


def test_status_counts_lanes_dead_letters_and_workers(outbox: RedisOutbox) -> None:
    status = assert_accounted(outbox)
    waiting = {lane: (one["records"], one["entries"], one["held"]) for lane, one in status["waiting"].items()}
    assert waiting == {"events": (3, 1, 0), "people:1": (2, 1, 1)}
    assert {reason: one["records"] for reason, one in status["dead"].items()} == {"rejected": 1, "uncertain": 1}
    assert status["oldest"] == 1_700_000_000.0
    assert (status["counters"]["in"], status["counters"]["out"]) == (8, 1)
    (worker,) = status["workers"]
    assert worker["name"].startswith("worker-1#")
    assert 0 < worker["alive_for"] <= 15
    assert (worker["held"], len(worker["lanes"]), worker["kinds"]) == (1, 5, [])
    server = status["server"]
    assert (server["name"] in {"redis", "valkey"}, server["append_only"], server["append_fsync"]) == (
        True,
        True,
        "everysec",
    )
    assert server["policy"] == "noeviction"
    assert [one for one in status["advice"] if "maxmemory" not in one] == []


def test_status_prints_lines(outbox: RedisOutbox) -> None:
    rows = [line.split("\t") for line in output(outbox, "status").splitlines()]
    assert rows[0] == ["state", "what", "records", "bytes", "oldest", "entries held"]
    assert [row[:3] + row[5:] for row in rows[1:5]] == [
        ["waiting", "events", "3", "0"],
        ["waiting", "people:1", "2", "1"],
        ["dead", "rejected", "1", ""],
        ["dead", "uncertain", "1", ""],
    ]
    facts = {row[0]: row[1] for row in rows if len(row) == 2}
    assert facts["waiting"].startswith("5 records in ")
    assert facts["counters"] == "in 8, retried 0, out 1, dead 1, uncertain 1, purged 0, lost 0"


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--max-lag", "5"), 0, ""),
        (("--max-lag", "4"), 3, "5 records wait, more than 4"),
        (("--max-age", "5m"), 3, "the oldest has waited for"),
        (("--max-age", "36500d", "--max-lag", "5", "--json"), 0, ""),
    ],
)
def test_status_is_a_probe(outbox: RedisOutbox, options: tuple[str, ...], code: int, text: str) -> None:
    result = run("status", *options, url=outbox.url)
    assert result.exit_code == code
    assert text in result.stderr
    assert bool(result.stderr) == bool(text)


def test_status_advises(outbox: RedisOutbox, redis_server: RedisServer) -> None:
    async def pause() -> None:
        inbox = outbox.inbox(TOKEN, "worker-2")
        await inbox.open()
        await inbox.pause("/track", 30)
        await inbox.release()
        await inbox.aclose()

    asyncio.run(pause())
    redis_server.command("XADD", "{mixpanel}:identity", "*", "v", "2", "n", "1", "b", "x")
    redis_server.command("DEL", "{mixpanel}:workers")
    advice = output(outbox, "status")
    assert "At Mixpanel's limit" in advice
    assert "A newer version of mixpanel-async wrote to identity" in advice
    assert "No worker is alive" in advice


def test_list_shows_what_and_why(outbox: RedisOutbox) -> None:
    rows = [line.split("\t") for line in output(outbox, "list").splitlines()]
    assert [row[1:3] + row[4:] for row in rows[1:]] == [
        ["events", "rejected", "Viewed", "bad value"],
        ["people", "uncertain", "$add", ""],
    ]
    rejected, uncertain = letters(outbox)
    assert rejected["payload"]["properties"]["distinct_id"] == "eve\x1b[2J"
    assert uncertain["is_once_only"] is True
    assert TOKEN not in json.dumps([rejected, uncertain])
    limited = run("list", "--limit", 1, "--reason", "rejected", "--reason", "uncertain", url=outbox.url)
    assert (len(limited.stdout.splitlines()), limited.stderr) == (
        2,
        "There are more than 1 dead letters; --limit 0 shows all.\n",
    )


def test_retry_puts_dead_letters_back_for_a_worker(outbox: RedisOutbox) -> None:
    result = run("retry", url=outbox.url)
    assert result.stdout == "put back 1 record\n"
    assert "skipped 1 record that may have been applied already" in result.stderr
    assert [letter["reason"] for letter in letters(outbox)] == ["uncertain"]
    (uncertain,) = letters(outbox)
    result = run("retry", "--reason", "uncertain", "--id", "1-1", "--id", uncertain["id"][:-1], url=outbox.url)
    assert result.stdout == "put back 0 records\n"
    assert f"no dead letter has the id 1-1, {uncertain['id'][:-1]}; see" in result.stderr
    assert output_json(outbox, "retry", "--reason", "uncertain", "--id", uncertain["id"]) == {"retried": 1}
    assert assert_accounted(outbox)["counters"]["retried"] == 2

    async def read() -> list[tuple[str, list[bytes], tuple[int, ...]]]:
        inbox = outbox.inbox(TOKEN, "worker-1")
        await inbox.open()
        await inbox.heartbeat()
        found = await inbox.read(["events"], max_records=100, wait=0)
        await inbox.aclose()
        return [(one.id.lane, unpack(one.entry, TOKEN), one.entry.non_idempotent) for one in found]

    assert asyncio.run(read()) == [
        ("events", [event(number) for number in (2, 3, 4)], ()),
        ("events", [event(1, "eve\x1b[2J")], ()),
    ]
    (put_back,) = [json.loads(one) for one in output(outbox, "export").splitlines() if '"people:0/' in one]
    assert (put_back["payload"]["$add"], put_back["is_once_only"]) == ({"a": 1}, True)


def test_purge_deletes_chosen_dead_letters(outbox: RedisOutbox) -> None:
    assert output_json(outbox, "purge", "--older-than", "1h", "--yes") == {"waiting": 0, "dead": 0}
    assert output_json(outbox, "purge", "--reason", "rejected", "--yes") == {"waiting": 0, "dead": 1}
    (left,) = letters(outbox)
    assert output_json(outbox, "purge", "--id", left["id"], "--yes") == {"waiting": 0, "dead": 1}
    assert output_json(outbox, "purge", "--dead", "--yes") == {"waiting": 0, "dead": 0}
    assert assert_accounted(outbox)["dead"] == {}


def test_purge_of_waiting_records_leaves_those_of_a_live_worker(outbox: RedisOutbox, redis_server: RedisServer) -> None:
    assert output(outbox, "purge", "--waiting", "--yes") == "deleted 3 waiting records and 0 dead letters\n"
    status = assert_accounted(outbox)
    assert (set(status["waiting"]), status["counters"]["purged"]) == ({"people:1"}, 3)
    redis_server.command("DEL", "{mixpanel}:workers")
    assert output_json(outbox, "purge", "--waiting", "--yes") == {"waiting": 2, "dead": 0}
    assert assert_accounted(outbox)["records"] == 0


def test_purge_erases_a_person(outbox: RedisOutbox, redis_server: RedisServer) -> None:
    text = output(outbox, "purge", "--distinct-id", "bob", "--yes")
    assert text == "deleted 1 dead letter; workers drop the person's waiting records\n"
    assert [letter["reason"] for letter in letters(outbox)] == ["rejected"]
    # The worker that had read the updates dies.
    redis_server.command("DEL", "{mixpanel}:workers", "{mixpanel}:leases")

    async def read() -> list[tuple[int, ...]]:
        inbox = outbox.inbox(TOKEN, "worker-2")
        await inbox.open()
        await inbox.heartbeat()
        found = await inbox.read(["people:1"], max_records=100, wait=0)
        await inbox.aclose()
        return [one.erased for one in found]

    assert asyncio.run(read()) == [(1,)]
    assert output_json(outbox, "status")["erased"] == 1


def test_worker_learns_of_an_erasure_after_it_has_read_the_records(outbox: RedisOutbox) -> None:
    async def read_and_erase() -> None:
        inbox = outbox.inbox(TOKEN, "worker-2")
        await inbox.open()
        assert not named((await inbox.heartbeat()).erased, 0.0)
        (one,) = await inbox.read(["events"], max_records=100, wait=0)
        async with outbox.admin() as queue:
            await queue.purge(distinct_id="eve")
        erased = (await inbox.heartbeat()).erased
        assert named(erased, one.since)
        # Later records are sent.
        assert not named(erased, inf)
        await inbox.aclose()

    def named(erased: Callable[[bytes, float], bool] | None, since: float) -> bool:
        assert erased is not None
        assert not erased(event(2, "ada"), since)
        return erased(event(1, "eve"), since)

    asyncio.run(read_and_erase())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "nothing to delete"),
        (("--dead",), "add --yes"),
        (("--dead", "--distinct-id", "bob"), "cannot be combined"),
        (("--older-than", "soon"), "is not an age"),
        (("--reason", "bad", "--yes"), "bad"),
    ],
)
def test_purge_refuses_wrong_options(outbox: RedisOutbox, options: tuple[str, ...], text: str) -> None:
    result = run("purge", *options, url=outbox.url)
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.replace("│", " ").split())
    assert len(letters(outbox)) == 2


def test_export_writes_all_records_to_a_new_private_file(outbox: RedisOutbox, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    result = run("export", "--output", path, url=outbox.url)
    assert (result.exit_code, result.stderr) == (0, f"wrote 7 records to {path}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(one["state"], one["kind"]) for one in found] == [
        *[("waiting", "events")] * 3,
        *[("waiting", "people")] * 2,
        ("dead", "events"),
        ("dead", "people"),
    ]
    assert TOKEN not in path.read_text()
    assert output(outbox, "export", "--no-waiting").splitlines() == path.read_text().splitlines()[5:]
    again = run("export", "--output", path, url=outbox.url)
    assert again.exit_code == 1
    assert "cannot create the export file" in again.stderr


def test_export_shows_updates_whose_request_has_begun_as_being_sent(outbox: RedisOutbox) -> None:
    async def begin() -> None:
        inbox = outbox.inbox(TOKEN, "worker-1")
        await inbox.open()
        writer = outbox.writer(TOKEN)
        await writer.open()
        await writer.put([entry("events", [event(5), event(6)], once_only=(1,))])
        found = await inbox.read(["events"], max_records=100, wait=0)
        await inbox.begin([found[-1].id])
        await writer.aclose()
        await inbox.aclose()

    asyncio.run(begin())
    found = [json.loads(line) for line in output(outbox, "export", "--no-dead").splitlines()]
    states = {one["payload"]["properties"]["number"]: one["state"] for one in found if one["kind"] == "events"}
    assert (states[5], states[6]) == ("waiting", "sending")


def test_spoiled_entry_is_exported_without_payload(outbox: RedisOutbox, redis_server: RedisServer) -> None:
    redis_server.command("XADD", "{mixpanel}:imports", "*", "t", "1", "n", "2", "b", "spoiled")
    found = [json.loads(line) for line in output(outbox, "export", "--no-dead").splitlines()]
    assert [one["payload"] for one in found if one["kind"] == "imports"] == [None, None]


def test_removed_queue_is_gone(outbox: RedisOutbox) -> None:
    async def remove() -> None:
        async with outbox.admin() as queue:
            await queue.remove()
            await queue.remove()

    asyncio.run(remove())
    result = run("status", url=outbox.url)
    assert result.exit_code == 1
    assert "there is no queue 'mixpanel' in this Redis" in result.stderr


def test_url_comes_from_the_environment(outbox: RedisOutbox) -> None:
    assert outbox.url is not None
    result = run("list", "--json", env={"MIXPANEL_OUTBOX": outbox.url})
    assert len(result.stdout.splitlines()) == 2
    other = run("list", "--queue", "other", env={"MIXPANEL_OUTBOX": outbox.url})
    assert (other.exit_code, "'other'" in other.stderr) == (1, True)


@pytest.mark.parametrize(
    ("url", "code", "text"),
    [
        (f"redis://user:{SECRET}@127.0.0.1:1/0", 1, "no connection to Redis"),
        (f"http://user:{SECRET}@example.com", 2, "URL must be like redis://"),
        (f"redis://user:{SECRET}@127.0.0.1:port/0", 2, "URL must be like redis://"),
    ],
)
def test_no_error_shows_the_password(url: str, code: int, text: str) -> None:
    for command in (["status"], ["list"], ["retry"], ["purge", "--dead", "--yes"], ["export"]):
        result = run(*command, url=url)
        assert (result.exit_code, result.stdout) == (code, "")
        assert text in result.stderr
        assert SECRET not in result.stderr


def test_wrong_password_is_refused(outbox: RedisOutbox) -> None:
    assert outbox.url is not None
    result = run("status", url=outbox.url.replace("//", f"//nobody:{SECRET}@"))
    assert result.exit_code == 1
    assert "Redis refuses the login" in result.stderr
    assert SECRET not in result.stderr


@pytest.mark.parametrize("command", ["status", "list", "retry", "purge", "export"])
def test_spool_names_the_command_for_a_url(command: str) -> None:
    result = CliRunner().invoke(app, ["spool", command, f"redis://user:{SECRET}@queue/0"])
    assert result.exit_code == 2
    assert "use mixpanel-async queue" in " ".join(result.stderr.replace("│", " ").split())
    assert SECRET not in result.stderr


def test_help_has_examples_and_exit_status() -> None:
    text = CliRunner().invoke(app, ["queue", "--help"]).stdout
    assert "mixpanel-async queue purge redis://queue:6379/0 --distinct-id user-1 --yes" in text
    assert "3 a bound" in " ".join(text.split())


def test_methods_take_collections_and_refuse_nothing(outbox: RedisOutbox) -> None:
    async def check() -> None:
        async with outbox.admin() as queue:
            assert await queue.purge(reasons=[DropReason.REJECTED]) == QueuePurged(dead=1)
            for wrong in ({"reasons": "rejected"}, {"ids": "1-1"}, {"reasons": ["bad"]}, {"older_than": -1.0}, {}):
                with pytest.raises(Exception, match=r"must|unknown|nothing") as raised:
                    await queue.purge(**wrong)
                assert type(raised.value).__name__ == "ConfigurationError"
            with pytest.raises(Exception, match="non-empty"):
                await queue.purge(distinct_id="")

    asyncio.run(check())
