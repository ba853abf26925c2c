"""Presets: what the columns of other tools' exports mean. Pure: no I/O.

Sources of the column names, read 2026-11-29: Fivetran's schema of its Mixpanel connector and the seeds of its dbt
package; Amplitude's Export API; mParticle's JSON reference; the warehouse schemas and common fields of Segment and
RudderStack; Mixpanel's page on JSON pipelines. June no longer exists: the names are those that importers for its CSV
export expect.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .option_values import ColumnType, PresetName

_USER_ID: Final = ("user_id", "userId")
_ANONYMOUS_ID: Final = ("anonymous_id", "anonymousId")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Mapping of an export's columns to an event. Text times without a zone are in UTC.

    Args:
        source: the tool, for messages.
        signatures: sets of columns. A file that has all of one set is such an export.
        columns: columns by name of the field or property; the first one with a value counts.
        dropped: columns that are left out.
        spread: columns to spread.
        types: type by column.
        foreign: columns that no such export has, although it resembles one that has them.
    """

    source: str
    signatures: Sequence[frozenset[str]]
    columns: Mapping[str, Sequence[str]]
    dropped: frozenset[str]
    spread: Sequence[str]
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()


def _columns(*names: str) -> frozenset[str]:
    return frozenset(names)


def _same(*names: str) -> Mapping[str, Sequence[str]]:
    """Map Mixpanel's reserved properties from columns without the dollar sign."""
    return {f"${name}": (name,) for name in names}


# Columns of a call in the form that Segment defined, in JSON and in warehouses.
_CALL_COLUMNS: Final[Mapping[str, Sequence[str]]] = {
    "event": ("event_text", "event", "name"),
    "user_id": _USER_ID,
    "device_id": _ANONYMOUS_ID,
    "time": ("timestamp", "original_timestamp", "originalTimestamp"),
    "insert_id": ("messageId", "message_id", "id"),
    "ip": ("context_ip", "context.ip", "request_ip"),
    "$current_url": ("context_page_url", "context.page.url"),
}
_CALL_METADATA: Final = _columns(
    "channel",
    "integrations",
    "loaded_at",
    "original_timestamp",
    "originalTimestamp",
    "received_at",
    "receivedAt",
    "sent_at",
    "sentAt",
    "type",
    "uuid",
    "uuid_ts",
    "version",
    "writeKey",
    "writeKeyName",
)

PRESETS: Final[Mapping[PresetName, Preset]] = {
    PresetName.FIVETRAN: Preset(
        source="Fivetran",
        signatures=[
            _columns("_fivetran_id", "name", "distinct_id", "time"),
            _columns("_fivetran_synced", "name", "distinct_id", "time"),
        ],
        columns={
            "event": ("name",),
            "distinct_id": ("distinct_id",),
            "device_id": ("device_id",),
            "time": ("time",),
            "insert_id": ("insert_id",),
            **_same("app_build_number", "app_release", "app_version", "app_version_string", "brand", "browser"),
            **_same("browser_version", "carrier", "city", "current_url", "device", "initial_referrer"),
            **_same("initial_referring_domain", "lib_version", "manufacturer", "model", "os", "os_version", "radio"),
            **_same("referrer", "referring_domain", "region", "screen_dpi", "screen_height", "screen_width"),
            **_same("search_engine", "wifi"),
        },
        dropped=_columns(
            "_file",
            "_fivetran_deleted",
            "_fivetran_id",
            "_fivetran_synced",
            "_line",
            "distinct_id_before_identity",
            "event_id",
            "had_persisted_distinct_id",
            "mp_processing_time_ms",
        ),
        spread=["properties"],
    ),
    PresetName.MPARTICLE: Preset(
        source="mParticle",
        signatures=[
            _columns("events", "user_identities"),
            _columns("events", "mpid"),
            _columns("events", "mp_deviceid"),
            _columns("events", "source_request_id"),
        ],
        columns={
            "event": ("event_name", "screen_name", "event_type"),
            "user_id": ("user_identities.customer_id", "user_identities.customerid"),
            "device_id": ("mp_deviceid", "mpid"),
            "time": ("timestamp_unixtime_ms",),
            "insert_id": ("event_id", "source_message_id"),
            "ip": ("ip",),
        },
        dropped=_columns(
            "batch_id",
            "canonical_name",
            "consent_state",
            "context",
            "custom_flags",
            "deleted_user_attributes",
            "device_current_state",
            "event_num",
            "event_start_unixtime_ms",
            "integration_attributes",
            "message_id",
            "message_type",
            "mpid",
            "schema_version",
            "session_start_unixtime_ms",
            "source_info",
            "source_message_id",
            "source_request_id",
            "timestamp_unixtime_ms",
            "unique_id",
            "user_attributes",
            "user_identities",
        ),
        spread=["events.data.custom_attributes"],
    ),
    PresetName.AMPLITUDE: Preset(
        source="Amplitude",
        signatures=[_columns("event_type", "event_time", "event_properties"), _columns("event_type", "amplitude_id")],
        columns={
            "event": ("event_type",),
            "user_id": ("user_id",),
            "device_id": ("device_id",),
            "time": ("event_time",),
            "insert_id": ("$insert_id", "_insert_id", "uuid"),
            "ip": ("ip_address",),
            "$city": ("city",),
            "$region": ("region",),
            "$os": ("os_name",),
            "$os_version": ("os_version",),
            "$brand": ("device_brand",),
            "$carrier": ("device_carrier",),
            "$manufacturer": ("device_manufacturer",),
            "$model": ("device_model",),
            "$app_version_string": ("version_name",),
        },
        dropped=_columns(
            "$schema",
            "_fivetran_deleted",
            "_fivetran_id",
            "_fivetran_synced",
            "amplitude_attribution_ids",
            "amplitude_event_type",
            "amplitude_id",
            "app",
            "client_event_time",
            "client_upload_time",
            "data",
            "data_type",
            "event_id",
            "event_type_id",
            "global_user_properties",
            "group_properties",
            "is_attribution_event",
            "partner_id",
            "plan",
            "processed_time",
            "project_name",
            "sample_rate",
            "schema",
            "server_received_time",
            "server_upload_time",
            "source_id",
            "user_creation_time",
            "user_properties",
            "uuid",
        ),
        spread=["event_properties"],
    ),
    PresetName.JUNE: Preset(
        source="June",
        signatures=[_columns("name", "properties", "timestamp", "anonymous_id", "user_id")],
        columns={
            "event": ("name",),
            "user_id": _USER_ID,
            "device_id": _ANONYMOUS_ID,
            "time": ("timestamp",),
        },
        dropped=_columns("type"),
        spread=["properties"],
        types={"context": ColumnType.JSON},
    ),
    PresetName.RUDDERSTACK: Preset(
        source="RudderStack",
        signatures=[
            _columns("anonymousId", "originalTimestamp", "channel"),
            _columns("anonymous_id", "original_timestamp", "channel"),
            _columns("anonymous_id", "event", "context_destination_id"),
            _columns("rudderId", "event"),
        ],
        columns=_CALL_COLUMNS,
        dropped=_CALL_METADATA
        | _columns(
            "context_destination_id",
            "context_destination_type",
            "context_passed_ip",
            "context_request_ip",
            "context_source_id",
            "context_source_type",
            "request_ip",
            "rudderId",
        ),
        spread=["properties"],
        # Raw events of Segment have a channel too.
        foreign=_columns("_metadata", "projectId"),
    ),
    PresetName.SEGMENT: Preset(
        source="Segment",
        signatures=[
            _columns("anonymous_id", "event", "original_timestamp"),
            _columns("anonymous_id", "event", "event_text"),
            _columns("user_id", "event", "event_text", "timestamp"),
            _columns("messageId", "originalTimestamp", "event"),
            _columns("messageId", "timestamp", "event"),
        ],
        columns=_CALL_COLUMNS,
        dropped=_CALL_METADATA | _columns("_metadata", "projectId", "metadata"),
        spread=["properties"],
    ),
    PresetName.MIXPANEL: Preset(
        source="Mixpanel",
        signatures=[_columns("event_name", "distinct_id", "time", "properties")],
        columns={
            "event": ("event_name", "event"),
            "distinct_id": ("distinct_id",),
            "user_id": ("user_id",),
            "device_id": ("device_id",),
            "time": ("time",),
            "insert_id": ("insert_id",),
        },
        dropped=frozenset(),
        spread=["properties"],
    ),
}


def recognise(columns: Collection[str]) -> PresetName | None:
    """Return the preset for a file with these columns, or None."""
    names = frozenset(columns)
    for name, preset in PRESETS.items():
        if not preset.foreign & names and any(one <= names for one in preset.signatures):
            return name
    return None
