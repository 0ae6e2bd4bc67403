"""Each extra in an environment of its own: what it promises runs, and nothing else is there."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# All that some extra brings; each brings its own and none of the rest.
TELLTALES = (
    "grpc", "typer", "torch", "sklearn", "transformers", "lightning", "accelerate", "sqlalchemy",
    "fastapi", "plotly", "psycopg", "pytest", "peft",
)  # fmt: skip

CORE = """
from flerm_core import Trajectory, match_targets
assert match_targets(Trajectory(["a"], [(2,)], [1], [[3.0]]), ["a"]) == {"a": 3.0}
"""
CLIENT = """
from flerm_client import RegistryClient
with RegistryClient("file:///{folder}/registry") as registry:
    recording = registry.start_recording("f", 0.1, ["a"], [(2,)])
    registry.append(recording, [1], [[3.0]])
    registry.finish(recording)
    assert registry.trajectory(recording).values.tolist() == [[3.0]]
"""
LOOP = """
import torch
from flerm_client import FLeRM
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.Adam(model.parameters(), 0.1)
probe, registry = [torch.randn(4, 3)], "file:///{folder}/registry"
with FLeRM.record(model, optimizer, probe=probe, family="f", registry=registry) as flerm:
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
assert set(flerm.fslr) == {{"weight", "bias"}}
"""
TRAINER = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from flerm_client.integrations.transformers import FLeRMCallback
sizes = dict(vocab_size=9, n_positions=4, n_embd=4, n_layer=1, n_head=1)
model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
rows = [{{"input_ids": torch.arange(4), "labels": torch.arange(4)}}] * 8
arguments = TrainingArguments(
    "{folder}/out", max_steps=2, use_cpu=True, report_to="none", save_strategy="no"
)
trainer = Trainer(model, arguments, train_dataset=rows)
callback = FLeRMCallback("record", family="f").add_to(trainer)
trainer.train()
assert callback.flerm.fslr
"""
LIGHTNING = """
import torch
from lightning.pytorch import LightningModule, Trainer
from flerm_client.integrations.lightning import FLeRMCallback
class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, at):
        return self(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)
callback = FLeRMCallback("record", family="f")
trainer = Trainer(
    max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback]
)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(8, 3), batch_size=4))
assert callback.flerm.fslr
"""
ACCELERATE = """
import torch
from accelerate import Accelerator
from flerm_client.integrations.accelerate import record
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(3, 2)
loader = torch.utils.data.DataLoader(torch.randn(8, 3), batch_size=4)
optimizer = torch.optim.Adam(model.parameters(), 0.1)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
flerm = record(accelerator, model, optimizer, loader, family="f")
for batch in loader:
    accelerator.backward(model(batch).square().mean())
    optimizer.step()
assert flerm.fslr
flerm.close()
"""
SERVER = """
from flerm_client.cli import main
assert main(["db", "upgrade", "--db", "sqlite:///{folder}/flerm.db"]) == 0
import flerm_server.http.app, flerm_server.rpc.service, flerm_server.http.web.pages
"""
WORKLOAD = """
from flerm_client.cli import main
assert main(["train", "resmlp", "--steps", "2", "--lr", "0.004"]) == 0
"""
ADAPTERS = "import peft, flerm_experiments.workloads.lora\n"
PLOT = """
import plotly.graph_objects
from flerm_core import Trajectory
plotly.graph_objects.Figure(Trajectory(["a", "b"], [(2,), (2,)], [1], [[3.0, 1.0]]).figure())
from flerm_client.cli import main
assert main(["plot", "--help"]) == 0
"""
SERVES = ("grpc", "typer", "sqlalchemy", "fastapi", "plotly")
UNSERVED = """
import contextlib, io
from flerm_client.cli import main
with contextlib.redirect_stderr(io.StringIO()) as told:
    assert main(["serve"]) == 1
assert told.getvalue().endswith("pip install 'flerm[server]'\\n")
"""
SWEEP = "from flerm_client.cli import main\nassert main(['sweep', '--list']) == 0\n"
HELP = "from flerm_client.cli import main\nassert main(['--help']) == 0\n"

# extra: what it promises, and the telltales that come with it
EXTRAS = {
    "": (CORE, ()),
    "client": (CLIENT + HELP + UNSERVED, ("grpc", "typer")),
    "train": (LOOP + HELP + SWEEP, ("grpc", "typer", "torch")),
    "workloads": (LOOP + WORKLOAD, ("grpc", "typer", "torch", "sklearn")),
    "lora": (
        LOOP + ADAPTERS,
        ("grpc", "typer", "torch", "sklearn", "transformers", "peft", "accelerate"),
    ),
    "data": (
        LOOP + "import datasets, tokenizers, PIL, flerm_experiments.workloads.hub\n",
        ("grpc", "typer", "torch", "sklearn", "transformers", "peft", "accelerate"),
    ),
    "transformers": (TRAINER, ("grpc", "typer", "torch", "transformers", "accelerate")),
    "lightning": (LIGHTNING, ("grpc", "typer", "torch", "lightning")),
    "accelerate": (ACCELERATE, ("grpc", "typer", "torch", "accelerate")),
    "server": (CLIENT + SERVER + HELP, SERVES),
    "server,postgres": (
        SERVER + "import psycopg, psycopg_pool\n",
        (*SERVES, "psycopg"),
    ),
    "plot": (PLOT, ("grpc", "typer", "plotly")),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("extra", EXTRAS, ids=[extra or "none" for extra in EXTRAS])
def test_an_extra_brings_what_it_promises_and_nothing_else(
    extra: str, wheel: Path, tmp_path: Path
) -> None:
    promise, brought = EXTRAS[extra]
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    wanted = f"flerm[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--constraint",
        str(ROOT / "constraints.txt"),
        wanted,
    ]
    subprocess.run(install, check=True, capture_output=True, text=True, cwd=tmp_path)

    absent = [name for name in TELLTALES if name not in brought]
    script = (
        "from importlib.util import find_spec\n"
        f"assert [name for name in {absent!r} if find_spec(name)] == []\n"
        f"assert [name for name in {list(brought)!r} if not find_spec(name)] == []\n"
    ) + (promise.format(folder=tmp_path) if "{folder}" in promise else promise)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [python, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert subprocess.run([python, "-m", "pip", "check"], capture_output=True).returncode == 0
