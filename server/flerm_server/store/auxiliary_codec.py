"""The auxiliary values of one row (sharpness, multipliers) as bytes of one column."""

from __future__ import annotations

from flerm_core.records.auxiliary import Auxiliary
from flerm_core.records.packing import pack, unpack
from flerm_proto.v1 import registry_pb2 as pb


def encode(auxiliary: Auxiliary | None) -> bytes | None:
    """The auxiliary values as the wire's own message. Equal content gives equal bytes."""
    if auxiliary is None or not (auxiliary.scalars or auxiliary.vectors):
        return None
    vectors = {name: pack(vector) for name, vector in auxiliary.vectors.items()}
    message = pb.Measurement(scalars=auxiliary.scalars, vectors=vectors)
    return message.SerializeToString(deterministic=True)


def decode(data: bytes | None) -> Auxiliary | None:
    """The auxiliary values that `encode` packed."""
    if data is None:
        return None
    message = pb.Measurement.FromString(data)
    vectors = {name: unpack(vector, 1)[:, 0] for name, vector in message.vectors.items()}
    return Auxiliary(dict(message.scalars), vectors)
