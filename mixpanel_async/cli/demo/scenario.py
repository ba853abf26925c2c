"""The story that the demo tells: one visitor, four ids, one person; and what the server holds after each step."""

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
DUPLICATE = "maya@work.example"
LATER = "maya@home.example"

_JOB = "Job finished"
_HERS = ("Page viewed", "Signed up", "Report opened")


class DemoScenario:
    """Tells the story with the client and checks every sentence of it against the emulator.

    Args:
        mp: an open client, connected to the emulator.
        emulator: what the client talks to.
        stage: where it is shown, and where claims are counted.
        events: how many the background worker tracks.
    """

    def __init__(self, mp: AsyncMixpanel, emulator: Emulator, stage: DemoOutput, events: int) -> None:
        self._mp = mp
        self._emulator = emulator
        self._stage = stage
        self._events = events
        # Hers are six events and three updates of profiles.
        self._records = events + 9
        self._seconds = 0.0
        self._laptop = str(uuid.uuid4())
        self._phone = str(uuid.uuid4())
        # In the order in which she came by them, which is the order in which they are shown.
        self._names = {
            self._laptop: f"laptop {self._laptop[:8]}",
            ACCOUNT: ACCOUNT,
            self._phone: f"phone {self._phone[:8]}",
            DUPLICATE: DUPLICATE,
            LATER: LATER,
        }
        self._identity: list[tuple[str, str, str]] = []

    async def tell(self) -> None:
        """All chapters, the worker beside those of the visitor."""
        with self._stage.progress("delivered", self._records):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._guard, self._work)
                for chapter in (self._browse, self._sign_up, self._profile, self._return, self._duplicate):
                    await self._guard(chapter)
            self._stage.reach(self._mp.stats().delivered)
        await self._guard(self._count)
        self._show_people()
        await self._guard(self._outage)
        self._show_requests()

    async def _guard(self, chapter: Callable[[], Awaitable[None]]) -> None:
        try:
            await chapter()
        except MixpanelException as error:
            self._stage.claim(
                "no call of this chapter raises", expected="no error", found=f"{type(error).__name__}: {error}"
            )

    async def _work(self) -> None:
        started = time.perf_counter()
        for number in range(self._events):
            await self._mp.track(f"worker-{number % 50}", _JOB, {"number": number, "queue": "invoices"})
        await self._mp.flush()
        self._seconds = time.perf_counter() - started

    async def _browse(self) -> None:
        self._stage.chapter(
            "1. An anonymous visitor browses on a laptop",
            'await mp.track(laptop, "Page viewed", {"page": "/pricing"})      # 3 pages',
        )
        for page in ("/", "/pricing", "/docs"):
            await self._mp.track(self._laptop, "Page viewed", {"page": page})
        await self._mp.flush()
        self._claim_events("three page views are stored", "Page viewed", 3)
        self._claim_cluster("the visitor is nobody but that laptop", self._laptop)

    async def _sign_up(self) -> None:
        self._stage.chapter(
            "2. She signs up",
            f'await mp.alias("{ACCOUNT}", laptop)',
            f'await mp.track("{ACCOUNT}", "Signed up", {{"plan": "free"}})',
        )
        await self._join("alias", lambda: self._mp.alias(ACCOUNT, self._laptop), self._laptop, ACCOUNT)
        await self._mp.track(ACCOUNT, "Signed up", {"plan": "free"})
        await self._mp.flush()
        self._claim_cluster("laptop and account are one person", self._laptop, ACCOUNT)
        self._claim_one_person("the page views from before are hers", 4)

    async def _profile(self) -> None:
        self._stage.chapter(
            "3. She gets a profile",
            f'await mp.people_set("{ACCOUNT}", {{"$name": "Maya", "plan": "free"}})',
            f'await mp.people_increment("{ACCOUNT}", {{"projects": 2}})',
        )
        await self._mp.people_set(ACCOUNT, {"$name": "Maya", "plan": "free"})
        await self._mp.people_increment(ACCOUNT, {"projects": 2})
        await self._mp.flush()
        self._claim_profile(
            "it can be read by any of her ids", self._laptop, {"$name": "Maya", "plan": "free", "projects": 2}
        )

    async def _return(self) -> None:
        self._stage.chapter(
            "4. She returns on a phone and logs in",
            'await mp.track(phone, "Page viewed", {"page": "/login"})',
            f'await mp.identify("{ACCOUNT}", phone)',
        )
        await self._mp.track(self._phone, "Page viewed", {"page": "/login"})
        await self._mp.flush()
        self._claim_cluster("before the login the phone is a stranger", self._phone)
        await self._join("identify", lambda: self._mp.identify(ACCOUNT, self._phone), self._phone, ACCOUNT)
        self._claim_cluster("after it, phone, laptop and account are one", self._laptop, ACCOUNT, self._phone)

    async def _duplicate(self) -> None:
        self._stage.chapter(
            "5. She has a second account, from work",
            f'await mp.merge(distinct_id1="{ACCOUNT}",',
            f'               distinct_id2="{DUPLICATE}")',
        )
        await self._mp.track(DUPLICATE, "Report opened")
        await self._mp.people_set(DUPLICATE, {"company": "Example Ltd"})
        await self._mp.flush()
        self._claim_cluster("until now the second account is someone else", DUPLICATE)
        await self._join(
            "merge", lambda: self._mp.merge(distinct_id1=ACCOUNT, distinct_id2=DUPLICATE), ACCOUNT, DUPLICATE
        )
        self._claim_cluster("all four ids are one person", self._laptop, ACCOUNT, self._phone, DUPLICATE)
        self._claim_one_person("all her events, from every id, are that person's", 6)
        self._claim_profile(
            "her two profiles are one",
            DUPLICATE,
            {"$name": "Maya", "plan": "free", "projects": 2, "company": "Example Ltd"},
        )

    async def _count(self) -> None:
        self._stage.chapter(f"Meanwhile a worker tracked {self._events:,} events on the same client")
        self._claim_events("the server holds each of them once", _JOB, self._events)
        stats = self._mp.stats()
        self._stage.claim("the client counts everything as delivered", expected=self._records, found=stats.delivered)
        lost = stats.failed + stats.dropped + stats.uncertain + stats.pending
        self._stage.claim("and nothing as lost or waiting", expected=0, found=lost)
        self._stage.note(
            f"{self._events / self._seconds:,.0f} events per second, with client and server in one process"
        )

    async def _outage(self) -> None:
        self._stage.chapter("6. Mixpanel is down when she adds an address", f'await mp.alias("{LATER}", "{ACCOUNT}")')
        before = self._persons(ACCOUNT, LATER)
        self._emulator.fail_next(status=503, times=3, path="/track")
        raised: MixpanelException | None = None
        try:
            await self._mp.alias(LATER, ACCOUNT)
        except MixpanelException as error:
            raised = error
            self._stage.failure({"raised": type(error).__name__, "message": error})
        facts = [getattr(raised, name, None) for name in ("status", "attempts", "endpoint")]
        self._stage.claim(
            "the call raises, and tells status, attempts and endpoint", expected=[503, 3, "/track"], found=facts
        )
        self._stage.claim("nobody was joined", expected=before, found=self._persons(ACCOUNT, LATER))

    async def _join(self, verb: str, call: Callable[[], Awaitable[object]], *ids: str) -> None:
        before = self._persons(*ids)
        await call()
        self._identity.append((verb, before, self._persons(*ids)))
        entry = self._emulator.identity_log()[-1]
        outcome = entry["$failure_reason"] or entry["outcome"]
        self._stage.claim(f"Mixpanel accepts the {verb}", expected="merged", found=outcome)

    def _show_people(self) -> None:
        self._stage.table("Who is who (an empty line parts two persons)", ("call", "before", "after"), self._identity)
        properties = "\n".join(f"{name}: {value}" for name, value in sorted(self._profile_of(ACCOUNT).items()))
        self._stage.table("Her profile", ("ids", "properties"), [(self._persons(ACCOUNT), properties)])

    def _show_requests(self) -> None:
        totals: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        for request in self._emulator.requests():
            total = totals[request.path, str(request.status)]
            for position, amount in enumerate((1, request.records, request.body_bytes)):
                total[position] += amount
        columns = ("endpoint", "status", "requests", "records", "bytes")
        rows = [(*key, *(f"{amount:,}" for amount in total)) for key, total in sorted(totals.items())]
        self._stage.table("What the server received", columns, rows, numbers=4)

    def _named(self, ids: Collection[str]) -> list[str]:
        known = [name for distinct_id, name in self._names.items() if distinct_id in ids]
        return known + sorted(set(ids).difference(self._names))

    def _persons(self, *ids: str) -> str:
        """The persons behind some ids, one id a line and an empty line between persons."""
        persons = {frozenset(self._emulator.cluster(distinct_id)): None for distinct_id in ids}
        return "\n\n".join("\n".join(self._named(person)) for person in persons)

    def _claim_cluster(self, text: str, *ids: str) -> None:
        self._stage.claim(text, expected=self._named(ids), found=self._named(self._emulator.cluster(ids[0])))

    def _claim_events(self, text: str, name: str, expected: int) -> None:
        self._stage.claim(text, expected=expected, found=len(self._emulator.events(name)))

    def _claim_one_person(self, text: str, expected: int) -> None:
        hers = self._emulator.resolve(ACCOUNT)
        ids = [event["properties"]["distinct_id"] for name in _HERS for event in self._emulator.events(name)]
        self._stage.claim(text, expected=expected, found=ids.count(hers))

    def _profile_of(self, distinct_id: str) -> dict[str, object]:
        return dict(self._emulator.profile(distinct_id) or {})

    def _claim_profile(self, text: str, distinct_id: str, expected: dict[str, object]) -> None:
        profile = self._profile_of(distinct_id)
        self._stage.claim(text, expected=expected, found={name: profile.get(name) for name in expected})
