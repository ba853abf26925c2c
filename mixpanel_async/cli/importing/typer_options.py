"""Typer declarations of the options of `mixpanel-async import`, with their help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .option_values import Format, ImportKind, InsertIds, Nesting, Operation, PresetName

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="Files or glob patterns; - reads standard input.", show_default=False),
]
Kind = Annotated[ImportKind, typer.Option(help="Kind of records in the files.")]
FileFormat = Annotated[Format, typer.Option(help="Format of the files; auto detects it from content and file name.")]
Maps = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=COLUMN", help="Read a field or property from a column; a.b reads b inside a."),
]
Sets = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Set a field or property on every record.")]
Drops = Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Ignore a column.")]
Preset = Annotated[
    PresetName | None,
    typer.Option(help="Map the columns of an export of this tool; other options win over it."),
]
Spreads = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="Make properties of the keys of an object, or a record of each object in a list; JSON text counts. a.b "
        "spreads a, then b in it.",
    ),
]
Types = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN=TYPE", help="Convert a column to text, number, boolean, time or json."),
]
InferTypes = Annotated[bool, typer.Option("--infer-types", help="Convert text that looks like a number or a boolean.")]
Decimal = Annotated[
    str | None,
    typer.Option(
        metavar="MARK",
        help="Decimal mark of numbers in text: , or . (default). If given, the other one may separate thousands.",
    ),
]
TimeFormat = Annotated[
    str,
    typer.Option(
        metavar="FORMAT",
        help="auto (seconds, milliseconds or ISO 8601), iso, seconds, milliseconds, microseconds, nanoseconds, or "
        "a strptime pattern such as '%d.%m.%Y %H:%M'.",
    ),
]
Timezone = Annotated[
    str | None,
    typer.Option(metavar="ZONE", help="Time zone of text without one, such as Europe/Vienna, UTC or +02:00."),
]
ProjectTimezone = Annotated[
    str | None,
    typer.Option(
        metavar="ZONE",
        help="Convert numeric times of events from the project's time zone, such as Europe/Vienna: raw exports of "
        "projects made before 2023 have them. auto uses the offsets from $mp_api_timestamp_ms; UTC converts nothing.",
    ),
]
ProfileOperation = Annotated[Operation, typer.Option(help="Operation for profile records that do not name one.")]
DeepValues = Annotated[
    Nesting,
    typer.Option(
        help="What happens in events to objects and lists more than 3 levels deep, which Mixpanel may reject: text "
        "(sent as JSON text), keep, cut (left out) or reject (the event)."
    ),
]
InsertIdSource = Annotated[
    InsertIds,
    typer.Option(help="How to generate a missing $insert_id: content (equal events count once) or line."),
]
Delimiter = Annotated[str | None, typer.Option(help="CSV delimiter; default: comma, or tab for TSV.")]
Encoding = Annotated[str, typer.Option(help="CSV encoding.")]
Token = Annotated[str | None, typer.Option(help="Project token; or set MIXPANEL_TOKEN.")]
ServiceAccount = Annotated[
    str | None,
    typer.Option(metavar="USER", help="Service account user name; or set MIXPANEL_SERVICE_ACCOUNT_USERNAME."),
]
ServiceAccountSecret = Annotated[
    str | None,
    typer.Option(
        metavar="SECRET",
        help="Service account secret. Prefer MIXPANEL_SERVICE_ACCOUNT_SECRET: other users of this machine may see "
        "the command line.",
    ),
]
ProjectId = Annotated[str | None, typer.Option(help="Project id of the service account; or set MIXPANEL_PROJECT_ID.")]
Region = Annotated[str | None, typer.Option(help="us, eu or in; or set MIXPANEL_REGION.")]
ApiHost = Annotated[str | None, typer.Option(help="Host or origin, instead of a region; or set MIXPANEL_API_HOST.")]
AllowHttp = Annotated[bool, typer.Option("--allow-http", help="Allow an http:// origin that is not on this machine.")]
Concurrency = Annotated[
    int, typer.Option(min=1, max=50, help="Maximum number of requests in flight; reduced after HTTP 429.")
]
Patience = Annotated[
    float,
    typer.Option(min=1, max=86_400, metavar="SECONDS", help="Give up after this time without an accepted record."),
]
AtLeastOnce = Annotated[
    bool, typer.Option("--at-least-once", help="Resend $add, $append and $remove that may already have been applied.")
]
RejectsPath = Annotated[
    Path | None, typer.Option(help="File for all rejected records, instead of FILE.import-rejects for each file.")
]
StateDirectory = Annotated[
    Path | None, typer.Option(help="Directory for checkpoints and rejects, instead of the directory of each file.")
]
UseCheckpoints = Annotated[
    bool, typer.Option("--checkpoint/--no-checkpoint", help="Keep a checkpoint in FILE.import-state, to resume from.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Ignore existing checkpoints and import from the start.")]
IsDryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check all records without sending any, and report the result of each.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result of a dry run as JSON.")]
IsQuiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress, nor the report of a dry run.")]
