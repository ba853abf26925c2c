"""Partition of a profile or group update: all updates of one id are in the same one, so that their order is kept."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import orjson


def partition_of(record: bytes, partitions: int) -> int:
    """Return the partition of an encoded update, from 0 to `partitions - 1`.

    The id alone decides. Ids that were merged into one person may be in two partitions.
    """
    message = orjson.loads(memoryview(record))
    group = message.get("$group_key")
    name = str(message.get("$distinct_id")) if group is None else f"{group}\0{message.get('$group_id')}"
    return zlib.crc32(name.encode()) % partitions


def split_by_partition(records: Sequence[bytes], partitions: int) -> dict[int, list[int]]:
    """Return the positions of the updates of each partition that has any."""
    positions: dict[int, list[int]] = {}
    for at, record in enumerate(records):
        positions.setdefault(partition_of(record, partitions), []).append(at)
    return positions
