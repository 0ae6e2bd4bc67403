"""Trains by a framework's own launcher conventions on every rank: plain, recorded and resumed.

Each rank reports what it saw.

Arguments: the framework (trainer, accelerate, lightning) and how the model is held (ddp, fsdp2).
"""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[3] / "support"))

import torch
from distributed.rank import report
from framework_models import batches, examples, gpt2, trainer_of
from torch import nn
from torch.distributed.tensor import DTensor

FRAMEWORK, HELD = sys.argv[1:]
FOLDER = Path(os.environ["FLERM_TEST_FOLDER"])
RANK = int(os.environ["RANK"])


def own_probe() -> list[Any]:
    return batches(seed=10 + RANK)


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    names = {
        name.removeprefix("module."): parameter for name, parameter in model.named_parameters()
    }
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in names.items()
    }


def told(flerm: Any, model: nn.Module, losses: list[float]) -> dict[str, Any]:
    found = {"losses": losses, "weights": whole(model)}
    if flerm is not None:
        rows = flerm.trajectory
        found |= {
            "fslr": flerm.fslr,
            "multipliers": flerm.multipliers,
            "values": rows.values,
            "steps": rows.steps.tolist(),
        }
    return found


def trainer(mode: str | None, resume: str | None = None, **keywords: Any) -> dict[str, Any]:
    from framework_models import losses

    from flerm_client.integrations.transformers import FLeRMCallback

    settings: dict[str, Any] = {}
    if HELD == "fsdp2":
        settings = {
            "fsdp": "full_shard",
            "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["GPT2Block"]},
        }
    name = mode or "plain"
    saving = {"save_strategy": "no" if resume else "steps", "save_steps": 3}
    made = trainer_of(FOLDER / name, gpt2(dropout=0.1), ddp_backend="gloo", **saving, **settings)
    callback = FLeRMCallback(mode, family="gpt2", **keywords).add_to(made) if mode else None
    made.train(resume_from_checkpoint=resume)
    return told(callback and callback.flerm, made.model, losses(made))


def accelerate(mode: str | None, resume: str | None = None, **keywords: Any) -> dict[str, Any]:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from torch.utils.data import DataLoader

    from flerm_client.integrations import accelerate as integration

    plugin = None
    if HELD == "fsdp2":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["GPT2Block"],
            cpu_ram_efficient_loading=False,
        )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    model = gpt2(dropout=0.0)  # load_state restores the generators, then the loader draws from them
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(examples(96), batch_size=8)
    )
    flerm = (
        getattr(integration, mode)(accelerator, model, optimizer, loader, family="gpt2", **keywords)
        if mode
        else None
    )
    torch.manual_seed(7 + RANK)
    if resume:
        accelerator.load_state(resume)
    seen = []
    for step, batch in enumerate(loader):
        if resume and step < 3:
            continue
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(loss.detach()))
        if step == 2 and not resume:
            accelerator.save_state(str(FOLDER / (mode or "plain") / "checkpoint-3"))
    if flerm is not None:
        flerm.close()
    return told(flerm, model, seen)


def lightning(mode: str | None, resume: str | None = None, **keywords: Any) -> dict[str, Any]:
    from client.integrations.test_lightning import Classifier, data, probe
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard
    from torch.utils.data import DataLoader

    from flerm_client.integrations.lightning import FLeRMCallback

    class Sharded(Classifier):
        def configure_model(self) -> None:
            for part in (*self.net, self.net):
                if isinstance(part, nn.Linear | nn.Sequential):
                    fully_shard(part, mesh=self.device_mesh["data_parallel"])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-2)

    seed_everything(5)
    folder = FOLDER / (mode or "plain")
    if "probe" in keywords:
        keywords["probe"] = probe()
    callback = FLeRMCallback(mode, family="net", **keywords) if mode else None
    saving = ModelCheckpoint(
        folder, filename="checkpoint-{step}", auto_insert_metric_name=False, save_top_k=-1
    )
    strategy = (
        ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        if HELD == "fsdp2"
        else "ddp"
    )
    made = Trainer(
        max_steps=6,
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[each for each in (callback, saving) if each is not None],
    )
    module = (Sharded if HELD == "fsdp2" else Classifier)(dropout=0.0)
    made.fit(
        module,
        DataLoader(data(16), batch_size=8, shuffle=False),
        ckpt_path=resume and f"{resume}.ckpt",
    )
    return told(callback and callback.flerm, module, module.seen)


train = {"trainer": trainer, "accelerate": accelerate, "lightning": lightning}[FRAMEWORK]
plain = train(None)
recorded = train("record", every=2, warmup=2, probe=own_probe())
aim = {name: value / 2 for name, value in recorded["fslr"].items()}
matching: dict[str, Any] = {"every": 2, "warmup": 2, "targets": aim}
matched = train("match", **matching)
resumed = train("match", resume=str(FOLDER / "match" / "checkpoint-3"), **matching)
report({"plain": plain, "recorded": recorded, "matched": matched, "resumed": resumed})
