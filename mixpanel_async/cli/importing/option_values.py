"""Enumerations of option values."""

from __future__ import annotations

from enum import Enum
from typing import Literal


class ImportKind(str, Enum):
    """Kind of record in a file."""

    EVENTS = "events"
    PEOPLE = "people"
    GROUPS = "groups"


class Format(str, Enum):
    """File format."""

    AUTO = "auto"
    NDJSON = "ndjson"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"


class Operation(str, Enum):
    """Operation applied to the properties of a profile."""

    SET = "set"
    SET_ONCE = "set_once"
    ADD = "add"
    APPEND = "append"
    UNION = "union"
    REMOVE = "remove"
    UNSET = "unset"
    DELETE = "delete"


class InsertIds(str, Enum):
    """Source of a generated `$insert_id`, for events that have none."""

    CONTENT = "content"
    LINE = "line"


class Nesting(str, Enum):
    """Policy for objects and lists of events that are nested more than 3 levels deep."""

    TEXT = "text"
    KEEP = "keep"
    CUT = "cut"
    REJECT = "reject"

    @property
    def of_client(self) -> Literal["text", "keep", "reject"]:
        """The client's option. The client cannot cut: the importer does so before."""
        return "keep" if self is Nesting.CUT else self.value


class ColumnType(str, Enum):
    """Type that the text of a column is converted to."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIME = "time"
    JSON = "json"


class PresetName(str, Enum):
    """Tool whose exports have a preset."""

    AMPLITUDE = "amplitude"
    FIVETRAN = "fivetran"
    JUNE = "june"
    MIXPANEL = "mixpanel"
    MPARTICLE = "mparticle"
    RUDDERSTACK = "rudderstack"
    SEGMENT = "segment"
