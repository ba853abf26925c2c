"""Write the generated pages of `docs/reference`, or check that they are up to date."""

from __future__ import annotations

import argparse
import sys

from .pages import outdated, write


def main() -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with status 1 if a page is outdated")
    names = outdated() if (check := parser.parse_args().check) else write()
    for name in names:
        print(f"docs/reference/{name} {'is outdated' if check else 'written'}")
    if check and names:
        print("run: python -m tools.reference", file=sys.stderr)
    return int(check and bool(names))


if __name__ == "__main__":
    raise SystemExit(main())
