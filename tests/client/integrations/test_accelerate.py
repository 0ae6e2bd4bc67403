"""FLeRM in a loop around an Accelerator measures and applies what a plain loop does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration, find_executable_batch_size
from framework_models import same_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from flerm_client import FLeRM, RegistryClient
from flerm_client.integrations.accelerate import match, record
from flerm_core.errors import InvalidInput

from .test_lightning import data, probe


@pytest.fixture(autouse=True)
def forgets_the_accelerator_before() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def network(dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def train(
    begin: Any = None,
    *,
    steps: int = 6,
    accelerator: Any = None,
    dropout: float = 0.1,
    load: Any = None,
    save: Any = None,
    **keywords: Any,
) -> tuple[nn.Module, list[float], FLeRM | None]:
    accelerator = accelerator or Accelerator(cpu=True)
    model, optimizer, loader = (
        network(dropout),
        None,
        DataLoader(data(), batch_size=8, shuffle=dropout > 0),
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    flerm = (
        begin(accelerator, model, optimizer, loader, family="net", **keywords) if begin else None
    )
    torch.manual_seed(7)
    rows = list(loader)
    first = 0
    if load:
        accelerator.load_state(str(load))
        first = 3
    seen = []
    for step in range(first, steps):
        inputs, labels = rows[step]
        with accelerator.accumulate(model):
            loss = cross_entropy(model(inputs), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        seen.append(float(loss.detach()))
        if save and step == 2:
            accelerator.save_state(str(save))
    if flerm is not None:
        flerm.close()
    return model, seen, flerm


def targets() -> dict[str, float]:
    """What the first measurement of the network reads, halved."""
    _, _, flerm = train(record, steps=1, dropout=0.0, probe=probe())
    assert flerm is not None
    return {name: value / 2 for name, value in flerm.fslr.items()}


def test_a_recording_run_has_the_losses_and_weights_of_one_without_it() -> None:
    plain, losses, _ = train()
    model, recorded, flerm = train(record, every=2, warmup=2)
    assert recorded == losses
    assert same_weights(model, plain)
    assert flerm.trajectory.steps.tolist() == [1, 3, 5]
    assert flerm.trajectory.losses == pytest.approx(losses[::2])


def test_a_matched_run_has_the_rates_and_losses_of_a_plain_loop() -> None:
    keywords: dict[str, Any] = {
        "every": 2,
        "warmup": 2,
        "targets": targets(),
        "seed": 3,
        "probe": probe(),
    }
    accelerated, losses, matched = train(match, dropout=0.0, **keywords)

    model = network(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    seen = []
    with FLeRM.match(model, optimizer, family="net", **keywords) as flerm:
        for step in range(6):
            inputs, labels = data()[step * 8 : step * 8 + 8]
            loss = cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(float(loss.detach()))
    assert losses == seen
    assert same_weights(accelerated, model)
    assert matched.multipliers == flerm.multipliers
    assert matched.fslr == flerm.fslr
    assert set(flerm.multipliers.values()) != {1.0}


def test_accumulated_micro_batches_are_one_loss(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every": 1, "warmup": 1, "registry": f"file://{tmp_path}"}
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    _, losses, flerm = train(record, steps=4, accelerator=accelerator, **options)
    assert flerm.trajectory.losses == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])
    with RegistryClient(f"file://{tmp_path}") as client:
        (recording,) = client.recordings()
    assert recording.spec.config["batch_size"] == 16


def test_the_accelerators_trackers_get_every_measurement(tmp_path: Path) -> None:
    accelerator = Accelerator(
        cpu=True,
        log_with="tensorboard",
        project_config=ProjectConfiguration(logging_dir=str(tmp_path)),
    )
    accelerator.init_trackers("run")
    _, _, flerm = train(record, accelerator=accelerator, every=2, warmup=1)
    accelerator.end_training()
    seen = EventAccumulator(str(tmp_path / "run")).Reload()
    fslrs = seen.Scalars("flerm/fslr/0.weight")
    assert [event.step for event in fslrs] == [1, 3, 5]
    assert [event.value for event in fslrs] == pytest.approx(flerm.trajectory.values[:, 0].tolist())


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    keywords: dict[str, Any] = {"every": 2, "warmup": 2, "targets": targets(), "dropout": 0.0}
    whole, losses, flerm = train(match, save=tmp_path / "state", **keywords)
    resumed, rest, again = train(match, load=tmp_path / "state", **keywords)
    assert rest == losses[3:]
    assert same_weights(resumed, whole)
    assert again.trajectory == flerm.trajectory
    assert again.multipliers == flerm.multipliers


def test_a_resumed_run_tells_the_trackers_only_what_it_measured_itself(tmp_path: Path) -> None:
    train(record, save=tmp_path / "state", every=2, warmup=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=True,
        log_with="tensorboard",
        project_config=ProjectConfiguration(logging_dir=str(tmp_path)),
    )
    accelerator.init_trackers("resumed")
    train(record, load=tmp_path / "state", accelerator=accelerator, every=2, warmup=1)
    accelerator.end_training()
    seen = EventAccumulator(str(tmp_path / "resumed")).Reload()
    assert [event.step for event in seen.Scalars("flerm/fslr/0.weight")] == [5]


def test_measures_under_the_accelerators_autocast() -> None:
    _, _, full = train(record, steps=1, dropout=0.0, probe=probe())
    AcceleratorState._reset_state(reset_partial_state=True)
    _, _, half = train(
        record,
        steps=1,
        dropout=0.0,
        probe=probe(),
        accelerator=Accelerator(cpu=True, mixed_precision="bf16"),
    )
    assert full.fslr != half.fslr
    assert half.fslr == pytest.approx(full.fslr, rel=0.1)


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"FLeRM.record takes no evry"):
        train(record, evry=1)


@pytest.mark.parametrize("begin", [record, match])
def test_steps_through_a_gradient_scaler_are_seen_and_skipped_ones_are_not(begin: Any) -> None:
    """fp16: the optimiser's wrapper keeps the `step` that it found when it was made."""

    def run(with_flerm: bool) -> tuple[nn.Module, Any, Any]:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu")  # what mixed_precision="fp16" sets
        model = network(0.0)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        loader = DataLoader(data(), batch_size=8)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        flerm = None
        if with_flerm:
            more = {} if begin is record else {"targets": targets(), "record_every": 1}
            every = {"every": 1} if begin is record else {}
            flerm = begin(
                accelerator, model, optimizer, loader, family="f", probe=probe(), **more | every
            )
        for step, (inputs, labels) in enumerate(loader):
            loss = cross_entropy(model(inputs), labels)
            accelerator.backward(loss * (torch.inf if step == 1 else 1.0))
            optimizer.step()
            assert optimizer.step_was_skipped == (step == 1)
            optimizer.zero_grad()
        return model, optimizer, flerm

    model, optimizer, flerm = run(True)
    assert flerm.steps == flerm.measurements == 7
    if begin is record:
        assert same_weights(model, run(False)[0])
    else:
        assert set(flerm.multipliers.values()) != {1.0}
        assert all(0.45 < m < 0.55 for m in flerm.multipliers.values())
    flerm.close()
    assert optimizer._optimizer_original_step_method.__func__ is torch.optim.Adam.step


def test_nothing_of_a_closed_run_stays_in_the_accelerator(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    models = []
    for _ in range(3):
        model, _, flerm = train(record, steps=2, accelerator=accelerator)
        assert flerm is not None
        models.append(weakref.ref(model))
        optimizer = accelerator._optimizers[0].optimizer
        assert "step" not in vars(optimizer) and "backward" not in vars(accelerator)
        accelerator.save_state(str(tmp_path))
        accelerator.free_memory()
    del model, flerm, optimizer
    gc.collect()
    assert [each() for each in models] == [None, None, None]
    assert not [each for each in tmp_path.iterdir() if "custom" in each.name]


def test_a_run_that_a_loop_leaves_unclosed_is_not_kept_by_the_accelerator(tmp_path: Path) -> None:
    """`find_executable_batch_size` begins again after an error; nothing closes the run before."""
    accelerator = Accelerator(cpu=True)
    models, own = [], []
    registry = f"file://{tmp_path}/registry"

    @find_executable_batch_size(starting_batch_size=32, reduce_batch_size_fn=lambda: halved())
    def attempt(batch_size: int) -> FLeRM:
        accelerator.free_memory()
        model, loader = network(0.0), DataLoader(data(), batch_size=batch_size)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        flerm = record(accelerator, model, optimizer, loader, family="net", registry=registry)
        models.append(weakref.ref(model))
        own.append(flerm.recording_id)
        for inputs, labels in loader:
            accelerator.backward(cross_entropy(model(inputs), labels))
            if batch_size > 8:
                raise RuntimeError("CUDA out of memory.")
            optimizer.step()
            optimizer.zero_grad()
        return flerm

    sizes = iter([16, 8])

    def halved() -> int:
        return next(sizes)

    flerm = attempt()
    gc.collect()
    assert [each() is not None for each in models] == [False, False, True]
    assert flerm.steps == 8
    accelerator.save_state(str(tmp_path / "state"))
    saved = [each for each in (tmp_path / "state").iterdir() if "custom" in each.name]
    assert len(saved) == 1
    flerm.close()
    assert "backward" not in vars(accelerator)
    with RegistryClient(registry) as client:
        losses = client.trajectory(own[-1]).losses
    assert len(losses) == 1
