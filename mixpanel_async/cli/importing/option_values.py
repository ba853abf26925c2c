"""Enumerations of option values."""

from __future__ import annotations

from enum import Enum


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


class ColumnType(str, Enum):
    """Type that the text of a column is converted to."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIME = "time"
    JSON = "json"
