"""Check that the pages of the built documentation load nothing from other hosts: `python -m tools.site_check site`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

# Attributes that make a browser load a file. Links that a reader may follow are not among them.
_LOADED: Final = {"src", "srcset", "data", "poster"}
_OTHER_HOST: Final = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_STYLE: Final = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)", re.IGNORECASE)


class _Loads(HTMLParser):
    """Collects the addresses on other hosts that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in _LOADED or (tag == "link" and name == "href"):
                self.found += [value] if _OTHER_HOST.match(value.strip()) else []
            elif name == "style":
                self.found += _STYLE.findall(value)


def loads_from_other_hosts(site: Path) -> Iterator[tuple[Path, str]]:
    """Yield each page or style sheet of a site with an address on another host that it loads.

    Args:
        site: folder of the built site.
    """
    for path in sorted(site.rglob("*.html")):
        page = _Loads()
        page.feed(path.read_text(encoding="utf-8"))
        for address in page.found:
            yield path, address
    for path in sorted(site.rglob("*.css")):
        for address in _STYLE.findall(path.read_text(encoding="utf-8")):
            yield path, address


def main(site: Path) -> int:
    """Print what is wrong with a site, and return the exit status."""
    found = [f"{path} loads {address}" for path, address in loads_from_other_hosts(site)]
    pages = len([*site.rglob("*.html")])
    print("\n".join(found) or f"{pages} pages load nothing from other hosts")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
