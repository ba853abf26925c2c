"""Report of an audit as one HTML page, without scripts and without references to other files. Pure."""

from __future__ import annotations

from html import escape
from typing import Final

from mixpanel_async.identity import AuditReport, Finding

from .tables import case_line, figures, finding_title, shown, size_groups

_STYLE: Final = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.45; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
details { border: 1px solid #8884; border-radius: 6px; margin: .6rem 0; }
summary { padding: .5rem .8rem; cursor: pointer; } details > div { padding: 0 .8rem .6rem; }
code { overflow-wrap: anywhere; } .bar { background: #7856ff; height: .8rem; border-radius: 3px; min-width: 2px; }
"""


def audit_page(report: AuditReport, unreadable: int = 0, unreadable_profiles: int = 0) -> str:
    """Return the page.

    Args:
        report: the report.
        unreadable: number of lines that are no events.
        unreadable_profiles: number of lines of files of profiles that are no profiles.
    """
    rows = figures(report)
    for kind, lines in (("events", unreadable), ("profiles", unreadable_profiles)):
        if lines:
            rows.append((f"Lines that are no {kind}", f"{lines:,}"))
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Identity audit</title><style>{_STYLE}</style></head><body>",
        f"<h1>Identity audit ({report.id_merge.value} ID merge)</h1>",
        "<table>",
        *(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows),
        "</table>",
        *_sizes(report),
        f"<h2>Findings: {report.finding_count:,}</h2>",
        *(_finding(one) for one in report.findings),
        *([] if report.findings else ["<p>No findings.</p>"]),
        *_largest(report),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _sizes(report: AuditReport) -> list[str]:
    groups = size_groups(report)
    most = max((number for _, number in groups), default=1)
    rows = (
        f'<tr><td>{label}</td><td class="number">{number:,}</td>'
        f'<td style="width: 60%"><div class="bar" style="width: {100 * number / most:.1f}%"></div></td></tr>'
        for label, number in groups
    )
    head = '<tr><th>Ids</th><th class="number">Persons</th><th></th></tr>'
    return ["<h2>Ids per person</h2>", f"<table>{head}", *rows, "</table>"]


def _finding(finding: Finding) -> str:
    cases = "".join(f"<li><code>{escape(case_line(case))}</code></li>" for case in finding.cases)
    rest = finding.count - len(finding.cases)
    more = f"<p>and {rest:,} more</p>" if rest and finding.cases else ""
    return (
        f"<details open><summary><strong>{escape(finding_title(finding))}</strong>: {finding.count:,}</summary>"
        f"<div><p>{escape(finding.advice)}</p><ul>{cases}</ul>{more}</div></details>"
    )


def _largest(report: AuditReport) -> list[str]:
    if not report.largest:
        return []
    rows = (
        f'<tr><td><code>{escape(shown(one.person))}</code></td><td class="number">{one.ids:,}</td>'
        f'<td class="number">{one.events:,}</td></tr>'
        for one in report.largest
    )
    head = '<tr><th>Person</th><th class="number">Ids</th><th class="number">Events</th></tr>'
    return ["<h2>Persons with the most ids</h2>", f"<table>{head}", *rows, "</table>"]
