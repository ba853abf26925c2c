"""Demo scenario: one visitor whose ids are joined step by step, with checks against the emulator after each step."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

import anyio

from mixpanel_async import AsyncMixpanel, MixpanelException

from .output import DemoOutput

if TYPE_CHECKING:
    from mixpanel_async.emulator import Emulator

ACCOUNT = "maya@example.com"
SECOND_ACCOUNT = "maya@work.example"
NEW_ADDRESS = "maya@home.example"

_WORKER_EVENT = "Job finished"
_VISITOR_EVENTS = ("Page viewed", "Signed up", "Report opened")
# The visitor's six events and three profile updates.
_VISITOR_RECORDS = 9


class DemoScenario:
    """Runs the steps with the client and checks every statement against the emulator.

    Args:
        mp: an open client, connected to the emulator.
        emulator: the server that the client talks to.
        output: prints the steps and counts expectations.
        events: number of events that the background worker tracks.
    """

    def __init__(self, mp: AsyncMixpanel, emulator: Emulator, output: DemoOutput, events: int) -> None:
        self._mp = mp
        self._emulator = emulator
        self._output = output
        self._events = events
        self._records = events + _VISITOR_RECORDS
        self._worker_seconds = 0.0
        self._laptop = str(uuid.uuid4())
        self._phone = str(uuid.uuid4())
        # Display names by id, in the order in which the visitor gets the ids. Tables use the same order.
        self._display_names = {
            self._laptop: f"laptop {self._laptop[:8]}",
            ACCOUNT: ACCOUNT,
            self._phone: f"phone {self._phone[:8]}",
            SECOND_ACCOUNT: SECOND_ACCOUNT,
            NEW_ADDRESS: NEW_ADDRESS,
        }
        self._identity_calls: list[tuple[str, str, str]] = []

    async def run(self) -> None:
        """Run all steps. The background worker runs concurrently with the visitor's steps."""
        with self._output.progress("delivered", self._records):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._run_step, self._run_worker)
                for step in (self._browse, self._sign_up, self._set_profile, self._log_in, self._merge_accounts):
                    await self._run_step(step)
            self._output.update_progress(self._mp.stats().delivered)
        await self._run_step(self._check_counts)
        self._show_people()
        await self._run_step(self._show_outage)
        self._show_requests()

    async def _run_step(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except MixpanelException as error:
            self._output.expect(
                "no call of this step raises", expected="no error", actual=f"{type(error).__name__}: {error}"
            )

    async def _run_worker(self) -> None:
        started = time.perf_counter()
        for number in range(self._events):
            await self._mp.track(f"worker-{number % 50}", _WORKER_EVENT, {"number": number, "queue": "invoices"})
        await self._mp.flush()
        self._worker_seconds = time.perf_counter() - started

    async def _browse(self) -> None:
        self._output.print_step(
            "1. An anonymous visitor browses on a laptop",
            'await mp.track(laptop, "Page viewed", {"page": "/pricing"})      # 3 pages',
        )
        for page in ("/", "/pricing", "/docs"):
            await self._mp.track(self._laptop, "Page viewed", {"page": page})
        await self._mp.flush()
        self._expect_events("three page views are stored", "Page viewed", 3)
        self._expect_person("the laptop is the visitor's only id", self._laptop)

    async def _sign_up(self) -> None:
        self._output.print_step(
            "2. The visitor signs up",
            f'await mp.alias("{ACCOUNT}", laptop)',
            f'await mp.track("{ACCOUNT}", "Signed up", {{"plan": "free"}})',
        )
        await self._join("alias", lambda: self._mp.alias(ACCOUNT, self._laptop), self._laptop, ACCOUNT)
        await self._mp.track(ACCOUNT, "Signed up", {"plan": "free"})
        await self._mp.flush()
        self._expect_person("laptop and account are one person", self._laptop, ACCOUNT)
        self._expect_events_of_person("the earlier page views belong to that person", 4)

    async def _set_profile(self) -> None:
        self._output.print_step(
            "3. The app sets a user profile",
            f'await mp.people_set("{ACCOUNT}", {{"$name": "Maya", "plan": "free"}})',
            f'await mp.people_increment("{ACCOUNT}", {{"projects": 2}})',
        )
        await self._mp.people_set(ACCOUNT, {"$name": "Maya", "plan": "free"})
        await self._mp.people_increment(ACCOUNT, {"projects": 2})
        await self._mp.flush()
        self._expect_profile(
            "the laptop's id finds the same profile", self._laptop, {"$name": "Maya", "plan": "free", "projects": 2}
        )

    async def _log_in(self) -> None:
        self._output.print_step(
            "4. The same user logs in on a phone",
            'await mp.track(phone, "Page viewed", {"page": "/login"})',
            f'await mp.identify("{ACCOUNT}", phone)',
        )
        await self._mp.track(self._phone, "Page viewed", {"page": "/login"})
        await self._mp.flush()
        self._expect_person("before the login, the phone is a separate person", self._phone)
        await self._join("identify", lambda: self._mp.identify(ACCOUNT, self._phone), self._phone, ACCOUNT)
        self._expect_person(
            "after the login, phone, laptop and account are one person", self._laptop, ACCOUNT, self._phone
        )

    async def _merge_accounts(self) -> None:
        self._output.print_step(
            "5. The user also has a work account, and the two are merged",
            f'await mp.merge(distinct_id1="{ACCOUNT}",',
            f'               distinct_id2="{SECOND_ACCOUNT}")',
        )
        await self._mp.track(SECOND_ACCOUNT, "Report opened")
        await self._mp.people_set(SECOND_ACCOUNT, {"company": "Example Ltd"})
        await self._mp.flush()
        self._expect_person("before the merge, the work account is a separate person", SECOND_ACCOUNT)
        await self._join(
            "merge", lambda: self._mp.merge(distinct_id1=ACCOUNT, distinct_id2=SECOND_ACCOUNT), ACCOUNT, SECOND_ACCOUNT
        )
        self._expect_person("all four ids are one person", self._laptop, ACCOUNT, self._phone, SECOND_ACCOUNT)
        self._expect_events_of_person("all six events belong to that person", 6)
        self._expect_profile(
            "the two profiles are merged into one",
            SECOND_ACCOUNT,
            {"$name": "Maya", "plan": "free", "projects": 2, "company": "Example Ltd"},
        )

    async def _check_counts(self) -> None:
        self._output.print_step(f"In the background, a worker tracked {self._events:,} events on the same client")
        self._expect_events("the server stored each worker event once", _WORKER_EVENT, self._events)
        stats = self._mp.stats()
        self._output.expect(
            "the client counts every record as delivered", expected=self._records, actual=stats.delivered
        )
        undelivered = stats.failed + stats.dropped + stats.uncertain + stats.pending
        self._output.expect("no record is lost or pending", expected=0, actual=undelivered)
        self._output.print_note(
            f"{self._events / self._worker_seconds:,.0f} events per second, with client and server in one process"
        )

    async def _show_outage(self) -> None:
        self._output.print_step(
            "6. Mixpanel is down while the user adds an address", f'await mp.alias("{NEW_ADDRESS}", "{ACCOUNT}")'
        )
        before = self._describe_people(ACCOUNT, NEW_ADDRESS)
        self._emulator.fail_next(status=503, times=3, path="/track")
        raised: MixpanelException | None = None
        try:
            await self._mp.alias(NEW_ADDRESS, ACCOUNT)
        except MixpanelException as error:
            raised = error
            self._output.print_details({"raised": type(error).__name__, "message": error})
        attributes = [getattr(raised, name, None) for name in ("status", "attempts", "endpoint")]
        self._output.expect(
            "the call raises, with status, attempts and endpoint", expected=[503, 3, "/track"], actual=attributes
        )
        self._output.expect("no ids were joined", expected=before, actual=self._describe_people(ACCOUNT, NEW_ADDRESS))

    async def _join(self, method: str, call: Callable[[], Awaitable[object]], *ids: str) -> None:
        before = self._describe_people(*ids)
        await call()
        self._identity_calls.append((method, before, self._describe_people(*ids)))
        entry = self._emulator.identity_log()[-1]
        outcome = entry["$failure_reason"] or entry["outcome"]
        self._output.expect(f"Mixpanel accepts the {method}", expected="merged", actual=outcome)

    def _show_people(self) -> None:
        self._output.print_table(
            "Identities (one id per line; an empty line separates people)",
            ("call", "before", "after"),
            self._identity_calls,
        )
        properties = "\n".join(f"{name}: {value}" for name, value in sorted(self._profile_of(ACCOUNT).items()))
        self._output.print_table("Profile", ("ids", "properties"), [(self._describe_people(ACCOUNT), properties)])

    def _show_requests(self) -> None:
        totals: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        for request in self._emulator.requests():
            total = totals[request.path, str(request.status)]
            for position, amount in enumerate((1, request.records, request.body_bytes)):
                total[position] += amount
        columns = ("endpoint", "status", "requests", "records", "bytes")
        rows = [(*key, *(f"{amount:,}" for amount in total)) for key, total in sorted(totals.items())]
        self._output.print_table("Requests received by the server", columns, rows, numeric_columns=4)

    def _display(self, ids: Collection[str]) -> list[str]:
        """Return display names of ids in a stable order."""
        known = [name for distinct_id, name in self._display_names.items() if distinct_id in ids]
        return known + sorted(set(ids).difference(self._display_names))

    def _describe_people(self, *ids: str) -> str:
        """Return the people that own the ids: one id per line, with an empty line between people."""
        people = {frozenset(self._emulator.cluster(distinct_id)): None for distinct_id in ids}
        return "\n\n".join("\n".join(self._display(person)) for person in people)

    def _expect_person(self, text: str, *ids: str) -> None:
        """Expect that exactly these ids belong to one person."""
        self._output.expect(text, expected=self._display(ids), actual=self._display(self._emulator.cluster(ids[0])))

    def _expect_events(self, text: str, name: str, count: int) -> None:
        self._output.expect(text, expected=count, actual=len(self._emulator.events(name)))

    def _expect_events_of_person(self, text: str, count: int) -> None:
        person = self._emulator.resolve(ACCOUNT)
        ids = [event["properties"]["distinct_id"] for name in _VISITOR_EVENTS for event in self._emulator.events(name)]
        self._output.expect(text, expected=count, actual=ids.count(person))

    def _profile_of(self, distinct_id: str) -> dict[str, object]:
        return dict(self._emulator.profile(distinct_id) or {})

    def _expect_profile(self, text: str, distinct_id: str, expected: dict[str, object]) -> None:
        profile = self._profile_of(distinct_id)
        self._output.expect(text, expected=expected, actual={name: profile.get(name) for name in expected})
