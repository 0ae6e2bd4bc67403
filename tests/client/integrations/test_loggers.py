"""What W&B (offline) and MLflow (in a folder) hold after a run of each framework.

TensorBoard is tested beside the frameworks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration
from framework_models import trainer_of
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from flerm_client import FLeRM
from flerm_client.integrations.accelerate import record
from flerm_client.integrations.lightning import FLeRMCallback as LightningCallback
from flerm_client.integrations.transformers import FLeRMCallback

from .test_accelerate import network
from .test_lightning import data, fit

pytestmark = pytest.mark.slow
EVERY: dict[str, Any] = {"every": 2, "warmup": 1}


@pytest.fixture(autouse=True)
def loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing leaves this folder."""
    import mlflow  # here, so that collecting the tests does not take its 3 s
    import wandb

    monkeypatch.chdir(tmp_path)
    folder = f"file://{tmp_path}/mlflow"
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    for name, value in {
        **offline,
        "MLFLOW_TRACKING_URI": folder,
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }.items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(folder)
    yield
    wandb.finish()
    mlflow.end_run()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def compare(flerm: FLeRM, tensor: str, *, section: str = "") -> None:
    """Both loggers have the FSLRs of `tensor` as `flerm` has; in W&B under `section`."""
    import mlflow
    import wandb

    column = flerm.trajectory.values[:, flerm.trajectory.names.index(tensor)].tolist()
    client = mlflow.MlflowClient()
    [found] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    history = client.get_metric_history(found.info.run_id, f"flerm/fslr/{tensor}")
    assert [point.step for point in history] == flerm.trajectory.steps.tolist()
    assert [point.value for point in history] == pytest.approx(column)
    assert f"flerm/lr/{tensor}" in found.data.metrics
    run = wandb.run
    assert run is not None
    run.log({"over": True}, step=run.step + 1)  # a step is in the summary once another has begun
    assert run.summary[f"{section}flerm/fslr/{tensor}"] == pytest.approx(column[-1])


def test_the_transformers_trainer_fills_its_loggers(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "out", report_to=["wandb", "mlflow"])
    callback = FLeRMCallback("record", family="gpt2", **EVERY).add_to(trainer)
    trainer.train()
    compare(callback.flerm, "transformer.h.0.attn.c_attn.weight", section="train/")


def test_the_lightning_trainer_fills_its_loggers(tmp_path: Path) -> None:
    callback = LightningCallback("record", family="net", **EVERY)
    fit(
        tmp_path,
        callback,
        logger=[
            WandbLogger(save_dir=tmp_path),
            MLFlowLogger(tracking_uri=f"file://{tmp_path}/mlflow"),
        ],
    )
    compare(callback.flerm, "net.0.weight")


def test_the_accelerator_fills_its_trackers(tmp_path: Path) -> None:
    accelerator = Accelerator(
        cpu=True, log_with=["wandb", "mlflow"], project_config=ProjectConfiguration(str(tmp_path))
    )
    accelerator.init_trackers("run")
    model = network()
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.Adam(model.parameters(), 1e-2), DataLoader(data(), batch_size=8)
    )
    flerm = record(accelerator, model, optimizer, loader, family="net", **EVERY)
    for inputs, labels in loader:
        accelerator.backward(cross_entropy(model(inputs), labels))
        optimizer.step()
        optimizer.zero_grad()
    flerm.close()
    compare(flerm, "0.weight")
