"""Examples at the end of the help of each command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "": (
        "mixpanel-async demo",
        "mixpanel-async emulator --port 8080",
        "mixpanel-async import events.ndjson --dry-run",
    ),
    "demo": (
        "mixpanel-async demo",
        "mixpanel-async demo --serve --port 8080",
        "mixpanel-async demo --redis redis://127.0.0.1:6379/0",
    ),
    "emulator": (
        "mixpanel-async emulator --port 8080",
        "mixpanel-async emulator --port 8080 --id-merge original --data-dir mixpanel-data",
        "mixpanel-async emulator --port 8080 --tls --flags flags.json",
    ),
    "import": (
        "mixpanel-async import events.ndjson.gz --dry-run",
        "mixpanel-async import events.csv --map event=name --map time=created_at",
        "mixpanel-async import 'export/*.json' --preset amplitude --concurrency 20",
        "mixpanel-async import people.csv --kind people --type credit=number",
    ),
    "worker": (
        "mixpanel-async worker --from redis://queue:6379/0",
        "mixpanel-async worker --name worker-1 --concurrency 8 --metrics-port 9464",
        "mixpanel-async worker --kinds events,imports --once --log json",
    ),
    "identity": (
        "mixpanel-async identity audit export.ndjson.gz --id-merge original",
        "mixpanel-async identity plan pairs.csv --against export.ndjson.gz",
        "mixpanel-async identity apply pairs.csv.plan --limit 5",
        "mixpanel-async identity verify pairs.csv.plan --wait 60",
    ),
    "identity audit": (
        "mixpanel-async identity audit export.ndjson.gz --id-merge original",
        "mixpanel-async identity audit 2024-*.json --html report.html --fail-on 0",
        "mixpanel-async identity audit export.ndjson.gz --profiles people.ndjson",
        "mixpanel-async identity audit --from-api --from-date 2024-01-01 --to-date 2024-03-31",
    ),
    "identity simulate": (
        "mixpanel-async identity simulate export.ndjson.gz --from original --id-merge simplified",
        "mixpanel-async identity simulate export.ndjson.gz --id-merge original --json",
    ),
    "identity plan": (
        "mixpanel-async identity plan pairs.csv --against export.ndjson.gz --id-merge original",
        "mixpanel-async identity plan pairs.csv --against '2026-*.ndjson' --allow-user-merge",
        "mixpanel-async identity plan pairs.csv --without-history --kind alias",
    ),
    "identity apply": (
        "mixpanel-async identity apply pairs.csv.plan --limit 5",
        "mixpanel-async identity apply pairs.csv.plan --yes --rate 20",
    ),
    "identity verify": (
        "mixpanel-async identity verify pairs.csv.plan --wait 60",
        "mixpanel-async identity verify pairs.csv.plan --export after.ndjson.gz",
    ),
    "queue": (
        "mixpanel-async queue status redis://queue:6379/0",
        "mixpanel-async queue list redis://queue:6379/0 --reason rejected",
        "mixpanel-async queue purge redis://queue:6379/0 --distinct-id user-1 --yes",
    ),
    "queue status": (
        "mixpanel-async queue status redis://queue:6379/0",
        "mixpanel-async queue status redis://queue:6379/0 --max-lag 100000 --max-age 5m",
    ),
    "queue list": (
        "mixpanel-async queue list redis://queue:6379/0 --limit 10",
        "mixpanel-async queue list redis://queue:6379/0 --reason rejected --json",
    ),
    "queue retry": (
        "mixpanel-async queue retry redis://queue:6379/0 --reason unauthorized",
        "mixpanel-async queue retry redis://queue:6379/0 --id 1767225600000-0",
    ),
    "queue purge": (
        "mixpanel-async queue purge redis://queue:6379/0 --older-than 7d",
        "mixpanel-async queue purge redis://queue:6379/0 --distinct-id user-1 --yes",
    ),
    "queue export": ("mixpanel-async queue export redis://queue:6379/0 --output records.jsonl",),
    "spool": (
        "mixpanel-async spool status /var/lib/app/mixpanel.db",
        "mixpanel-async spool list /var/lib/app/mixpanel.db --reason rejected",
    ),
    "spool status": (
        "mixpanel-async spool status /var/lib/app/mixpanel.db",
        "mixpanel-async spool status /var/lib/app/mixpanel.db --check --json",
    ),
    "spool list": (
        "mixpanel-async spool list /var/lib/app/mixpanel.db --limit 10",
        "mixpanel-async spool list /var/lib/app/mixpanel.db --reason rejected --json",
    ),
    "spool retry": (
        "mixpanel-async spool retry /var/lib/app/mixpanel.db --reason unauthorized",
        "mixpanel-async spool retry /var/lib/app/mixpanel.db --id 17",
    ),
    "spool purge": (
        "mixpanel-async spool purge /var/lib/app/mixpanel.db --older-than 7d",
        "mixpanel-async spool purge /var/lib/app/mixpanel.db --distinct-id user-1 --yes",
    ),
    "spool export": ("mixpanel-async spool export /var/lib/app/mixpanel.db --output records.jsonl",),
}
"""Command lines by the words after the program's name. Each fits into 80 columns or is broken once."""

_MAX_WIDTH: Final = 76


def epilog(path: str) -> str:
    """Return the examples of a command as the end of its help.

    Args:
        path: words after the program's name, such as `queue status`.
    """
    lines = [part for line in EXAMPLES[path] for part in _broken(line)]
    # The first character keeps Click from filling the lines of the paragraph.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _broken(line: str) -> list[str]:
    """Return a command line, continued on a second line if it is long."""
    if len(line) <= _MAX_WIDTH:
        return [line]
    at = line.rindex(" --", 0, _MAX_WIDTH - 1)
    return [f"{line[:at]} \\", f"   {line[at:]}"]
