"""The batch size that a recording says: the examples of one optimiser step.

A step's examples are those of all ranks and of all accumulated micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flerm_core.records.checks import MAX_INTEGER
from flerm_core.records.recording import Recording, RecordingSpec

BATCH_SIZE = "batch_size"
"""The name under which a recording's configuration, or else its tags, hold the batch size."""


def batch_size_of(spec: RecordingSpec) -> int | None:
    """The examples of one optimiser step of a recording; None where the recording does not say."""
    return said_batch_size(spec.config, spec.tags)


def said_batch_size(config: Mapping[str, Any], tags: Mapping[str, str]) -> int | None:
    """The batch size that a run's configuration says, or else its tags, which may be set later."""
    value = config.get(BATCH_SIZE, tags.get(BATCH_SIZE))
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # a whole number that came by the wire
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 1 <= value <= MAX_INTEGER else None


def common_batch_size(recordings: Iterable[Recording]) -> int | None:
    """The batch size that all `recordings` say; None where one says none or another."""
    said = {batch_size_of(each.spec) for each in recordings}
    return said.pop() if len(said) == 1 else None
