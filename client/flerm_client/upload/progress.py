"""How far a spool file came: told by the sender in a small file beside it, read by the training process and `flerm doctor`."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from flerm_client.spool.paths import sidecar

log = logging.getLogger("flerm.delivery")


@dataclass(slots=True)
class DeliveryProgress:
    """Counts of measurements, and what stands in the way at present."""

    acknowledged: int = 0
    refused: int = 0  # for good
    problem: str = ""

    @classmethod
    def of(cls, path: Path) -> DeliveryProgress:
        """What was last told of the spool file `path`; nothing yet is zero."""
        try:
            return cls(**json.loads(sidecar(path, ".progress").read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def tell(self, path: Path) -> bool:
        """Writes it beside the spool file `path`; False when it cannot be (a full disk: the delivery needs none of it)."""
        target = sidecar(path, ".progress")
        fresh = sidecar(path, f".progress-{os.getpid()}")
        try:
            fresh.write_text(json.dumps(asdict(self)))
            fresh.replace(target)
        except OSError as error:
            log.warning("%s cannot be written: %s", target, error.strerror)
            return False
        return True
