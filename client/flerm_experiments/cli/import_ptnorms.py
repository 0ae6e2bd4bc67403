"""`flerm import-ptnorms`: the paper's base recordings into a registry."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from flerm_client.cli.common import Json, Registry, Tag, client, print_json, say
from flerm_core.errors import InvalidInput
from flerm_core.records.key_value_pairs import key_value_pairs

Family = Annotated[str, typer.Argument(help="The family of the recordings.")]
Files = Annotated[
    list[Path],
    typer.Argument(help="*.ptnorms, as the paper's code wrote them; one for each rate and seed."),
]
LearningRate = Annotated[
    float | None, typer.Option(help="Base learning rate, where the file's name does not say it.")
]
Seed = Annotated[int | None, typer.Option(help="Seed, where the file's name does not say it.")]
Every = Annotated[int, typer.Option(help="Steps between measurements.")]
OptimizerName = Annotated[
    str, typer.Option(help="A class of torch.optim, with its default settings.")
]


def import_ptnorms(
    family: Family,
    files: Files,
    lr: LearningRate = None,
    seed: Seed = None,
    every: Every = 100,
    optimizer: OptimizerName = "Adam",
    tag: Tag = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Import base recordings that the paper's own code wrote (.ptnorms) into a registry. Their
    estimator is kronecker.

    A file that is imported twice is one recording. The files hold no losses, so `flerm best` does
    not use these recordings. Their values are smoothed.

    Example: flerm import-ptnorms mlp basemodelresmlpcifar10empiricalmasses_lr_0.001_seed_*.ptnorms
    """
    tags = key_value_pairs("--tag", tag)
    results = [_import(file, family, lr, seed, every, optimizer, tags, registry) for file in files]
    if as_json:
        print_json(results)
    else:
        for result in results:
            say(
                f"{result['file']}: recording {result['id']}, lr {result['lr']:g}, "
                f"seed {result['seed']}, {result['rows']} rows"
            )


def _import(
    file: Path,
    family: str,
    lr: float | None,
    seed: int | None,
    every: int,
    optimizer: str,
    tags: dict[str, str],
    registry: str | None,
) -> dict[str, Any]:
    from flerm_experiments.paper_recordings import paper_estimator, read_ptnorms

    found = read_ptnorms(file, every=every)
    lr = found.lr if lr is None else lr
    seed = found.seed if seed is None else seed
    if lr is None or seed is None:
        missing = " and ".join(
            f"--{name}" for name, value in (("lr", lr), ("seed", seed)) if value is None
        )
        raise InvalidInput(
            f"{file.name}: {missing} must be given, because the file's name has no part like "
            "_lr_0.001_seed_3"
        )
    kind, settings = _optimizer_settings(optimizer)
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    recording = str(
        uuid.uuid5(uuid.NAMESPACE_URL, f"ptnorms:{family}:{lr!r}:{seed}:{every}:{kind}:{content}")
    )
    trajectory = found.trajectory
    with client(registry) as connected:
        connected.start_recording(
            family,
            lr,
            trajectory.names,
            trajectory.shapes,
            bands=trajectory.bands,
            seed=seed,
            optimizer=kind,
            optimizer_config=settings,
            estimator=paper_estimator(every),
            tags={"source": "ptnorms"} | tags,
            recording_id=recording,
        )
        if (
            connected.recording(recording).status == "running"
        ):  # a recording that has ended was imported before
            connected.append(recording, trajectory.steps.tolist(), trajectory.values)
            connected.finish(recording, final_step=int(trajectory.steps[-1]))
    return {"file": file.name, "id": recording, "lr": lr, "seed": seed, "rows": len(trajectory)}


def _optimizer_settings(name: str) -> tuple[str, dict[str, Any]]:
    """The optimiser's class name and settings, as a run with default settings records them.

    Raises `InvalidInput` where torch.optim has no optimiser called `name`.
    """
    import torch

    from flerm_client.training.optimizer_info import bare_optimizer, describe

    kind = getattr(torch.optim, name, None)
    if (
        not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer))
        or kind is torch.optim.Optimizer
    ):
        raise InvalidInput(
            f"--optimizer: torch.optim has no optimiser {name!r}; name one of its classes, such as "
            "Adam"
        )
    optimizer: Any = kind
    return describe([bare_optimizer(optimizer([torch.nn.Parameter(torch.zeros(1))], lr=1.0))])
