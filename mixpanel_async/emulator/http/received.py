"""Methods of the emulator that read what it received besides events and profiles: requests, rejections, recordings."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..project.lookup_tables import table_rows
from .app import EmulatorState, RecordedRequest
from .request_log import ENTRY_LIMIT, RequestDigest


class ReceivedData:
    """Methods of the emulator that read what it received besides events and profiles."""

    _state: EmulatorState

    def rejected(self) -> list[dict[str, Any]]:
        """Return the records and whole requests that were not stored, in order. The latest 1,000 are kept.

        An entry has `endpoint`, `field` (path of the offending property, or empty), `message`, `record` (a shortened
        copy; None for a whole request) and `silent` (true if the response reported success all the same).
        """
        with self._state.lock:
            return [dataclasses.asdict(rejection) for rejection in self._state.project.rejections]

    def lookup_tables(self) -> dict[str, list[dict[str, str]]]:
        """Return the rows of all lookup tables by id of the table, each row as an object by column.

        Tables are kept in memory only, at most 100 MiB together.
        """
        with self._state.lock:
            contents = self._state.project.lookup_tables.contents()
        return {table: table_rows(content) for table, content in contents.items()}

    def unsupported(self) -> list[dict[str, Any]]:
        """Return the endpoints of Mixpanel that clients asked for and the emulator does not have, the latest last.

        An entry has `method`, `path` (`{id}` stands for an id), `count`, and `first` and `last`, the times of the first
        and the latest request in seconds since the epoch. At most 200 endpoints are kept. Such requests are answered
        with status 501.
        """
        with self._state.lock:
            endpoints = self._state.project.unsupported.endpoints()
        return [dataclasses.asdict(endpoint) for endpoint in endpoints]

    def requests(self) -> list[RecordedRequest]:
        """Return the requests received, in order, without credentials. The latest 10,000 are kept."""
        with self._state.lock:
            return list(self._state.requests)

    def request_log(self, after: int = 0, *, limit: int = ENTRY_LIMIT, across_resets: bool = False) -> RequestDigest:
        """Return the totals of all requests, and the latest requests with their results, without their content.

        Unlike `requests()`, this covers all requests except those for the live page and `/_emulator/`, such as unknown
        paths. The cost does not depend on the number of requests before `after`.

        Example:
            ```python
            from mixpanel_async.emulator import Emulator

            emulator = Emulator()
            with emulator.client().in_thread() as mp:
                mp.track("user-1", "Order placed")
            digest = emulator.request_log()
            assert digest.requests == 1
            assert emulator.request_log(after=digest.requests).requests == 1
            ```

        Args:
            after: return only requests with a higher number. A number from before a `reset` returns all.
            limit: maximum number of entries, 1 to 1,000, which is how many are kept. The latest are returned.
            across_resets: include requests from before a `reset`. `after` and the totals then count from the start of
                the emulator, so that a reader misses no request; the numbers of the entries restart at each reset.

        Raises:
            ValueError: if a value is out of bounds.
        """
        if after < 0 or not 1 <= limit <= ENTRY_LIMIT:
            raise ValueError(f"after must be at least 0 and limit 1 to {ENTRY_LIMIT}, not {after} and {limit}")
        with self._state.lock:
            return self._state.log.digest(after, limit, across_resets=across_resets)

    def recordings(self) -> list[dict[str, Any]]:
        """Return the session recordings of browser SDKs, in order of their latest batch. The latest 1,000 are kept.

        An entry has `replay_id`, `distinct_id`, `batches`, `body_bytes` (size of the batches as received, compressed)
        and `seconds` (length of the recording). The content of a recording is not kept.
        """
        with self._state.lock:
            return [dataclasses.asdict(recording) for recording in self._state.recordings.all()]
