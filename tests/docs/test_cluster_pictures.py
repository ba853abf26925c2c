"""Pictures of the identity guides: they are up to date, and show what the programs on the pages print."""

from __future__ import annotations

import re

import pytest
from page_snippets import DOCS, Block, blocks_of

from tools.cluster_pictures import ASSETS, PICTURES, Picture, columns_of, svg_of

MAIN = [picture for picture in PICTURES if picture.name.count("-") == 1]


def program_of(picture: Picture) -> Block:
    """Return the program in steps on the page of a picture."""
    page = DOCS / "guides" / f"{picture.name}.md"
    return next(block for block in blocks_of(page) if block.title == f"{picture.id_merge.value}.py")


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_picture_is_up_to_date(picture: Picture) -> None:
    file = ASSETS / f"{picture.name}.svg"
    assert file.read_text("utf-8") == svg_of(picture), "run: python -m tools.cluster_pictures"


def test_no_picture_is_left_over() -> None:
    assert {file.stem for file in ASSETS.glob("identity-*.svg")} == {picture.name for picture in PICTURES}


@pytest.mark.parametrize("picture", MAIN, ids=lambda picture: picture.name)
def test_picture_shows_the_output_of_the_program(picture: Picture) -> None:
    printed = program_of(picture).output
    assert printed is not None
    steps = re.split(r"^\d\. ", printed, flags=re.MULTILINE)[1:]
    for step, column in zip(steps, columns_of(picture), strict=True):
        title, *lines = step.splitlines()
        assert title == column.title
        shown = {
            ("separate" if person.is_separate else "", *sorted(one.removeprefix("$device:") for one in person.ids)): (
                person.events
            )
            for person in column.people
        }
        assert shown == dict(map(person_of, lines))


def person_of(line: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the ids and the events of a line that the program prints for a person."""
    ids, _, events = line.strip().partition(": ")
    separate = re.fullmatch(r"events of (\S+) that stay separate", ids)
    key = ("separate", separate[1]) if separate else ("", *ids.strip("{}").split(", "))
    return key, events.split(", ")
