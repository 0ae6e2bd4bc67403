"""FLeRM in Lightning's Trainer measures and applies what a plain loop does, without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from framework_models import same_weights
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_runs import Classifier, data, fit, probe, targets
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from flerm_client import FLeRM, RegistryClient
from flerm_client.integrations.lightning import FLeRMCallback
from flerm_core.errors import InvalidInput


def test_a_recording_run_has_the_losses_and_weights_of_one_without_it(tmp_path: Path) -> None:
    plain = fit(tmp_path)
    callback = FLeRMCallback("record", family="net", every=2, warmup=2)
    recorded = fit(tmp_path, callback)
    assert recorded.seen == plain.seen
    assert same_weights(recorded, plain)
    assert callback.flerm.trajectory.steps.tolist() == [1, 3, 5]
    assert callback.flerm.trajectory.losses == pytest.approx(plain.seen[::2])


def test_a_matched_run_has_the_rates_and_losses_of_a_plain_loop(tmp_path: Path) -> None:
    keywords: dict[str, Any] = {
        "family": "net",
        "every": 2,
        "warmup": 2,
        "targets": targets(),
        "seed": 3,
    }
    callback = FLeRMCallback("match", probe=probe(), **keywords)
    fitted = fit(tmp_path, callback, module=Classifier(dropout=0.0), shuffle=False)

    model = Classifier(dropout=0.0)
    [optimizer], [schedule] = model.configure_optimizers()
    with FLeRM.match(model, optimizer, probe=probe(), **keywords) as flerm:
        for step in range(6):
            optimizer.zero_grad()
            inputs, labels = data()[step * 8 : step * 8 + 8]
            loss = cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            schedule["scheduler"].step()
            model.seen.append(float(loss.detach()))
    assert fitted.seen == model.seen
    assert same_weights(fitted, model)
    assert callback.flerm.multipliers == flerm.multipliers
    assert callback.flerm.fslr == flerm.fslr
    assert set(flerm.multipliers.values()) != {1.0}


def test_accumulated_micro_batches_are_one_loss(tmp_path: Path) -> None:
    options = {"family": "net", "every": 1, "warmup": 1, "registry": f"file://{tmp_path}/registry"}
    callback = FLeRMCallback("record", **options)
    fitted = fit(tmp_path, callback, steps=2, accumulate_grad_batches=2)
    pairs = [sum(fitted.seen[at : at + 2]) / 2 for at in (0, 2)]
    assert callback.flerm.trajectory.losses == pytest.approx(pairs)
    # A number of micro-batches that changes is no batch size.
    growing = GradientAccumulationScheduler({0: 1, 1: 2})
    fit(tmp_path, FLeRMCallback("record", **options), growing, steps=1)
    with RegistryClient(f"file://{tmp_path}/registry") as client:
        said = [each.spec.config.get("batch_size") for each in client.recordings()]
    assert sorted(map(str, said)) == ["16", "None"]


def test_the_trainers_loggers_get_every_measurement(tmp_path: Path) -> None:
    callback = FLeRMCallback("record", family="net", every=2, warmup=1)
    fit(
        tmp_path,
        callback,
        logger=TensorBoardLogger(tmp_path, name="", version="run"),
        log_every_n_steps=50,
    )
    seen = EventAccumulator(str(tmp_path / "run")).Reload()
    column = callback.flerm.trajectory.names.index("net.0.weight")
    fslrs = seen.Scalars("flerm/fslr/net.0.weight")
    assert [event.value for event in fslrs] == pytest.approx(
        callback.flerm.trajectory.values[:, column].tolist()
    )
    assert [event.step for event in fslrs] == [1, 3, 5]
    assert len(seen.Scalars("flerm/lr/net.0.weight")) == 3


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    keywords: dict[str, Any] = {"family": "net", "every": 2, "warmup": 2, "targets": targets()}
    epochs = {
        "shuffle": False,
        "size": 8,
    }  # of one step: Lightning does not resume a plain DataLoader where it was
    saving = ModelCheckpoint(
        tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=True
    )
    whole, again = FLeRMCallback("match", **keywords), FLeRMCallback("match", **keywords)
    straight = fit(tmp_path, whole, saving, module=Classifier(dropout=0.0), **epochs)
    resumed = fit(
        tmp_path,
        again,
        saving,
        module=Classifier(dropout=0.0),
        resume=tmp_path / "step=3.ckpt",
        **epochs,
    )
    assert resumed.seen == straight.seen[3:]
    assert same_weights(resumed, straight)
    assert again.flerm.trajectory == whole.flerm.trajectory
    assert again.flerm.multipliers == whole.flerm.multipliers


class Adversaries(LightningModule):
    """Two optimisers by turns, each with the other's parameters switched off.

    Lightning's guide to GANs does so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.generator, self.critic = nn.Linear(6, 6), nn.Linear(6, 1)
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.critic(self.generator(x))

    def training_step(self, batch: Any, at: int) -> None:
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            self.toggle_optimizer(optimizer)
            loss = sign * self(batch[0]).mean()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)
            self.seen.append(float(loss.detach()))

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), 1e-2) for part in (self.critic, self.generator)]


def test_optimisers_by_turns_are_one_step_of_which_every_tensor_is_measured(tmp_path: Path) -> None:
    plain = fit(tmp_path, module=Adversaries(), steps=8)
    callback = FLeRMCallback("record", family="gan", every=2, warmup=1)
    recorded = fit(tmp_path, callback, module=Adversaries(), steps=8)
    assert recorded.seen == plain.seen
    assert same_weights(recorded, plain)
    assert callback.flerm.trajectory.steps.tolist() == [1, 3]
    assert (callback.flerm.trajectory.values > 0).all()
    assert callback.flerm.estimator == "example"


def test_a_run_that_fails_is_recorded_as_failed(tmp_path: Path) -> None:
    class Failing(Classifier):
        def training_step(self, batch: Any, at: int) -> Tensor:
            if at == 3:
                raise RuntimeError("out of luck")
            return super().training_step(batch, at)

    registry = f"file://{tmp_path / 'registry'}"
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(tmp_path, FLeRMCallback("record", family="net", registry=registry), module=Failing())
    with RegistryClient(registry) as client:
        assert [recording.status for recording in client.recordings()] == ["failed"]


def test_a_module_without_a_forward_is_asked_for_its_outputs(tmp_path: Path) -> None:
    class Bare(Classifier):
        forward = LightningModule.forward

    with pytest.raises(
        InvalidInput, match=r"Bare has no forward: say what its outputs are, for instance output="
    ):
        fit(tmp_path, FLeRMCallback("record", family="net"), module=Bare())
    callback = FLeRMCallback(
        "record", family="net", output=lambda module, batch: module.net(batch[0])
    )
    fit(tmp_path, callback, module=Bare(), steps=1)
    assert callback.flerm.fslr


def test_an_unknown_keyword_is_refused_where_it_is_written() -> None:
    with pytest.raises(InvalidInput, match=r"FLeRM.match takes no evry"):
        FLeRMCallback("match", family="net", evry=1)


@pytest.mark.parametrize("between", ["test", "validate", "predict"])
def test_a_fit_after_a_test_of_a_checkpoint_is_a_run_of_its_own(
    between: str, tmp_path: Path
) -> None:
    class Tested(Classifier):
        def test_step(self, batch: Any, at: int) -> None: ...
        def validation_step(self, batch: Any, at: int) -> None: ...
        def predict_step(self, batch: Any, at: int) -> None: ...

    loader = DataLoader(data(), batch_size=8)
    callback = FLeRMCallback("record", family="net", every=1, warmup=1, probe=probe())
    recordings = []
    for _ in range(2):
        trainer = Trainer(
            max_steps=2,
            callbacks=[callback],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            limit_val_batches=0 if between != "validate" else 1,
        )
        module = Tested()
        trainer.fit(module, loader)
        recordings.append(callback.flerm.recording_id)
        assert callback.flerm.steps == 2
        getattr(trainer, between)(module, loader, ckpt_path="best")
    assert recordings[0] != recordings[1]


@pytest.mark.parametrize("bare", [False, True])
def test_a_loop_on_fabric_is_recorded_as_a_plain_loop(bare: bool) -> None:
    def run(how: str) -> tuple[list[float], FLeRM | None]:
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer: Any = torch.optim.Adam(model.parameters(), 1e-2)
        given = model, optimizer
        if how != "plain":
            fabric = Fabric(accelerator="cpu", devices=1)
            model, optimizer = fabric.setup(model, optimizer)
            given = given if bare else (model, optimizer)
        flerm = None
        if how != "fabric":
            flerm = FLeRM.record(*given, probe=probe(), family="net", every=1)
        seen = []
        for step in range(3):
            inputs, labels = data()[step * 8 : step * 8 + 8]
            loss = cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward() if how == "plain" else fabric.backward(loss)
            optimizer.step()
            seen.append(float(loss.detach()))
        return seen, flerm

    plain, flerm = run("plain")
    losses, recorded = run("recorded")
    assert losses == plain == run("fabric")[0]
    assert recorded is not None and flerm is not None
    assert recorded.trajectory == flerm.trajectory
