"""Callbacks without arguments record as the environment says, and else leave no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from framework_models import losses, same_weights, trainer_of

from flerm_client import RegistryClient
from flerm_client.idle_flerm import IdleFLeRM
from flerm_client.integrations.accelerate import auto
from flerm_client.integrations.lightning import FLeRMCallback as LightningCallback
from flerm_client.integrations.transformers import FLeRMCallback as TrainerCallback
from flerm_client.training.run_instructions import RunInstructions
from flerm_core.errors import InvalidInput

from .test_accelerate import train as accelerate_train
from .test_lightning import fit


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Says to record from now on."""
    monkeypatch.delenv("FLERM_MODE", raising=False)

    def say() -> None:
        monkeypatch.setenv("FLERM_REGISTRY", f"file://{tmp_path}/registry")
        said = RunInstructions(mode="record", family="said", lr=1e-2, tags={"job": "a"})
        for name, value in said.variables().items():
            monkeypatch.setenv(name, value)

    return say


def final_losses() -> list[float]:
    with RegistryClient() as registry:
        return [each.final_loss for each in registry.recordings("said", tags={"job": "a"})]


@pytest.mark.slow
def test_trainer(recording: Any, tmp_path: Path) -> None:
    plain = trainer_of(tmp_path)
    idle = TrainerCallback().add_to(plain)
    plain.train()
    assert idle.flerm is None
    recording()
    trainer = trainer_of(tmp_path)
    callback = TrainerCallback(warmup=1).add_to(trainer)
    trainer.train()
    assert callback.flerm.measurements == 1
    assert losses(trainer) == losses(plain)
    assert same_weights(trainer.model, plain.model)
    # The last fifth of six losses, whose mean is rounded by the Trainer's log.
    assert final_losses() == [pytest.approx(sum(losses(plain)[-2:]) / 2, abs=1e-3)]
    with pytest.raises(InvalidInput, match="takes no role"):
        TrainerCallback(role="base")


def test_lightning(recording: Any, tmp_path: Path) -> None:
    idle = LightningCallback()
    plain = fit(tmp_path, idle)
    assert idle.flerm is None
    recording()
    recorded = fit(tmp_path, LightningCallback(warmup=1))
    assert recorded.seen == plain.seen
    assert final_losses() == [pytest.approx(sum(plain.seen[-2:]) / 2)]


def test_accelerate(recording: Any) -> None:
    _, plain, flerm = accelerate_train(auto)
    assert isinstance(flerm, IdleFLeRM)
    recording()
    _, seen, flerm = accelerate_train(auto, warmup=1)
    assert seen == plain
    assert flerm.measurements == 1
    flerm.close()
    assert final_losses() == [pytest.approx(sum(plain[-2:]) / 2)]
