"""Pictures of the identity guides: `python -m tools.cluster_pictures` writes `docs/assets/identity-*.svg`.

The steps of each picture are replayed through `IdentityGraph`, so that the pictures show what it computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any, Final
from xml.sax.saxutils import escape

from mixpanel_async import IdMerge
from mixpanel_async.identity import DEVICE_PREFIX, VERBS, IdentityGraph, Reason

ASSETS: Final = Path(__file__).parents[1] / "docs" / "assets"

LAPTOP: Final = "5c1f6a2e-2f0b-4d0c-9c3a-6f2d8b7e1a01"
PHONE: Final = "a7d94c33-81e5-4f7a-b1d2-0c9e5f3b6d02"
PHONE_2: Final = "d2b07f19-6a3c-4e58-8f41-93ce5a0d7b03"
NAMES: Final = {LAPTOP: "laptop", PHONE: "phone", PHONE_2: "phone-2"}

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """Step of a picture.

    Args:
        title: what happens.
        events: events that Mixpanel receives, in order.
    """

    title: str
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """Picture of the people of a project after each of some steps.

    Args:
        name: name of the file without its extension.
        id_merge: ID merge system of the project.
        steps: steps from left to right.
    """

    name: str
    id_merge: IdMerge
    steps: tuple[Step, ...]


@dataclass(slots=True)
class Person:
    """Box of a picture: the ids of a person and the events that count for them.

    Args:
        ids: names of the ids, the canonical one first; of events that stay separate, the id that they count for.
        events: names of the events.
        is_separate: whether these are earlier events that did not follow their id to a person, as in Legacy.
    """

    ids: list[str]
    events: list[str] = field(default_factory=list)
    is_separate: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """People after a step.

    Args:
        title: title of the step.
        people: boxes in order of first appearance.
        refusals: lines that say which calls joined nothing.
    """

    title: str
    people: list[Person]
    refusals: list[str]


def visit(name: str, device: str) -> Event:
    """Return an event of an anonymous visitor of a project with Simplified ID Merge."""
    return {"event": name, "properties": {"distinct_id": DEVICE_PREFIX + device, "$device_id": device}}


def signed_in(name: str, user: str, device: str) -> Event:
    """Return an event with both ids."""
    return {"event": name, "properties": {"distinct_id": user, "$user_id": user, "$device_id": device}}


def event(name: str, distinct_id: str) -> Event:
    """Return an event of a project with Original or Legacy ID Merge."""
    return {"event": name, "properties": {"distinct_id": distinct_id}}


def identify(user: str, anonymous: str) -> Event:
    """Return the event that `identify` sends."""
    return {"event": "$identify", "properties": {"$identified_id": user, "$anon_id": anonymous}}


def alias(alias_id: str, original: str) -> Event:
    """Return the event that `alias` sends."""
    return {"event": "$create_alias", "properties": {"distinct_id": original, "alias": alias_id}}


def merge(first: str, second: str) -> Event:
    """Return the event that `merge` sends."""
    return {"event": "$merge", "properties": {"$distinct_ids": [first, second]}}


SIMPLIFIED_STEPS: Final = (
    Step("A visit on the laptop", (visit("Viewed pricing", LAPTOP),)),
    Step("Sign-up on the laptop", (signed_in("Signed up", "user-1", LAPTOP),)),
    Step("A visit on the phone", (visit("Opened app", PHONE),)),
    Step("Login on the phone", (signed_in("Signed in", "user-1", PHONE),)),
    Step("Logout, then another visit on the phone", (visit("Opened app", PHONE_2),)),
    Step("Another person signs up on the phone", (signed_in("Signed up", "user-2", PHONE_2),)),
)
ORIGINAL_STEPS: Final = (
    Step("A visit on the laptop", (event("Viewed pricing", LAPTOP),)),
    Step("Sign-up on the laptop", (identify("user-1", LAPTOP), event("Signed up", "user-1"))),
    Step("A visit on the phone", (event("Opened app", PHONE),)),
    Step("Login on the phone", (identify("user-1", PHONE), event("Signed in", "user-1"))),
    Step("Logout, then another visit on the phone", (event("Opened app", PHONE_2),)),
    Step("Another person signs up on the phone", (identify("user-2", PHONE_2), event("Signed up", "user-2"))),
)
LEGACY_STEPS: Final = (
    Step("A visit on the laptop", (event("Viewed pricing", LAPTOP),)),
    Step("Sign-up on the laptop", (alias("user-1", LAPTOP), event("Signed up", "user-1"))),
    Step("A visit on the phone", (event("Opened app", PHONE),)),
    Step("Login on the phone", (alias(PHONE, "user-1"), event("Signed in", "user-1"))),
    Step("Logout, then another visit on the phone", (event("Opened app", PHONE_2),)),
    Step("Another person signs up on the phone", (alias("user-2", PHONE_2), event("Signed up", "user-2"))),
)
PICTURES: Final = (
    Picture("identity-simplified", IdMerge.SIMPLIFIED, SIMPLIFIED_STEPS),
    Picture(
        "identity-simplified-taken",
        IdMerge.SIMPLIFIED,
        (
            Step("user-1 signs up on the laptop", (signed_in("Signed up", "user-1", LAPTOP),)),
            Step("user-2 signs in, no logout before", (signed_in("Signed in", "user-2", LAPTOP),)),
            Step("A visit on the laptop", (visit("Viewed pricing", LAPTOP),)),
        ),
    ),
    Picture("identity-original", IdMerge.ORIGINAL, ORIGINAL_STEPS),
    Picture(
        "identity-original-refused",
        IdMerge.ORIGINAL,
        (
            Step("user-1 signs up on the laptop", (identify("user-1", LAPTOP), event("Signed up", "user-1"))),
            Step("identify of user-2, no logout before", (identify("user-2", LAPTOP), event("Signed in", "user-2"))),
            Step("merge of the two users", (merge("user-1", "user-2"),)),
        ),
    ),
    Picture("identity-legacy", IdMerge.LEGACY, LEGACY_STEPS),
    Picture(
        "identity-legacy-late",
        IdMerge.LEGACY,
        (
            Step("A visit on the laptop", (event("Viewed pricing", LAPTOP),)),
            Step("An event of user-1 before the alias", (event("Signed up", "user-1"),)),
            Step("alias, then another event", (alias("user-1", LAPTOP), event("Paid", "user-1"))),
        ),
    ),
)


def name_of(distinct_id: str) -> str:
    """Return the name of an id in the pictures."""
    device = distinct_id.removeprefix(DEVICE_PREFIX)
    return distinct_id.replace(device, NAMES.get(device, device))


def columns_of(picture: Picture) -> Iterator[Column]:
    """Yield the people after each step of a picture."""
    graph = IdentityGraph(picture.id_merge)
    # Ids that the events count for at arrival, and names of the events.
    arrived: list[tuple[str, str]] = []
    for step in picture.steps:
        refusals = []
        for one in step.events:
            result = graph.apply(one)
            if one["event"] not in VERBS:
                sent = one["properties"]["distinct_id"]
                # Legacy follows aliases when an event arrives, the other systems when it is read.
                arrived.append((graph.resolve(sent) if picture.id_merge is IdMerge.LEGACY else sent, one["event"]))
                if result.reason is Reason.DEVICE_TAKEN:
                    refusals += ["The device stays", "with its first user"]
            elif not result.joined:
                refusals += ["Refused with the code", result.failure_code or result.description]
        yield Column(step.title, people_of(graph, arrived, picture.id_merge), refusals)


def people_of(graph: IdentityGraph, arrived: list[tuple[str, str]], id_merge: IdMerge) -> list[Person]:
    """Return the boxes of the people, each with its events."""
    people: dict[str, Person] = {}
    for distinct_id in graph.ids():
        canonical = graph.resolve(distinct_id)
        if canonical not in people:
            others = [one for one in graph.ids() if one != canonical and one in graph.cluster(canonical)]
            people[canonical] = Person([name_of(one) for one in (canonical, *others)])
    boxes = list(people.values())
    for at_arrival, name in arrived:
        canonical = at_arrival if id_merge is IdMerge.LEGACY else graph.resolve(at_arrival)
        if canonical not in people:
            people[canonical] = Person([name_of(canonical)], is_separate=True)
            boxes.append(people[canonical])
        people[canonical].events.append(name)
    return boxes


# Measures in pixels. The pictures are as wide as the text of a page or narrower.
COLUMN: Final = 204
GAP: Final = 28
PILL: Final = 24
LINE: Final = 17
PADDING: Final = 11
CHARACTER: Final = 7.3
PER_ROW: Final = 3
# Colours that are readable on white and on dark grey.
BLUE: Final = "#3d6fd1"
GREY: Final = "#6f7a8c"
TEXT: Final = "#7a8597"
RED: Final = "#d2574b"
MONO: Final = 'font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="12"'
SANS: Final = 'font-family="system-ui, Roboto, Helvetica, Arial, sans-serif"'


def text(x: float, y: float, content: str, style: str, fill: str = TEXT) -> str:
    """Return a line of text that begins at a point."""
    return f'<text x="{x:g}" y="{y:g}" {style} fill="{fill}">{escape(content)}</text>'


def pill(x: float, y: float, name: str, *, is_canonical: bool, is_separate: bool) -> list[str]:
    """Return the drawing of an id."""
    label = f"★ {name}" if is_canonical else name
    width = len(label) * CHARACTER + 20
    look = f'fill="none" stroke="{GREY}"' if is_separate else f'fill="{BLUE if is_canonical else GREY}"'
    return [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{PILL}" rx="{PILL / 2:g}" {look}/>',
        text(x + 10, y + 16, label, MONO, TEXT if is_separate else "#ffffff"),
    ]


def height_of(person: Person) -> int:
    """Return the height of the box of a person."""
    return 2 * PADDING + len(person.ids) * (PILL + 5) - 5 + len(person.events) * LINE + (6 if person.events else 0)


def box(x: float, y: float, person: Person, *, is_new: bool) -> list[str]:
    """Return the drawing of a person."""
    stroke = BLUE if is_new else GREY
    dashes = ' stroke-dasharray="5 4"' if person.is_separate else ""
    fill = f'fill="{stroke}" fill-opacity="{0.12 if is_new else 0.06:g}"'
    place = f'x="{x:g}" y="{y:g}" width="{COLUMN}" height="{height_of(person)}" rx="12"'
    drawn = [f'<rect {place} {fill} stroke="{stroke}" stroke-width="{2 if is_new else 1}"{dashes}/>']
    y += PADDING
    for number, name in enumerate(person.ids):
        is_canonical = number == 0 and not person.is_separate
        drawn += pill(x + PADDING, y, name, is_canonical=is_canonical, is_separate=person.is_separate)
        y += PILL + 5
    for name in person.events:
        y += LINE
        drawn.append(text(x + PADDING + 4, y - 5, f"• {name}", f'{SANS} font-size="12"'))
    return drawn


def arrow(x: float, y: float) -> str:
    """Return an arrow to the next step."""
    path = f"M{x:g} {y:g}h{GAP - 13}m-5 -5l5 5l-5 5"
    return f'<path d="{path}" fill="none" stroke="{GREY}" stroke-width="2" stroke-linecap="round"/>'


def column(
    x: float, y: float, number: int, shown: Column, previous: list[Person], *, has_next: bool
) -> tuple[list[str], float]:
    """Return the drawing of the people after a step, and the y below it."""
    label = f'<text x="{x + 11:g}" y="{y + 15.5:g}" {SANS} font-size="12" font-weight="bold" fill="#ffffff"'
    drawn = [
        f'<circle cx="{x + 11:g}" cy="{y + 11:g}" r="11" fill="{GREY}"/>',
        f'{label} text-anchor="middle">{number}</text>',
    ]
    lines = wrap(shown.title, 21)
    for at, line in enumerate(lines):
        line_y = y + 16 * at + (11 if len(lines) > 1 else 15.5)
        drawn.append(text(x + 29, line_y, line, f'{SANS} font-size="13" font-weight="600"'))
    y += 38
    if has_next:
        drawn.append(arrow(x + COLUMN + 6, y + 22))
    for person in shown.people:
        drawn += box(x, y, person, is_new=person not in previous)
        y += height_of(person) + 10
    for refusal in shown.refusals:
        y += LINE
        style = (
            f"{MONO.replace('12', '11')}" if refusal.startswith("err") else f'{SANS} font-size="12" font-weight="600"'
        )
        drawn.append(text(x + 2, y - 4, refusal, style, RED))
    return drawn, y


def legend(y: float, columns: list[Column]) -> list[str]:
    """Return the explanation of the signs."""
    has_separate = any(person.is_separate for shown in columns for person in shown.people)
    words = ["★ canonical id, which reports show", "blue box: changed in this step"]
    if has_separate:
        words.append("dashed: events stay separate")
    return [text(2 + at * (COLUMN + GAP), y, line, f'{SANS} font-size="12"') for at, line in enumerate(words)]


def svg_of(picture: Picture) -> str:
    """Return the picture as SVG."""
    columns = list(columns_of(picture))
    drawn: list[str] = []
    top, bottom = 2.0, 0.0
    previous: list[Person] = []
    for number, shown in enumerate(columns):
        at = number % PER_ROW
        if at == 0 and number:
            top = bottom + 22
        has_next = at + 1 < PER_ROW and number + 1 < len(columns)
        lines, y = column(1 + at * (COLUMN + GAP), top, number + 1, shown, previous, has_next=has_next)
        drawn += lines
        bottom = max(bottom, y)
        previous = shown.people
    bottom += 18
    explained = legend(bottom, columns)
    width, height = PER_ROW * (COLUMN + GAP) - GAP + 2, bottom + 8
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    return "\n".join((f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *drawn, *explained, "</svg>\n"))


def main() -> None:
    for picture in PICTURES:
        (ASSETS / f"{picture.name}.svg").write_text(svg_of(picture), "utf-8")


if __name__ == "__main__":
    main()
