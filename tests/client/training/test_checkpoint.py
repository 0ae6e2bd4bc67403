"""A run resumed from a checkpoint at any step is, bit for bit, the run that was not stopped."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_runs import MODELS, fresh, loss_of, same
from torch.optim import Adam
from torch.utils.data import DataLoader, TensorDataset

from flerm_client import FLeRM
from flerm_core.errors import InvalidInput
from flerm_core.trajectory import Trajectory

TARGETS = {name: 1.0 for name, _ in fresh("resmlp")[0].named_parameters()}


def shuffled(name: str) -> DataLoader[Any]:
    make = MODELS[name][1]
    data = torch.cat([make() for _ in range(4)])
    return DataLoader(
        TensorDataset(data),
        batch_size=8,
        shuffle=True,
        collate_fn=lambda rows: torch.stack([r[0] for r in rows]),
    )


def attach(name: str, model: Any, optimizer: Any, how: str, registry: str | None) -> FLeRM:
    probe = shuffled(name)
    common: dict[str, Any] = {
        "probe": probe,
        "family": "f",
        "registry": registry,
        "every": 3,
        "warmup": 3,
    }
    if how == "record":
        return FLeRM.record(model, optimizer, **common)
    return FLeRM.match(model, optimizer, targets=TARGETS, **common)


def steps(
    model: Any, optimizer: Any, batches: list[Any], flerm: FLeRM, losses: list[float]
) -> None:
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(model(batch))
        loss.backward()
        flerm.log(loss)
        optimizer.step()
        losses.append(loss.item())


@pytest.mark.filterwarnings("ignore:`example` has one sample a draw")
@pytest.mark.parametrize(
    "stop", [0, 1, 4, *(pytest.param(at, marks=pytest.mark.slow) for at in (3, 6, 7))]
)
@pytest.mark.parametrize(
    ("name", "how"),
    [("resmlp", "record"), ("resmlp", "match"), ("decoder", "record"), ("convnet", "record")],
)
def test_resumed_and_uninterrupted_runs_are_the_same(
    name: str, how: str, stop: int, tmp_path: Path
) -> None:
    def begin() -> tuple[Any, Any, list[Any], FLeRM]:
        model, batches = fresh(name)
        optimizer = Adam(model.parameters(), 1e-2)
        return model, optimizer, batches, attach(name, model, optimizer, how, None)

    model, optimizer, batches, flerm = begin()
    losses: list[float] = []
    steps(model, optimizer, batches, flerm, losses)

    first, first_optimizer, _, first_flerm = begin()
    resumed_losses: list[float] = []
    steps(first, first_optimizer, batches[:stop], first_flerm, resumed_losses)
    torch.save(
        [
            first.state_dict(),
            first_optimizer.state_dict(),
            first_flerm.state_dict(),
            torch.get_rng_state(),
        ],
        tmp_path / "checkpoint.pt",
    )
    first_flerm.close()

    second, second_optimizer, _, second_flerm = begin()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second.load_state_dict(state[0])
    second_optimizer.load_state_dict(state[1])
    second_flerm.load_state_dict(state[2])
    torch.set_rng_state(state[3])
    steps(second, second_optimizer, batches[stop:], second_flerm, resumed_losses)

    assert resumed_losses == losses
    assert same(second.state_dict(), model.state_dict())
    assert second_flerm.multipliers == flerm.multipliers
    assert second_flerm.fslr == flerm.fslr
    assert second_flerm.trajectory == flerm.trajectory
    assert second_flerm.recording_id == first_flerm.recording_id


@pytest.mark.parametrize("steps_back", [False, True], ids=["clock", "clock that steps back"])
def test_the_registry_shows_one_clean_trajectory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_back: bool
) -> None:
    from flerm_client import RegistryClient

    registry = f"file://{tmp_path}/registry"
    (tmp_path / "registry").mkdir()
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    flerm = attach("resmlp", model, optimizer, "record", registry)
    steps(model, optimizer, batches[:5], flerm, [])
    state = flerm.state_dict()
    steps(
        model, optimizer, batches[5:], flerm, []
    )  # measured at 7, lost with the crash: the checkpoint is of step 5
    flerm.close(status="failed")

    if steps_back:  # or the resume is on a host whose clock is late
        monkeypatch.setattr(
            "flerm_client.training.run_log.now", lambda: datetime(2001, 1, 1, tzinfo=UTC)
        )
    again, _ = fresh("resmlp")
    optimizer = Adam(again.parameters(), 1e-2)
    resumed = attach("resmlp", again, optimizer, "record", registry)
    resumed.load_state_dict(state)
    steps(again, optimizer, batches[5:], resumed, [])
    resumed.close()
    with RegistryClient(registry) as client:
        stored = client.trajectory(flerm.recording_id)
    assert stored == resumed.trajectory
    assert stored.steps.tolist() == [1, 4, 7]


def test_a_checkpoint_of_the_other_kind_is_refused() -> None:
    model, _ = fresh("resmlp")
    recording = attach("resmlp", model, Adam(model.parameters(), 1e-2), "record", None)
    other, _ = fresh("resmlp")
    matching = attach("resmlp", other, Adam(other.parameters(), 1e-2), "match", None)
    with pytest.raises(
        InvalidInput,
        match=r"the checkpoint is of a run by FLeRM.record, this one is by FLeRM.match",
    ):
        matching.load_state_dict(recording.state_dict())


def test_a_run_that_goes_back_to_its_checkpoint_loses_nothing(tmp_path: Path) -> None:
    from flerm_client import RegistryClient

    registry = f"file://{tmp_path}/registry"
    (tmp_path / "registry").mkdir()
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    flerm = attach("resmlp", model, optimizer, "record", registry)
    steps(model, optimizer, batches[:5], flerm, [])
    state = flerm.state_dict()
    steps(model, optimizer, batches[5:], flerm, [])  # measured at 7
    flerm.load_state_dict(state)  # a loss spike: back, and on with other batches
    steps(model, optimizer, batches[:3], flerm, [])  # measured at 7 again
    flerm.close()
    with RegistryClient(registry) as client:
        stored = client.trajectory(flerm.recording_id)
        (recording,) = client.recordings()
    assert stored == flerm.trajectory
    assert stored.steps.tolist() == [1, 4, 7]
    assert (recording.attempt, recording.status) == (2, "completed")


def test_a_probe_loader_with_a_generator_of_its_own_goes_on_where_it_was() -> None:
    def run(stop: int | None) -> Trajectory:
        model, batches = fresh("resmlp")
        optimizer = Adam(model.parameters(), 1e-2)

        def begin() -> FLeRM:
            rows = torch.randn(24, 8, generator=torch.Generator().manual_seed(5))
            shuffled = torch.Generator().manual_seed(7)
            probe = DataLoader(rows, batch_size=8, shuffle=True, generator=shuffled)
            return FLeRM.record(model, optimizer, probe=probe, family="f", every=1, warmup=2)

        flerm = begin()
        steps(model, optimizer, batches[:stop], flerm, [])
        if stop is not None:
            state = flerm.state_dict()
            flerm.close()
            flerm = begin()
            flerm.load_state_dict(state)
            steps(model, optimizer, batches[stop:], flerm, [])
        return flerm.trajectory

    assert run(5) == run(None)


@pytest.mark.parametrize(
    ("before", "after", "measured"),
    [(3, 2, [1, 4, 5, 7]), (2, 3, [1, 3, 5, 7]), (0, 3, [1, 7]), (3, 0, [1, 4])],
)
def test_a_run_that_goes_on_with_another_every_keeps_the_new_ones_steps(
    before: int, after: int, measured: list[int]
) -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    probe = [batches[0]]
    flerm = FLeRM.record(model, optimizer, probe=probe, family="f", every=before)
    steps(model, optimizer, batches[:4] if after == 2 else batches[:5], flerm, [])
    state = flerm.state_dict()
    flerm.close()
    flerm = FLeRM.record(model, optimizer, probe=probe, family="f", every=after)
    flerm.load_state_dict(state)
    steps(model, optimizer, batches[flerm.steps :], flerm, [])
    assert flerm.trajectory.steps.tolist() == measured


def test_a_run_goes_on_with_the_estimator_it_began_with() -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=[batches[0]], family="f")
    state = flerm.state_dict()
    flerm.close()
    other = FLeRM.record(model, optimizer, probe=[batches[0]], family="f", estimator="exact")
    with pytest.raises(
        InvalidInput, match="a run measured by 'example', this one is measured by 'exact'"
    ):
        other.load_state_dict(state)


def test_targets_that_follow_a_trajectory_are_kept() -> None:
    def begin(scale: float) -> tuple[Any, Any, list[Any], FLeRM]:
        model, batches = fresh("resmlp")
        names = list(TARGETS)
        base = Trajectory(
            names, [()] * len(names), [1, 5], [[scale] * len(names), [4 * scale] * len(names)]
        )
        optimizer = Adam(model.parameters(), 1e-2)
        return (
            model,
            optimizer,
            batches,
            FLeRM.match(model, optimizer, probe=[batches[0]], family="f", targets=base, every=4),
        )

    model, optimizer, batches, flerm = begin(1.0)
    steps(model, optimizer, batches[:1], flerm, [])
    assert flerm.targets == dict.fromkeys(TARGETS, 1.0)
    state = flerm.state_dict()
    steps(model, optimizer, batches[1:5], flerm, [])
    assert flerm.targets == dict.fromkeys(TARGETS, 4.0)
    *_, again = begin(2.0)
    again.load_state_dict(state)
    assert again.targets == dict.fromkeys(TARGETS, 1.0)
