"""Audit of the ids that the emulator holds. Pure.

The events go through the same audit as a raw export, in the order in which the emulator received them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mixpanel_async._model.config import IdMerge
from mixpanel_async.identity import Audit, AuditReport, Order

from .change_set import EventRow
from .reports import read_event

_CASES: Final = 20


def audit_events(rows: Iterable[EventRow], id_merge: IdMerge, cluster_limit: int) -> AuditReport:
    """Return the report about stored events.

    Args:
        rows: the events in order of arrival.
        id_merge: ID merge system of the project.
        cluster_limit: maximum number of ids of one person in an Original project.
    """
    audit = Audit(id_merge, cluster_limit=cluster_limit, order=Order.INPUT, cases=_CASES)
    for row in rows:
        name, person, _, (endpoint, received_at) = row
        properties, sent = read_event(row)
        # As an export shows the event: the audit goes by these properties.
        properties |= {"distinct_id": person, "$distinct_id_before_identity": sent}
        properties["mp_processing_time_ms"] = int(received_at * 1000)
        if endpoint == "/import":
            properties["$import"] = True
        audit.add({"event": name, "properties": properties})
    return audit.report()
