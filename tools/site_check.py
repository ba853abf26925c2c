"""Check the pages of the built documentation: `python -m tools.site_check site`.

They load nothing from other hosts, and the targets of their links exist, down to the anchors.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

# Attributes that make a browser load a file. Links that a reader may follow are not among them.
_LOADED: Final = frozenset({"src", "srcset", "data", "poster"})
_OTHER_HOST: Final = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_STYLE: Final = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)", re.IGNORECASE)


class _Page(HTMLParser):
    """Anchors and links of a page, and the addresses on other hosts that it loads.

    Args:
        text: the HTML.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        # The top of the page has no element.
        self.anchors: set[str] = {"", "__top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in _LOADED or (tag == "link" and name == "href"):
                self.loads += [value] if _OTHER_HOST.match(value.strip()) else []
            elif name == "style":
                self.loads += _STYLE.findall(value)
            elif name == "href":
                self.links.append(value)
            elif name in ("id", "name"):
                self.anchors.add(value)


def problems(site: Path) -> Iterator[str]:
    """Yield what is wrong with the pages of a site.

    Args:
        site: folder of the built site.
    """
    pages = {
        path.relative_to(site).as_posix(): _Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
    }
    for name, page in pages.items():
        for address in page.loads:
            yield f"{name} loads {address}"
        # Links of the error page are those of the root.
        for link in [] if name == "404.html" else page.links:
            if not _exists(link, name, pages, site):
                yield f"{name} links to {link}, which does not exist"
    for path in sorted(site.rglob("*.css")):
        for address in _STYLE.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site).as_posix()} loads {address}"


def _exists(link: str, name: str, pages: dict[str, _Page], site: Path) -> bool:
    """Return whether the target of a link on a page is in the site, or outside of it on purpose."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path))) if parts.path else name
    if target in pages:
        return unquote(parts.fragment) in pages[target].anchors
    return (site / target).is_file()


def main(site: Path) -> int:
    """Print what is wrong with a site, and return the exit status."""
    found = [*problems(site)]
    number = len([*site.rglob("*.html")])
    print("\n".join(found) or f"{number} pages: no broken link, nothing from other hosts")
    return 1 if found or not number else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
