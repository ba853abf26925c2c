"""One measurement in a child process: `python -m benchmarks.child SECTION ARGUMENTS` prints one JSON object.

ARGUMENTS is a JSON object with the arguments of the section's `measure`.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux, ru_maxrss survives exec and can report the size of the parent.
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if peak:
            return int(peak[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    section = importlib.import_module(f"benchmarks.inside.{sys.argv[1]}")
    print(json.dumps(section.measure(**json.loads(sys.argv[2]))))
