"""The error for an id that no recording has."""

from __future__ import annotations

from flerm_core.errors import NotFound


def unknown_recording(recording_id: str) -> NotFound:
    """The error for an id that no recording has, or none that the asker may see."""
    return NotFound(
        f"recording {recording_id[:80]!r} is not in this registry; "
        "list them by family to find its id"
    )
