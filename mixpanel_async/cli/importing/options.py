"""The options of `mixpanel-async import`, as its help shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .column_mapping import ImportKind, InsertIds, Operation
from .inputs import Format

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="Files or patterns; - is the standard input.", show_default=False),
]
KindOf = Annotated[ImportKind, typer.Option(help="What the records are.")]
FormatOf = Annotated[
    Format, typer.Option(help="How records lie in the files; auto goes by their first bytes and their names.")
]
Maps = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=COLUMN", help="Take a field or property from a column; a.b is the b within a."),
]
Sets = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Give every record this field or property.")]
Drops = Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Leave a column out.")]
Types = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN=TYPE", help="Read a column as text, number, boolean, time or json."),
]
InferTypes = Annotated[
    bool, typer.Option("--infer-types", help="Read text that looks like a number or a boolean as one.")
]
TimeFormat = Annotated[
    str,
    typer.Option(
        metavar="FORMAT",
        help="auto (seconds, milliseconds or ISO 8601), iso, seconds, milliseconds, microseconds, nanoseconds, or "
        "a pattern such as '%d.%m.%Y %H:%M'.",
    ),
]
Timezone = Annotated[
    str | None,
    typer.Option(metavar="ZONE", help="Zone of times that name none, such as Europe/Vienna, UTC or +02:00."),
]
OperationOf = Annotated[
    Operation, typer.Option(help="What to do with the properties of profiles whose records do not say.")
]
InsertIdsOf = Annotated[
    InsertIds,
    typer.Option(help="What a missing $insert_id is made of: content (equal events count once) or line."),
]
Delimiter = Annotated[str | None, typer.Option(help="Of CSV: a comma, or a tab in TSV.")]
Encoding = Annotated[str, typer.Option(help="Of CSV.")]
Token = Annotated[str | None, typer.Option(help="The project's token; or MIXPANEL_TOKEN.")]
ServiceAccount = Annotated[str | None, typer.Option(metavar="USER", help="Or MIXPANEL_SERVICE_ACCOUNT_USERNAME.")]
ServiceAccountSecret = Annotated[
    str | None,
    typer.Option(
        metavar="SECRET",
        help="Better in MIXPANEL_SERVICE_ACCOUNT_SECRET: others on this machine may see a command line.",
    ),
]
ProjectId = Annotated[str | None, typer.Option(help="Of the service account; or MIXPANEL_PROJECT_ID.")]
Region = Annotated[str | None, typer.Option(help="us, eu or in; or MIXPANEL_REGION.")]
ApiHost = Annotated[str | None, typer.Option(help="A host or an origin instead; or MIXPANEL_API_HOST.")]
AllowHttp = Annotated[bool, typer.Option("--allow-http", help="Take an http:// origin that is not on this machine.")]
Concurrency = Annotated[int, typer.Option(min=1, max=50, help="Requests at once, at most; fewer after a 429.")]
Patience = Annotated[
    float, typer.Option(min=1, max=86_400, metavar="SECONDS", help="Give up if nothing was taken for so long.")
]
AtLeastOnce = Annotated[
    bool, typer.Option("--at-least-once", help="Send $add, $append and $remove again that may have been applied.")
]
RejectsFile = Annotated[
    Path | None, typer.Option(help="One file for rejected records, instead of FILE.import-rejects for each.")
]
StateDirectory = Annotated[
    Path | None, typer.Option(help="Directory for checkpoints and rejects, instead of beside the files.")
]
KeepsCheckpoints = Annotated[
    bool, typer.Option("--checkpoint/--no-checkpoint", help="Keep in FILE.import-state what it takes to go on.")
]
Restarts = Annotated[bool, typer.Option("--restart", help="Begin anew, whatever was imported before.")]
IsDry = Annotated[bool, typer.Option("--dry-run", help="Check everything and send nothing.")]
IsQuiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
