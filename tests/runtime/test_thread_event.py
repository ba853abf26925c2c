"""Event for threads: set, cleared and waited for by several threads."""

from __future__ import annotations

import threading

from mixpanel_async._runtime.thread_event import ThreadEvent


def test_event_wakes_all_waiting_threads() -> None:
    event = ThreadEvent()
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(event.wait(20.0))) for _ in range(5)]
    for thread in threads:
        thread.start()
    event.set()
    for thread in threads:
        thread.join(20.0)
    assert results == [True] * 5
    assert event.wait(0.0)


def test_wait_ends_after_its_timeout() -> None:
    event = ThreadEvent()
    assert not event.wait(0.001)
    assert not event.is_set()


def test_cleared_event_does_not_wake_early() -> None:
    event = ThreadEvent()
    for _ in range(3):
        event.set()
        event.set()
        assert event.is_set()
        assert event.wait(0.0)
        event.clear()
        assert not event.is_set()
        assert not event.wait(0.001)


def test_no_wake_up_is_missed() -> None:
    """The waiting thread clears the event before it looks for work, as the writer of a spool does."""
    event, rounds, done = ThreadEvent(), 2_000, 0

    def work() -> None:
        nonlocal done
        seen = 0
        while seen < rounds:
            event.wait(20.0)
            event.clear()
            seen = given
            done = seen

    given = 0
    worker = threading.Thread(target=work)
    worker.start()
    for number in range(1, rounds + 1):
        given = number
        event.set()
    worker.join(20.0)
    assert done == rounds
