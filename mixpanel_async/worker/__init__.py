"""Worker: delivers the records of an outbox to Mixpanel. Several workers share one outbox.

May import everything below `_client`. It uses the queue and the requests of the client, fed by claimed entries.

Start reading at `session.py`, which runs the tasks; `claims.py` knows which records of which entries are left.
"""

from .worker import Worker, WorkerStats

__all__ = ["Worker", "WorkerStats"]
