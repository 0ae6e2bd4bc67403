"""Recordings of small decoders with given FSLRs."""

from __future__ import annotations

from flerm_core import Trajectory


def decoder(blocks: int, axis: str = "layers") -> list[str]:
    """A model of `blocks` blocks."""
    return ["embed.weight", *(f"{axis}.{at}.attn.q.weight" for at in range(blocks)), "head.weight"]


def base(values: list[float], joint: float | None = None) -> Trajectory:
    """A recording of a decoder whose blocks measured `values`, with embed 10 and head 20."""
    names = decoder(len(values)) + (["layers.*.attn.q.weight"] if joint is not None else [])
    row = [10.0, *values, 20.0] + ([joint] if joint is not None else [])
    shapes = [(4, 4)] * (len(values) + 2) + [()] * (joint is not None)
    return Trajectory(names, shapes, [1, 101], [row, [4 * value for value in row]])


def blocks_of(targets: dict[str, float]) -> list[float]:
    return [value for name, value in targets.items() if name.startswith("layers.")]
