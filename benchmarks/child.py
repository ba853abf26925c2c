"""One measurement in a process of its own: `python -m benchmarks.child SECTION ARGUMENTS` prints one JSON object.

The arguments are those of the section's `measure`, as a JSON object.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The most memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss outlives exec on Linux, and would then show the parent's size instead of ours.
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if peak:
            return int(peak[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    section = importlib.import_module(f"benchmarks.inside.{sys.argv[1]}")
    print(json.dumps(section.measure(**json.loads(sys.argv[2]))))
