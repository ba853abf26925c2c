"""The events that a command reads: files, or an export that it fetches first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

from mixpanel_async import ConfigurationError

from .download import ExportAccess, ExportDownload, export_access
from .events import ExportFiles
from .messages import report_line


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiExport:
    """Export to fetch.

    Args:
        is_wanted: whether `--from-api` was given.
        first: first day as YYYY-MM-DD, or None.
        last: last day as YYYY-MM-DD, or None.
        directory: directory of the files.
        variables: values of options that replace environment variables, without the prefix `MIXPANEL_`.
        allow_http: accept `http://` for a host that is not this machine.
        quiet: print nothing about the download.
    """

    is_wanted: bool
    first: str | None
    last: str | None
    directory: Path
    variables: Mapping[str, str | None]
    allow_http: bool
    quiet: bool


def open_events(files: Sequence[str] | None, api: ApiExport) -> ExportFiles:
    """Return the events of the files, or of the export, which is fetched if it is not there yet.

    Raises:
        InputError: if a file cannot be read.
        ConfigurationError: if options do not fit together or are invalid.
        DownloadError: if the export cannot be fetched.
    """
    if not api.is_wanted:
        if api.first is not None or api.last is not None:
            raise ConfigurationError("--from-date and --to-date need --from-api")
        return ExportFiles(files or [])
    if files:
        raise ConfigurationError("give FILE or --from-api, not both")
    first, last = _day("--from-date", api.first), _day("--to-date", api.last)
    today = datetime.now(timezone.utc).date()
    if last < first:
        raise ConfigurationError(f"--to-date {last} is before --from-date {first}")
    # Somewhere on earth it is tomorrow already.
    if last > today + timedelta(days=1):
        raise ConfigurationError(f"--to-date {last} is in the future")
    download = ExportDownload(project_access(api), api.directory, report=_silent if api.quiet else report_line)
    return ExportFiles([str(path) for path in download.run(first, last)])


def project_access(api: ApiExport) -> ExportAccess:
    """Return the host and the credentials of the project.

    Raises:
        ConfigurationError: if credentials are missing or the host is invalid.
    """
    given = {f"MIXPANEL_{name}": value for name, value in api.variables.items() if value is not None}
    return export_access({**os.environ, **given}, allow_http=api.allow_http)


def _day(option: str, text: str | None) -> date:
    if text is None:
        raise ConfigurationError(f"--from-api needs {option} as YYYY-MM-DD")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{option} must be a day as YYYY-MM-DD, not {text!r}") from None


def _silent(line: str) -> None:
    """Print nothing."""
