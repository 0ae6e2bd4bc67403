"""Registries to show on pages: a family with a sweep, scaled runs and a live run; large ones."""

from __future__ import annotations

import math
import uuid

import numpy as np

from flerm_core.matching.targets import targets_digest
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.recording import Attempt, Ending, Measurement, ParameterList, RecordingSpec
from flerm_server.store.interface import Batch, Store

RATES = (0.001, 0.002, 0.004, 0.008, 0.016)


def parameters(blocks: int = 2, width: int = 32) -> ParameterList:
    """A decoder's parameters: embedding, readout; a block has query, value, feed-forward, norms."""
    roles = {
        "attn.q": "query/key",
        "attn.v": "value/output",
        "mlp.up": "feed-forward",
        "mlp.down": "feed-forward",
        "norm1": "norm",
        "norm2": "norm",
    }
    found = [("embed.weight", (256, width), "embedding")]
    for block in range(blocks):
        for role, band in roles.items():
            shape = (width,) if band == "norm" else (width, width)
            found.append((f"layers.{block}.{role}.weight", shape, band))
    found.append(("readout.weight", (256, width), "readout"))
    names, shapes, bands = zip(*found, strict=True)
    return ParameterList(names, shapes, bands)


def fslrs(listed: ParameterList, steps: np.ndarray, seed: int, scale: float = 1.0) -> np.ndarray:
    """FSLRs [steps, parameters] that fall as in real runs, each tensor at a level of its own."""
    noise = np.random.default_rng(seed)
    level = 20 * scale * np.exp(0.5 * noise.standard_normal(len(listed)))
    fall = (1 + np.asarray(steps)[:, None] / 60) ** -0.6
    return (level * fall * np.exp(0.08 * noise.standard_normal((len(steps), len(listed))))).astype(
        np.float32
    )


def record(
    store: Store,
    family: str,
    *,
    lr: float,
    seed: int = 0,
    status: str = "completed",
    loss: float | None = None,
    listed: ParameterList | None = None,
    steps: np.ndarray | None = None,
    scale: float = 1.0,
    multipliers: np.ndarray | None = None,
    **spec: object,
) -> str:
    """One recording with its rows; the id. `status` running leaves it open.

    multipliers [parameters]: of a run that was matched once.
    """
    listed = listed or parameters()
    steps = np.arange(1, 2002, 100) if steps is None else steps
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{family} {lr} {seed} {spec} {status}"))
    sent = RecordingSpec(
        id=identity, family=family, lr=lr, seed=seed, parameters=listed, optimizer="Adam", **spec
    )
    store.start(sent, Attempt(id=identity))
    append(store, identity, listed, steps, seed=seed, scale=scale, lr=lr, multipliers=multipliers)
    if status != "running":
        store.finish(
            identity,
            0,
            Ending(
                status=status, final_loss=loss, final_step=int(steps[-1]) if len(steps) else None
            ),
        )
    return identity


def append(
    store: Store,
    recording: str,
    listed: ParameterList,
    steps: np.ndarray,
    *,
    seed: int = 0,
    scale: float = 1.0,
    lr: float = 0.004,
    multipliers: np.ndarray | None = None,
) -> None:
    """Rows at `steps`, with a loss that falls and a rate that decays."""
    vectors = {} if multipliers is None else {"multiplier": multipliers.astype(np.float32)}
    values = fslrs(listed, steps, seed, scale)
    for start in range(0, len(steps), 200):
        rows = [
            Measurement(
                step=int(step),
                values=values[at],
                loss=2 + 3.5 * math.exp(-int(step) / 500),
                learning_rate=lr * (1 - int(step) / (1.2 * float(steps[-1]) + 1)),
                vectors=vectors,
            )
            for at, step in enumerate(steps[start : start + 200].tolist(), start)
        ]
        store.append_many([Batch(recording, MeasurementBatch.of(rows))])


def matched_to(store: Store, base: str, listed: ParameterList, seed: int, scale: float) -> dict:
    """What `record` takes for a run that was matched at step 1 to the recording `base`."""
    trajectory = store.trajectory(base)
    measured = fslrs(listed, trajectory.steps, seed, scale)[0]
    octaves = np.round(16 * np.log2(trajectory.values[0] / measured)) / 16
    names, steps = trajectory.names, trajectory.steps
    return {
        "variant": "matched",
        "seed": seed,
        "scale": scale,
        "listed": listed,
        "multipliers": 2.0**octaves,
        "targets_sources": (base,),
        "targets_digest": targets_digest(names, steps, trajectory.values),
    }


def sweep(store: Store, family: str = "team/decoder") -> dict[str, str]:
    """Base, plain and matched runs over five rates. Returns an id of each, and of a live run."""
    store.register_family(family, description="Prenorm decoder on bytes, 2,000 steps of 16 × 64")
    ids: dict[str, str] = {}
    bases: dict[float, str] = {}
    for seed in range(3):
        for lr in RATES:
            loss = 2.27 + 0.05 * math.log2(lr / 0.0038) ** 2 + 0.01 * seed
            found = record(store, family, lr=lr, seed=seed, loss=loss, config={"width": 32})
            bases.setdefault(lr, found)
    ids["base"] = bases[0.004]
    for lr in RATES:
        octaves = math.log2(lr / 0.0011)
        plain = {"role": "scaled", "config": {"width": 128}, "listed": parameters(width=128)}
        status = "diverged" if lr == RATES[-1] else "completed"
        loss = None if status == "diverged" else 2.087 + 0.06 * octaves**2
        ids["plain"] = record(
            store, family, lr=lr, seed=3, status=status, loss=loss, scale=4.0, **plain
        )
        matched = plain | matched_to(store, bases[lr], plain["listed"], 3, 4.0)
        found = record(
            store, family, lr=lr, loss=2.07 + 0.05 * math.log2(lr / 0.0041) ** 2, **matched
        )
        if lr == 0.004:
            ids["matched"] = found
    ids["running"] = record(
        store,
        family,
        lr=0.004,
        seed=9,
        status="running",
        steps=np.arange(1, 602, 100),
        config={"width": 32},
    )
    return ids


def many(store: Store, family: str, count: int) -> None:
    """`count` short recordings over 50 learning rates."""
    listed = parameters(1)
    for at in range(count):
        octaves = (at % 50 - 20) / 8
        lr = 0.004 * 2**octaves
        record(
            store,
            family,
            lr=lr,
            seed=at // 50,
            loss=2 + octaves**2 / 4,
            listed=listed,
            steps=np.array([1, 101]),
        )
