"""Raw exports with seeded identity faults."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final

from identity_events import Event, alias, dated, device, identify, track, visitor

from mixpanel_async.identity import FindingKind


def healthy(system: str, users: int, seed: int) -> list[Event]:
    """Return the events of users who visit, sign up and return, each as the system wants it."""
    chance = random.Random(seed)
    journeys = [_journey(system, number, chance.random() < 0.5) for number in range(users)]
    events = []
    while journeys:
        journey = chance.choice(journeys)
        events.append(journey.pop(0))
        journeys = [one for one in journeys if one]
    return events


def _journey(system: str, number: int, returns: bool) -> list[Event]:
    user, first, second = f"user-{number}", visitor(2 * number), visitor(2 * number + 1)
    email = f"user-{number}@example.com"
    if system == "legacy":
        return [track(first), alias(first, user), track(first, email=email), track(first)]
    if system == "simplified":
        again = [device(second), device(second, user, email=email)] if returns else []
        return [device(first), device(first, user, email=email), *again, track(user, user_id=user)]
    again = [track(second), identify(user, second), track(user, email=email)] if returns else []
    return [track(first), identify(user, first), track(user, email=email, user_id=user), *again, track(first)]


_A: Final = [visitor(1_000_000 + number) for number in range(600)]

Fault = Callable[[], list[Event]]

# Kind of finding, ID merge system, and the events of one fault.
FAULTS: Final[Mapping[str, tuple[FindingKind, str, Fault]]] = {
    "anonymous id of another form": (
        FindingKind.FAILED_CALLS,
        "original",
        lambda: [track("visitor-7"), identify("fault-1", "visitor-7")],
    ),
    "alias in a Simplified project": (
        FindingKind.IGNORED_CALLS,
        "simplified",
        lambda: [track("fault-2", user_id="fault-2"), alias("fault-2", "fault-2-new")],
    ),
    "placeholder": (FindingKind.PLACEHOLDER_IDS, "original", lambda: [track("[object Object]"), track("undefined")]),
    "letter case": (FindingKind.ID_VARIANTS, "simplified", lambda: [track("fault-4"), track("Fault-4 ")]),
    "e-mail address and number": (
        FindingKind.MIXED_ID_KINDS,
        "original",
        lambda: [track("5", email="fault-5@example.com"), track("fault-5@example.com")],
    ),
    "no reset at log-out": (
        FindingKind.SHARED_DEVICES,
        "simplified",
        lambda: [device("phone-6", "fault-6"), device("phone-6", "fault-6-other")],
    ),
    "one $email": (
        FindingKind.SPLIT_BY_EMAIL,
        "original",
        lambda: [track("fault-7", email="fault-7@example.com"), track("fault-7-new", email="Fault-7@example.com")],
    ),
    "$user_id without identify": (
        FindingKind.SPLIT_BY_USER_ID,
        "original",
        lambda: [track(_A[1], user_id="fault-8"), track("fault-8", user_id="fault-8")],
    ),
    "many ids": (FindingKind.NEAR_LIMIT, "original", lambda: [identify("fault-9", one) for one in _A[100:550]]),
    "alias of an alias": (
        FindingKind.ALIAS_CHAINS,
        "original",
        lambda: [alias("fault-10", "fault-10-b"), alias("fault-10-b", "fault-10-c")],
    ),
    "alias after events": (
        FindingKind.LEGACY_ORDER,
        "legacy",
        lambda: [track(_A[2]), track("fault-11"), alias(_A[2], "fault-11")],
    ),
    "device as plain distinct_id": (
        FindingKind.EVENTS_LEFT_BEHIND,
        "simplified",
        lambda: [track(_A[3]), device(_A[3], "fault-12")],
    ),
}

SYSTEMS: Final = ("legacy", "original", "simplified")


def seeded(system: str, *, users: int, seed: int) -> tuple[list[Event], set[FindingKind]]:
    """Return an export with every fault of a system among healthy users, and the kinds of the faults.

    Args:
        system: ID merge system.
        users: number of healthy users.
        seed: seed of the order.
    """
    chance = random.Random(seed)
    events = healthy(system, users, seed)
    kinds = set()
    for kind, of_system, fault in FAULTS.values():
        if of_system == system:
            kinds.add(kind)
            at = chance.randrange(len(events))
            events[at:at] = fault()
    return dated(events), kinds
