"""Whatever a data set, collate function or sampler holds, recording leaves its training alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import h5py
import lmdb
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from flerm_client import FLeRM
from flerm_client.integrations.probe_batches import probe_of

ROWS = 32
NUMPY_GENERATOR = np.random.default_rng(5)


def trained(loader: DataLoader[Any], record: bool, epochs: int = 1) -> list[list[float]]:
    """The first column of every batch that a training sees; a linear map is recorded, or not."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    flerm = None
    if record:
        flerm = FLeRM.record(model, optimizer, probe=probe_of(loader), family="f", every=2)
    seen = []
    for _ in range(epochs):
        for batch in loader:
            model(batch).square().mean().backward()
            optimizer.step()
            seen.append(batch[:, 0].tolist())
    if flerm is not None:
        flerm.close()
        assert flerm.measurements == (len(seen) + 1) // 2
    return seen


class Rows(Dataset[Tensor]):
    """Rows with what `noise` draws added."""

    def __init__(self, noise: Callable[[], float] = lambda: 0.0) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, at: int) -> Tensor:
        return torch.full((4,), at + self.noise())


class Stream(IterableDataset[Tensor]):
    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(ROWS):
            yield torch.full((4,), float(self.rng.random()))


def of_numpy() -> DataLoader[Any]:
    rng = np.random.default_rng(5)
    return DataLoader(Rows(rng.random), batch_size=8)


def of_torch_in_a_closure() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(Rows(lambda: float(torch.rand((), generator=generator))), batch_size=8)


def of_a_module_variable() -> DataLoader[Any]:
    global NUMPY_GENERATOR
    NUMPY_GENERATOR = np.random.default_rng(5)
    return DataLoader(Rows(lambda: float(NUMPY_GENERATOR.random())), batch_size=8)


def of_the_collate_function() -> DataLoader[Any]:
    rng = random.Random(7)
    return DataLoader(
        Rows(), batch_size=8, collate_fn=lambda rows: default_collate(rows) * rng.random()
    )


def of_the_sampler() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(2)
    sampler = WeightedRandomSampler([1.0] * ROWS, ROWS, generator=generator)
    return DataLoader(Rows(), batch_size=8, sampler=sampler, generator=generator)


def of_a_stream() -> DataLoader[Any]:
    return DataLoader(Stream(), batch_size=8)


def of_global_generators() -> DataLoader[Any]:
    random.seed(0)
    np.random.seed(0)
    return DataLoader(
        Rows(lambda: random.random() + np.random.random()), batch_size=8, shuffle=True
    )


GENERATORS = [
    of_numpy,
    of_torch_in_a_closure,
    of_a_module_variable,
    of_the_collate_function,
    of_the_sampler,
    of_a_stream,
    of_global_generators,
]


@pytest.mark.parametrize("make", GENERATORS)
def test_no_number_is_drawn_from_the_trainings_generators(
    make: Callable[[], DataLoader[Any]],
) -> None:
    assert trained(make(), record=True, epochs=2) == trained(make(), record=False, epochs=2)


class Numbers(Dataset[Tensor]):
    """Rows of a file, opened at once or at the first row that is read."""

    def __init__(self, path: Path, early: bool) -> None:
        self.path = path
        self.file: Any = None
        if early:
            self.open()

    def open(self) -> None:
        self.file = self.path.open("rb", buffering=0)

    def read(self, at: int) -> bytes:
        self.file.seek(16 * at)
        return bytes(self.file.read(16))

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, at: int) -> Tensor:
        if self.file is None:
            self.open()
        return torch.frombuffer(bytearray(self.read(at)), dtype=torch.float32)


class Hdf5Numbers(Numbers):
    def open(self) -> None:
        self.file = h5py.File(self.path)

    def read(self, at: int) -> bytes:
        return bytes(self.file["rows"][at].tobytes())


class LmdbNumbers(Numbers):
    def open(self) -> None:
        self.file = lmdb.open(str(self.path), readonly=True, lock=False)

    def read(self, at: int) -> bytes:
        with self.file.begin() as transaction:
            return bytes(transaction.get(b"%d" % at))


def written(kind: type[Numbers], folder: Path) -> Path:
    rows = np.arange(4 * ROWS, dtype=np.float32).reshape(ROWS, 4)
    path = folder / kind.__name__
    if kind is Hdf5Numbers:
        with h5py.File(path, "w") as file:
            file["rows"] = rows
    elif kind is LmdbNumbers:
        with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
            for at, row in enumerate(rows):
                transaction.put(b"%d" % at, row.tobytes())
    else:
        path.write_bytes(rows.tobytes())
    return path


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("kind", [Numbers, Hdf5Numbers, LmdbNumbers])
def test_no_file_is_shared(kind: type[Numbers], early: bool, tmp_path: Path) -> None:
    check_that_files_are_the_trainings(kind, written(kind, tmp_path), early, workers=0)


@pytest.mark.parametrize(
    "kind",
    [
        Numbers,
        pytest.param(Hdf5Numbers, marks=pytest.mark.slow),
        pytest.param(LmdbNumbers, marks=pytest.mark.slow),
    ],
)
def test_no_file_is_shared_with_workers_that_are_forked_later(
    kind: type[Numbers], tmp_path: Path
) -> None:
    check_that_files_are_the_trainings(kind, written(kind, tmp_path), early=False, workers=2)


def check_that_files_are_the_trainings(
    kind: type[Numbers], path: Path, early: bool, workers: int
) -> None:
    seen = []
    for record in (False, True):
        data = kind(path, early)
        loader = DataLoader(data, batch_size=8, num_workers=workers)
        seen.append(trained(loader, record, epochs=2))
        if data.file is not None:  # LMDB opens a file once in a process
            data.file.close()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_of_hugging_face_are_read(streaming: bool) -> None:
    table = datasets.Dataset.from_dict({"x": [[float(at)] * 4 for at in range(ROWS)]})
    data = table.with_format("torch")
    if streaming:
        data = table.to_iterable_dataset().shuffle(seed=1, buffer_size=8).with_format("torch")

    def loader() -> DataLoader[Any]:
        return DataLoader(
            data, batch_size=8, collate_fn=lambda rows: torch.stack([row["x"] for row in rows])
        )

    assert trained(loader(), record=True) == trained(loader(), record=False)


class Initialised(Dataset[Tensor]):
    scale = 0.0

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, at: int) -> Tensor:
        return torch.full((4,), at * self.scale)


def initialise(_: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.scale = 2.0  # type: ignore[union-attr]


def test_a_data_set_that_workers_initialise_is_initialised() -> None:
    loader = DataLoader(Initialised(), batch_size=ROWS, num_workers=1, worker_init_fn=initialise)
    (batch,) = probe_of(loader)
    assert sorted(batch[:, 0].tolist()) == [2.0 * at for at in range(ROWS)]


class TestOrder:
    def test_a_weighted_samplers_examples_keep_their_weights(self) -> None:
        sampler = WeightedRandomSampler([1.0] * 4 + [0.0] * (ROWS - 4), 64)
        batches = list(probe_of(DataLoader(Rows(), batch_size=8, sampler=sampler)))
        assert {float(row) for batch in batches for row in batch[:, 0]} == {0.0, 1.0, 2.0, 3.0}
        assert [len(batch) for batch in batches] == [8] * 8

    def test_a_batch_samplers_batches_stay_together(self) -> None:
        groups = [[at, at + 1] for at in range(0, ROWS, 2)]
        torch.manual_seed(0)
        found = [
            batch[:, 0].tolist() for batch in probe_of(DataLoader(Rows(), batch_sampler=groups))
        ]
        assert sorted(found) == groups != found

    def test_a_size_of_ones_own_cuts_a_batch_samplers_batches_anew(self) -> None:
        groups = BatchSampler(range(8), 2, False)
        groups.__class__ = type("Bucketed", (BatchSampler,), {})
        found = list(probe_of(DataLoader(Rows(), batch_sampler=groups), 4))
        assert [len(batch) for batch in found] == [4, 4]

    def test_an_endless_sampler_is_read(self) -> None:
        class Endless:
            def __iter__(self) -> Iterator[int]:
                while True:
                    yield 3

        batch = next(iter(probe_of(DataLoader(Rows(), batch_size=2, sampler=Endless()))))
        assert batch[:, 0].tolist() == [3.0, 3.0]

    def test_a_data_set_of_whole_batches_is_read_batch_by_batch(self) -> None:
        found = list(probe_of(DataLoader(Rows(), batch_size=None)))
        assert [tuple(batch.shape) for batch in found] == [(4,)] * ROWS
