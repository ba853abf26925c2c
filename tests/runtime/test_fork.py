"""Fork markers: which processes recognise themselves as a forked child."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import pytest

from mixpanel_async import AsyncMixpanel, Stats
from mixpanel_async._runtime.fork import ForkMarker

COUNT_HOOKS = """
import os
registered = []
register = os.register_at_fork
os.register_at_fork = lambda **hooks: (registered.append(hooks), register(**hooks))
from mixpanel_async import AsyncMixpanel
from mixpanel_async._runtime.fork import ForkMarker
ours = [hooks for hooks in registered if hooks.get("after_in_child").__module__.startswith("mixpanel_async")]
first = len(ours)
clients = [AsyncMixpanel("token") for _ in range(3)]
ours = [hooks for hooks in registered if hooks.get("after_in_child").__module__.startswith("mixpanel_async")]
print(first, len(ours))
"""
FORK = """
import os
from mixpanel_async._runtime.fork import ForkMarker

kept, dropped = ForkMarker(), ForkMarker()
del dropped
if os.fork() == 0:
    os._exit(kept.is_current or not ForkMarker().is_current)
_, status = os.wait()
print(status, kept.is_current)
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def run(program: str) -> list[str]:
    """Run a program in a separate process, because forking a process with threads is unsafe."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.split()


@needs_fork
def test_marker_expires_in_a_forked_child_only() -> None:
    assert run(FORK) == ["0", "True"]


@needs_fork
def test_one_fork_hook_is_registered_with_the_first_client() -> None:
    assert run(COUNT_HOOKS) == ["0", "1"]


def test_queue_notices_another_process_id_without_a_fork_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    mp = AsyncMixpanel("token")
    mp.track_nowait("user", "Event")
    assert mp.stats().pending == 1
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert mp.stats() == Stats()


def test_marker_is_released_with_its_owner() -> None:
    marker = ForkMarker()
    reference = weakref.ref(marker)
    del marker
    gc.collect()
    assert reference() is None
