"""`flerm init`: writes a sweep file for a training script, and shows the lines to add to the
script."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from flerm_client.cli.common import say
from flerm_core.errors import InvalidInput

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")  # characters that no family's name may have

LINES = {
    "loop": """from flerm_client import FLeRM

# after the model (also in DDP or FSDP2) and the optimizer are made:
flerm = FLeRM.auto(model, optimizer, probe=probe_batches)  # batches of inputs beside the training's

# in the loop, before optimizer.step():
flerm.log(loss=loss)

# after the loop:
flerm.close()""",
    "trainer": """from flerm_client.integrations.transformers import FLeRMCallback

# before trainer.train():
FLeRMCallback().add_to(trainer)""",
    "lightning": """from flerm_client.integrations.lightning import FLeRMCallback

# among the callbacks:
trainer = Trainer(..., callbacks=[FLeRMCallback()])""",
    "accelerate": """from flerm_client.integrations.accelerate import auto

# after accelerator.prepare(...):
flerm = auto(accelerator, model, optimizer, loader)

# after the loop:
flerm.close()""",
}
"""The lines that a training script needs, by framework."""

Script = Annotated[
    str | None, typer.Option(help="The training script, such as train.py.", show_default=False)
]
Framework = Annotated[
    str | None, typer.Option(help=f"One of {', '.join(LINES)}.", show_default=False)
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--scale",
        help="An option of the script with its values for the small and the big model: "
        "width=64:512; may be repeated.",
        show_default=False,
    ),
]
Launcher = Annotated[str, typer.Option(help="What starts the script.")]
InitialLr = Annotated[float, typer.Option("--lr", help="Where the search begins.")]
Family = Annotated[str, typer.Option(help="Name of the family; default: the script's.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="The file; default: beside the script.")
]


def init(
    script: Script = None,
    framework: Framework = None,
    scale: Sizes = None,
    launcher: Launcher = "python",
    lr: InitialLr = 0.001,
    family: Family = "",
    out: Out = None,
) -> None:
    """Write a sweep file for your training script, and show the lines to add to it.

    Example: flerm init --script train.py --framework loop --scale width=64:512 --launcher
    "torchrun --nproc-per-node 2". Without flags it asks.
    """
    script = script or _ask("--script", "training script", "train.py")
    framework = framework or _ask("--framework", f"framework ({', '.join(LINES)})", "loop")
    if framework not in LINES:
        raise InvalidInput(
            f"--framework is {framework!r}, but it must be one of {', '.join(LINES)}"
        )
    given = scale or _ask("--scale", "scale, as name=small:big", "width=64:512").split()
    sizes = [_size(each) for each in given]
    name = Path(script).stem
    path = out or Path(script).with_name(f"{name}.toml")
    if path.exists():
        raise InvalidInput(f"--out: {path} is there already; name another file or remove it")
    if not 0 < lr < float("inf"):
        raise InvalidInput(f"--lr is {lr}, but it must be positive and finite")
    # The command runs in the folder of the sweep file.
    beside = path.parent == Path(script).parent
    script_path = Path(script).name if beside else str(Path(script).resolve())
    options = [f"--{key} {{{key}}}" for key in ("lr", "seed", *(key for key, _, _ in sizes))]
    words = [launcher, shlex.quote(script_path), *options]
    path.write_text(
        "\n".join(
            [
                "# Tune small, train big: flerm tune FILE. All fields: docs/sweeps.md",
                f"command = {_toml(' '.join(words))}",
                f"family = {_toml(family or _NOT_IN_NAMES.sub('-', name))}",
                f"initial_lr = {lr!r}  # where the search for the small model's best rate begins",
                "base_seeds = 2",
                "",
                "[base]",
                *(f"{key} = {small}" for key, small, _ in sizes),
                "",
                "[target]",
                *(f"{key} = {big}" for key, _, big in sizes),
                "",
            ]
        )
    )
    say(f"{path} is written. Check its command: the script must take these options.")
    say(f"\nAdd to {script}:\n\n{LINES[framework]}\n")
    say(f"Then: flerm tune {path} --registry file:///FOLDER")


def _ask(flag: str, what: str, default: str) -> str:
    if not sys.stdin.isatty():
        raise InvalidInput(f"{flag} must be given where nobody can be asked: {what}")
    answer: str = typer.prompt(what, default=default)
    return answer


def _size(text: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(\w+)=([^:]+):([^:]+)", text)
    if found is None:
        raise InvalidInput(f"--scale is {text!r}, but it must be name=small:big, as width=64:512")
    return found[1], _toml(found[2]), _toml(found[3])


def _toml(value: str) -> str:
    # Every JSON string is also a TOML string.
    number = re.fullmatch(r"\d+(\.\d+)?", value)
    return value if number else json.dumps(value, ensure_ascii=False)
