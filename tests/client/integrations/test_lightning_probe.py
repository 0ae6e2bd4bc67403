"""Under Lightning the probe's batches become what the training's are: hooks, dtype, precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule, Trainer
from lightning_runs import Classifier, data, fit, probe, targets
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from flerm_client import FLeRM
from flerm_client.integrations.lightning import FLeRMCallback


def test_measures_at_the_precision_of_the_training(tmp_path: Path) -> None:
    rows = {}
    for precision in ("32-true", "bf16-mixed"):
        callback = FLeRMCallback("record", family="net", probe=probe())
        fit(tmp_path, callback, steps=1, module=Classifier(dropout=0.0), precision=precision)
        rows[precision] = callback.flerm.trajectory.values[0]
    assert rows["bf16-mixed"].tolist() != rows["32-true"].tolist()
    assert rows["bf16-mixed"] == pytest.approx(rows["32-true"], rel=0.1)


class Scaled(Classifier):
    """Reads bytes, and makes inputs of them on the device, as image models do.

    How far the outputs move depends on the step's inputs in turn.
    """

    def on_after_batch_transfer(self, batch: Any, at: int) -> Any:
        self.made = getattr(self, "made", 0) + 1
        return batch[0] / 128 - 1.0, batch[1]


class Noisy(LightningDataModule):
    """Adds noise on the device, from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(4)
        self.made = 0

    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=8)

    def on_after_batch_transfer(self, batch: Any, at: int) -> Any:
        self.made += 1
        return batch[0] + torch.randn(batch[0].shape, generator=self.generator), batch[1]


def test_batches_of_the_probe_go_through_the_modules_hooks_as_the_trainings_do(
    tmp_path: Path,
) -> None:
    """The FSLRs are those of the inputs that the network is trained on."""
    raw = TensorDataset(((data().tensors[0] + 4) * 30).to(torch.uint8), data().tensors[1])
    settings: Any = {"family": "net", "warmup": 8, "estimator": "exact"}

    def step_of(module: Classifier, loader: Any, **more: Any) -> FLeRM:
        callback = FLeRMCallback("record", **settings, **more)
        trainer = Trainer(
            max_steps=1, callbacks=[callback], accelerator="cpu", default_root_dir=tmp_path,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader)
        return callback.flerm

    inputs = raw.tensors[0] / 128 - 1.0
    ready = TensorDataset(inputs, raw.tensors[1])
    wanted = step_of(Classifier(0.0), DataLoader(ready, batch_size=8)).fslr
    module = Scaled(0.0)
    assert step_of(module, DataLoader(raw, batch_size=8)).fslr == pytest.approx(wanted)
    assert module.made == 1  # the training's own batches
    given = DataLoader(raw, batch_size=8)
    found = step_of(Scaled(0.0), DataLoader(raw, batch_size=8), probe=given).fslr
    assert found == pytest.approx(wanted)
    by_hand = list(inputs.split(8))  # no loader: prepared by who made the batches
    found = step_of(Scaled(0.0), DataLoader(raw, batch_size=8), probe=by_hand).fslr
    assert found == pytest.approx(wanted)


def test_the_hooks_of_a_data_module_draw_what_they_would_without_a_recording(
    tmp_path: Path,
) -> None:
    plain, recorded = Noisy(), Noisy()
    losses = fit(tmp_path, data_of=plain).seen
    assert fit(tmp_path, FLeRMCallback("record", family="net", every=1), data_of=recorded).seen == (
        losses
    )
    assert recorded.made == plain.made
    assert torch.equal(recorded.generator.get_state(), plain.generator.get_state())


class MakesTensors(Classifier):
    """Its forward makes a tensor, of the dtype that the trainer's precision makes the default."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([x[:, 1:], torch.ones(len(x), 1) / 3], 1))

    def training_step(self, batch: Any, at: int) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.seen.append(float(loss.detach()))
        return loss


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize("of", [Classifier, MakesTensors])
def test_models_of_another_dtype_get_probe_batches_of_this_dtype(
    tmp_path: Path, precision: str, of: type[Classifier]
) -> None:
    rows = {}
    for each in ("32-true", precision):
        callback = FLeRMCallback("record", family="net", probe=probe(), warmup=4)
        fit(tmp_path, callback, steps=1, module=of(dropout=0.0), precision=each)
        rows[each] = callback.flerm.trajectory.values[0]
    assert rows[precision] == pytest.approx(rows["32-true"], rel=0.1)
    plain = fit(tmp_path, module=of(dropout=0.0), precision=precision)
    own = FLeRMCallback("match", family="net", targets=targets(), every=1)
    matched = fit(tmp_path, own, module=of(dropout=0.0), precision=precision)
    assert own.flerm.measurements == 6
    assert matched.seen[0] == plain.seen[0]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_models_on_fabric_of_another_dtype_get_probe_batches_of_this_dtype(precision: str) -> None:
    found = {}
    of_net = {name.removeprefix("net."): value for name, value in targets().items()}
    for each in ("32-true", precision):
        fabric = Fabric(accelerator="cpu", devices=1, precision=each)  # type: ignore[arg-type]
        made = Classifier(dropout=0.0).net
        model, optimizer = fabric.setup(made, torch.optim.Adam(made.parameters(), 1e-2))
        keywords: Any = {"probe": probe(), "family": "net", "targets": of_net, "lr": 1e-2}
        with FLeRM.match(model, optimizer, **keywords) as flerm:
            inputs, labels = data()[:8]
            fabric.backward(cross_entropy(model(inputs), labels))
            optimizer.step()
        found[each] = flerm.fslr
    assert found[precision] == pytest.approx(found["32-true"], rel=0.1)
