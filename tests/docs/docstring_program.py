"""Program that runs the examples of docstrings, in a folder: `docstring_program.py FOLDER`.

The name of a file begins with its ID merge system. Clients connect to an emulator with that system, so that nothing
leaves the machine. It prints the traceback of each file that failed, as JSON by name of the file.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.worker import Worker


def run(file: Path, url: str) -> None:
    """Run a file as `python FILE` does, and check that its clients have delivered everything."""
    clients: list[AsyncMixpanel] = []
    originals = {cls: cls.__init__ for cls in (AsyncMixpanel, Worker)}

    def connecting(cls: Any) -> Any:
        def connect(self: Any, *arguments: Any, **options: Any) -> None:
            if "http_client" not in options:
                options.setdefault("api_host", url)
            originals[cls](self, *arguments, **options)
            if cls is AsyncMixpanel:
                clients.append(self)

        return connect

    for cls in originals:
        cls.__init__ = connecting(cls)  # type: ignore[method-assign]
    try:
        with redirect_stdout(StringIO()):
            runpy.run_path(str(file), run_name="__main__")
    finally:
        for cls, init in originals.items():
            cls.__init__ = init  # type: ignore[method-assign]
    for client in clients:
        stats = client.stats()
        assert stats.pending == 0, "records wait; a complete program closes its client"
        assert stats.accepted == stats.delivered, stats


def failure_of(file: Path, url: str) -> str | None:
    """Run a file and return its traceback; None if it succeeds."""
    try:
        run(file, url)
    except (Exception, SystemExit):  # noqa: BLE001  reported
        return traceback.format_exc()
    return None


def main() -> None:
    warnings.simplefilter("error")
    folder = Path(sys.argv[1])
    os.chdir(folder)
    failures = {}
    for system in IdMerge:
        with Emulator(system).serve() as server:
            os.environ |= {"MIXPANEL_TOKEN": "PROJECT_TOKEN", "MIXPANEL_API_HOST": server.url}
            for file in sorted(folder.glob(f"{system.value}-*.py")):
                if (failure := failure_of(file, server.url)) is not None:
                    failures[file.name] = failure
    sys.stdout.write(json.dumps(failures))


main()
