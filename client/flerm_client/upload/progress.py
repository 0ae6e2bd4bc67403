"""How much of a spool file is delivered.

The sender writes it to a small file beside the spool file. The training process reads it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from flerm_client.spool.paths import sidecar
from flerm_core._files import atomic_write

log = logging.getLogger("flerm.delivery")


@dataclass(slots=True)
class DeliveryProgress:
    """How many measurements were acknowledged and refused for good, and the current problem."""

    acknowledged: int = 0
    refused: int = 0
    problem: str = ""

    @classmethod
    def of(cls, path: Path) -> DeliveryProgress:
        """The progress last written for the spool file `path`; all zero when none was written."""
        try:
            return cls(**json.loads(sidecar(path, ".progress").read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, path: Path) -> bool:
        """Writes the progress for the spool file `path`, and returns whether it was written.

        A full disk makes it fail. The delivery does not depend on this file.
        """
        target = sidecar(path, ".progress")
        try:
            atomic_write(target, json.dumps(asdict(self)))
        except OSError as error:
            log.warning("%s cannot be written: %s", target, error.strerror)
            return False
        return True
