"""Blocks of code on the pages under `docs/`, and the programs made from them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
_FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?P<attributes>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_TITLE: Final = re.compile(r'title="([^"]+)"')


class Block(NamedTuple):
    """Block of code on a page.

    Args:
        page: path of the page, relative to `docs/`; `README.md` for the README.
        number: number among the blocks of this language on the page; begins at 1.
        language: language after the fence.
        title: title of the block, which is a file name or `Output`.
        code: content without the indentation of the fence.
        output: text that the program prints, from the block titled `Output` that follows.
    """

    page: str
    number: int
    language: str
    title: str | None
    code: str
    output: str | None

    @property
    def key(self) -> str:
        """Name of the block in `visits.py` and in the ids of the tests: `guides/django.md#views.py` or `index.md#2`."""
        return f"{self.page}#{self.title or self.number}"

    @property
    def file(self) -> str:
        """Name of the file that the block becomes."""
        return self.title or f"snippet_{self.number}.py"


def pages() -> list[Path]:
    """Return the pages of the documentation that this module's rules hold for."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def page_name(path: Path) -> str:
    """Return the name of a page in the keys of blocks."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def path_of(page: str) -> Path:
    """Return the file of a page."""
    return ROOT / page if page == "README.md" else DOCS / page


def blocks_of(path: Path) -> list[Block]:
    """Return the blocks of a page."""
    text = path.read_text(encoding="utf-8")
    found: list[Block] = []
    counts: dict[str, int] = {}
    previous_end = 0
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] if line.strip() else "\n" for line in match["code"].splitlines(keepends=True))
        language = match["language"]
        title = _TITLE.search(match["attributes"])
        if title is not None and title[1] == "Output" and found and not text[previous_end : match.start()].strip():
            found[-1] = found[-1]._replace(output=code)
        else:
            counts[language] = counts.get(language, 0) + 1
            found.append(Block(page_name(path), counts[language], language, title and title[1], code, None))
        previous_end = match.end()
    return found


def all_blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages in these languages."""
    return [block for path in pages() for block in blocks_of(path) if block.language in languages]
