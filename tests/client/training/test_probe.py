"""A probe is cycled, and takes nothing from the training's random numbers."""

from __future__ import annotations

import itertools
import random
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured_runs import (
    fresh,
    step,
    trained,
)
from torch import Tensor
from torch.optim import (
    SGD,
)
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    WeightedRandomSampler,
)

from flerm_client import FLeRM
from flerm_client.training.probe import Probe
from flerm_core.errors import InvalidInput
from flerm_core.measure.state_guard import PrivateRandomness


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        (list, "probe has no batches; at least one is needed"),
        (lambda: iter([torch.randn(4, 8)]), "probe ended after 1 batches and cannot begin anew"),
    ],
    ids=["empty", "used up"],
)
def test_a_probe_that_ends_says_so(batches: Any, sentence: str) -> None:
    model, training = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    recording = FLeRM.record(model, optimizer, probe=batches(), family="f")
    with pytest.warns(UserWarning, match=sentence):
        step(model, optimizer, training[0])
    recording.close()
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    with pytest.raises(InvalidInput, match=sentence):
        # An empty probe is found here, one that is used up at the first step.
        FLeRM.match(model, optimizer, probe=batches(), family="f", targets=targets)
        step(model, optimizer, training[0])


class Rows(Dataset):
    """Rows of 8 numbers, each plus the state of what a data set may hold: `draw` gives it."""

    def __init__(self, draw: Callable[[int], float]) -> None:
        self.x = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
        self.draw = draw

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> Tensor:
        return self.x[at] + self.draw(at)


class Stream(IterableDataset):
    """The same rows in an order that a generator of its own draws."""

    def __init__(self) -> None:
        self.rows = Rows(lambda at: 0.0)
        self.generator = torch.Generator().manual_seed(2)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(24, generator=self.generator)
        return (self.rows[at] for at in order.tolist())


def shuffled(folder: Path) -> DataLoader:
    return DataLoader(Rows(lambda at: 0.0), batch_size=8, shuffle=True)


def own_generator(folder: Path) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    return DataLoader(Rows(lambda at: 0.0), batch_size=8, shuffle=True, generator=generator)


def draws(folder: Path) -> DataLoader:
    numbers, other = np.random.default_rng(5), random.Random(6)
    return DataLoader(Rows(lambda at: numbers.normal() + other.random()), batch_size=8)


def counts(folder: Path) -> DataLoader:
    calls = itertools.count()
    return DataLoader(Rows(lambda at: next(calls) / 24), batch_size=8)


def open_file(folder: Path) -> DataLoader:
    (folder / "numbers").write_bytes(bytes(range(256)))
    file = (folder / "numbers").open("rb")
    return DataLoader(Rows(lambda at: file.read(1)[0] / 256), batch_size=8)


def database(folder: Path) -> DataLoader:
    numbers = sqlite3.connect(folder / "numbers.db")
    numbers.execute("CREATE TABLE IF NOT EXISTS n (at INTEGER, value REAL)")
    numbers.executemany("INSERT INTO n VALUES (?, ?)", [(at, at / 24) for at in range(24)])
    numbers.commit()
    cursor = numbers.execute("SELECT value FROM n UNION ALL SELECT value FROM n ORDER BY value")
    lock = threading.Lock()

    def draw(at: int) -> float:
        with lock:
            found = numbers.execute("SELECT value FROM n WHERE at = ?", [at]).fetchone()[0]
            return found + (cursor.fetchone() or [0.0])[0]

    return DataLoader(Rows(draw), batch_size=8)


def stream(folder: Path) -> DataLoader:
    return DataLoader(Stream(), batch_size=8)


def distributed(folder: Path) -> DataLoader:
    rows = Rows(lambda at: 0.0)
    return DataLoader(rows, batch_size=4, sampler=DistributedSampler(rows, 2, 0))


def weighted(folder: Path) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    sampler = WeightedRandomSampler([1.0] * 24, 24, generator=generator)
    return DataLoader(Rows(lambda at: 0.0), batch_size=8, sampler=sampler, generator=generator)


def workers(folder: Path) -> DataLoader:
    return DataLoader(Stream(), batch_size=8, num_workers=2)


def persistent_workers(folder: Path) -> DataLoader:
    numbers = np.random.default_rng(5)
    return DataLoader(
        Rows(lambda at: numbers.normal()), batch_size=8, num_workers=2, persistent_workers=True,
        shuffle=True, generator=torch.Generator().manual_seed(7),
    )  # fmt: skip


LOADERS = (shuffled, own_generator, draws, counts, open_file, database, stream, distributed)
SLOW = (weighted, workers, persistent_workers)


@pytest.mark.parametrize(
    "make", [*LOADERS, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_the_training_loader_as_probe_leaves_the_training_alone(
    make: Callable[[Path], DataLoader], tmp_path: Path
) -> None:
    def train(*, record: bool) -> list[float]:
        model, _ = fresh("resmlp")
        folder = tmp_path / str(record)
        folder.mkdir()
        loader = make(folder)
        optimizer = SGD(model.parameters(), 0.01)
        flerm = None
        if record:
            flerm = FLeRM.record(model, optimizer, probe=loader, family="f", every=2, warmup=4)
        torch.manual_seed(3)
        losses = trained(model, optimizer, itertools.chain(loader, loader, loader))
        if flerm is not None:
            assert len(flerm.trajectory.steps) == (len(losses) + 1) // 2
            flerm.close()
        return losses

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert train(record=True) == train(record=False)


def test_a_loader_is_read_in_its_own_order_and_each_pass_in_another() -> None:
    rows = torch.arange(24.0)
    with PrivateRandomness(0).active():
        plain = Probe(DataLoader(rows, batch_size=8))
        assert torch.equal(torch.cat([next(plain) for _ in range(6)]), rows.repeat(2))
        own = torch.Generator().manual_seed(7)
        mixed = Probe(DataLoader(rows, batch_size=24, shuffle=True, generator=own))
        first, second = next(mixed), next(mixed)
    assert torch.equal(first.sort().values, rows)
    assert not torch.equal(first, second)
    assert torch.equal(own.get_state(), torch.Generator().manual_seed(7).get_state())
    plain.close()
    mixed.close()


class Unsendable:
    """What a process cannot send to another one."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.why = x, threading.Lock()


def test_a_loader_that_a_copy_cannot_read_is_read_here_which_a_warning_says() -> None:
    generator = torch.Generator().manual_seed(7)
    drawn = torch.Generator().manual_seed(7)
    loader = DataLoader(
        Rows(lambda at: 0.0), batch_size=8, shuffle=True, generator=generator,
        collate_fn=lambda rows: Unsendable(torch.stack(rows)),
    )  # fmt: skip
    probe = Probe(loader)
    with pytest.warns(UserWarning, match=r"probe, a DataLoader of Rows, cannot be read in a pro"):
        first = next(probe)
    assert first.x.shape == (8, 8)
    again = [next(probe).x for _ in range(2)]
    assert not torch.equal(first.x, again[0])
    assert torch.equal(generator.get_state(), drawn.get_state())


def under(mode: Callable[[], Any]) -> Iterator[Tensor]:
    with mode():
        while True:
            yield torch.randn(4, 8)


def drawing() -> Iterator[Tensor]:
    torch.manual_seed(3)
    random.seed(3)
    while True:
        yield torch.randn(4, 8) * random.random() + float(np.random.rand())


def of_another_dtype() -> Iterator[Tensor]:
    torch.set_default_dtype(torch.float64)
    while True:
        yield torch.randn(4, 8).float()


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    "batches",
    [
        drawing,
        of_another_dtype,
        lambda: under(torch.no_grad),
        lambda: under(torch.inference_mode),
        lambda: under(torch.random.fork_rng),
        lambda: under(lambda: torch.autocast("cpu", torch.bfloat16)),
    ],
    ids=["generators", "default dtype", "no_grad", "inference_mode", "fork_rng", "autocast"],
)
def test_what_a_generator_function_sets_stays_with_the_probe(
    batches: Callable[[], Iterator[Tensor]],
) -> None:
    def run(record: bool) -> tuple[list[float], tuple[int, ...]]:
        model, training = fresh("resmlp")
        optimizer = SGD(model.parameters(), 1e-2)
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        rows: tuple[int, ...] = ()
        losses = []
        flerm = None
        if record:
            flerm = FLeRM.record(model, optimizer, probe=batches(), family="f", every=1, warmup=1)
        for batch in training[:3]:
            noise = torch.randn(()) + random.random() + np.random.rand()
            loss = model(batch * noise).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        if flerm is not None:
            flerm.close()
            rows = tuple(flerm.trajectory.steps)
        return losses, rows

    losses, rows = run(record=True)
    assert rows == (1, 2, 3)
    assert losses == run(record=False)[0]
