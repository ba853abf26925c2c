"""Identity graph: what the identity calls of a project make of its ids, in each of Mixpanel's three ID merge systems.

    graph = IdentityGraph("original")
    for event in events_in_order_of_arrival:
        result = graph.apply(event)
        if result.outcome == "failed":
            print(result.description, result.advice)
    print(graph.person_count, graph.cluster("user-1"))

Pure: no I/O and no clocks. It imports the standard library and `_model` only. The emulator and the commands
`mixpanel-async identity` use it. Start reading at `graph.py`, then at `systems.py`, which has the rules.
"""

from __future__ import annotations

from .audit import Audit
from .calls import (
    CREATE_ALIAS,
    DEVICE_LINK,
    DEVICE_PREFIX,
    FORBIDDEN_IDS,
    IDENTIFY,
    MERGE,
    VERBS,
    as_id,
    id_problem,
    is_anonymous,
    is_forbidden,
    verb_ids,
)
from .comparison import GraphDiff, PersonChange
from .findings import Case, Finding, FindingKind
from .graph import IdentityGraph, Step
from .history import History, Order, ReplayedCall
from .report import AuditReport, LargePerson
from .results import IdentityResult, Outcome, Reason
from .systems import CLUSTER_LIMIT

__all__ = [
    "CLUSTER_LIMIT",
    "CREATE_ALIAS",
    "DEVICE_LINK",
    "DEVICE_PREFIX",
    "FORBIDDEN_IDS",
    "IDENTIFY",
    "MERGE",
    "VERBS",
    "Audit",
    "AuditReport",
    "Case",
    "Finding",
    "FindingKind",
    "GraphDiff",
    "History",
    "IdentityGraph",
    "IdentityResult",
    "LargePerson",
    "Order",
    "Outcome",
    "PersonChange",
    "Reason",
    "ReplayedCall",
    "Step",
    "as_id",
    "id_problem",
    "is_anonymous",
    "is_forbidden",
    "verb_ids",
]
