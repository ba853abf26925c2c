"""Emulator section: an emulator on a socket and one core: `python -m benchmarks.inside.emulator`.

The process prints its address and then, for each line on standard input, the seconds of CPU used so far.
"""

from __future__ import annotations

import sys
import time

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

from .loops import pin_to_one_core


def main() -> None:
    """Serve until standard input closes."""
    pin_to_one_core()
    with Emulator(IdMerge(sys.argv[1])).serve() as server:
        print(server.url, flush=True)
        for _ in sys.stdin:
            print(time.process_time(), flush=True)


if __name__ == "__main__":
    main()
