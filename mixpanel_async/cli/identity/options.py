"""Typer declarations of the options that several identity commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixpanel_async import IdMerge
from mixpanel_async.identity import Order

ExportNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE...",
        help="Raw exports as NDJSON, plain or gzip, zstd or zip, and glob patterns; - reads standard input.",
        show_default=False,
    ),
]
ProjectIdMerge = Annotated[
    IdMerge,
    typer.Option(
        "--id-merge",
        envvar="MIXPANEL_ID_MERGE",
        case_sensitive=False,
        help="ID merge system of the project, as its settings in Mixpanel say.",
        show_default=False,
    ),
]
ClusterLimit = Annotated[int, typer.Option(min=2, help="Maximum number of ids per person (Original).")]
ReplayOrder = Annotated[
    Order,
    typer.Option(
        "--order",
        help="Order in which identity calls are replayed. arrival: by $mp_api_timestamp_ms or mp_processing_time_ms, "
        "which Mixpanel adds, else by time. time: by time. input: as in the files.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
ShownCases = Annotated[int, typer.Option("--cases", min=0, help="Number of cases listed of each finding.")]

Profiles = Annotated[
    list[str] | None,
    typer.Option(
        "--profiles",
        metavar="FILE",
        help="User profiles, to find persons who share an $email that their events do not have: one profile per line "
        "with $distinct_id and $properties, or answers of the profile query, each on one line. Repeatable.",
        show_default=False,
    ),
]
ReadProfiles = Annotated[
    bool,
    typer.Option(
        "--read-profiles",
        help="Read the user profiles from the project, with at most 50 queries of 1,000 profiles. Needs a service "
        "account or --api-secret.",
    ),
]
FromApi = Annotated[
    bool,
    typer.Option(
        "--from-api",
        help="Fetch the raw export of a range of days instead of reading files. Files of earlier days that are there "
        "already are not fetched again. Needs --api-secret or a service account.",
    ),
]
FromDate = Annotated[
    str | None, typer.Option(metavar="DAY", help="First day of --from-api, as YYYY-MM-DD.", show_default=False)
]
ToDate = Annotated[
    str | None, typer.Option(metavar="DAY", help="Last day of --from-api, as YYYY-MM-DD.", show_default=False)
]
DownloadDirectory = Annotated[
    Path, typer.Option("--download-dir", metavar="DIR", help="Directory for the files of --from-api.")
]
ApiSecret = Annotated[
    str | None,
    typer.Option(metavar="SECRET", help="Secret of the project; prefer MIXPANEL_API_SECRET.", show_default=False),
]
