"""Training scripts of strangers, as small as they can be, and sweep files for them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flerm_client.registry.client import RegistryClient

PLAYED = r'''
"""Records a run whose loss is a parabola over log2 lr, without training anything."""
import argparse, json, math, os, sys
from flerm_client.registry.client import RegistryClient
from flerm_client.training.run_instructions import RunInstructions

parser = argparse.ArgumentParser()
for name, kind in (("lr", float), ("seed", int), ("width", int), ("fail", str), ("out", str),
                   ("decay", float), ("kind", str)):
    parser.add_argument(f"--{name}", type=kind)
given = parser.parse_args()
said = RunInstructions.from_environment()
loss = (math.log2(given.lr) + 6.3) ** 2 + given.seed / 100 + 1 / given.width
if given.decay is not None:
    loss += 4 * abs(given.decay - 0.3) + 2 * (given.kind == "b")
print(f"step 1 loss {loss + 1}")
print(f"step 2 loss {loss}")
with open(os.environ["TRAINED"], "a") as trained:
    trained.write(f"{said.role} {said.mode} {given.lr} {given.seed} {given.width}\n")
if given.fail and eval(given.fail):
    print("out of memory")
    sys.exit(3)
if said.mode == "dry-run":
    print("1 tensors match the base")
    sys.exit(0)
with RegistryClient() as registry:
    sources = []
    if said.mode == "match":
        sources = list(registry.targets(said.family, said.lr, tags=said.source_tags).sources)
    recording = registry.start_recording(
        said.family, said.lr, ["w"], [[given.width, 2]], seed=said.seed, role=said.role,
        variant=said.variant, tags=said.tags, config={**said.config, "sources": sources},
    )
    registry.append(recording, [1], [[1.0]], losses=[loss], vectors={"multiplier": [[0.5]]})
    registry.finish(recording, final_loss=None if said.judged_later else loss, final_step=2)
if given.out:
    with open(given.out, "w") as out:
        json.dump({"eval": {"loss": loss * 2}}, out)
'''
"""`TRAINED` names the file that gets a line for each training."""


def played(
    folder: Path,
    *,
    options: str = "",
    table: str = "",
    rates: str = "",
    variants: str = '["plain", "matched"]',
) -> Path:
    """A sweep file beside the script.

    options: of the script. table: tables below. rates: a list of rates in place of the search.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(PLAYED)
    path = folder / "mine.toml"
    path.write_text(
        f"""command = "{sys.executable} train.py --lr {{lr}} --seed {{seed}} --width {{width}} \
{options}"
{f"rates = {rates}" if rates else "initial_lr = 0.0078125"}
base_seeds = 1
variants = {variants}
[base]
width = 8
[target]
width = 32
{table}
"""
    )
    return path


def trained(folder: Path) -> list[str]:
    """A line for each training that was begun: role, mode, rate, seed, width."""
    path = folder / "trained"
    return path.read_text().splitlines() if path.exists() else []


def recordings(address: str, family: str = "mine", **filters: Any) -> list[Any]:
    """What the registry holds of a sweep."""
    with RegistryClient(address) as registry:
        return list(registry.recordings(family, **filters))
