"""Scalars and vectors beyond the FSLRs (sharpness, multipliers, ...) of one row, as one blob."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flerm_core.records.packing import pack, unpack
from flerm_proto.v1 import registry_pb2 as pb


def encode(
    scalars: Mapping[str, float], vectors: Mapping[str, NDArray[np.float32]]
) -> bytes | None:
    """Both as the wire's own message; None when there is neither. Equal content gives equal bytes."""
    if not scalars and not vectors:
        return None
    message = pb.Measurement(
        scalars=scalars, vectors={name: pack(vector) for name, vector in vectors.items()}
    )
    return message.SerializeToString(deterministic=True)


def decode(data: bytes | None) -> tuple[dict[str, float], dict[str, NDArray[np.float32]]]:
    """What `encode` packed."""
    message = pb.Measurement.FromString(data or b"")
    return dict(message.scalars), {
        name: unpack(vector, 1)[:, 0] for name, vector in message.vectors.items()
    }
