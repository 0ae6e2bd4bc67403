"""`make demo`: the main job from end to end on this machine, in about a minute.

A registry on SQLite and free ports; a small residual MLP recorded at three learning rates and two seeds; the registry asked
which rate is best; a model four times as wide trained by two DDP ranks at matched learning rates; what the registry holds then,
read over HTTP. Ends with an error, and a non-zero code, where anything went otherwise. What was recorded stays in .cache/demo
until the next demo, and the last lines tell how to look at it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DATABASE = ROOT / ".cache" / "demo" / "flerm.db"
FAMILY = "resmlp"
RATES, SEEDS = (1e-3, 4e-3, 1.6e-2), (0, 1)
STEPS, EVERY, WIDTH, RANKS = 200, 50, 4, 2
PYTHON = (sys.executable, "-m")
TRAIN = ("flerm_client.cli", "train", "resmlp", "--steps", str(STEPS), "--family", FAMILY)


def say(text: str = "") -> None:
    """One line, at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201


def shown(command: tuple[str, ...]) -> str:
    """The command as a user would type it."""
    words = [word for word in command if word not in PYTHON]
    named = {
        "flerm_client.cli": "flerm",
        "flerm_server.cli": "flerm",
        "torch.distributed.run": "torchrun",
    }
    if words[0] == "torch.distributed.run":
        named["flerm_client.cli"] = "-m flerm_client.cli"
    return " ".join(named.get(word, shlex.quote(word)) for word in words)


@contextmanager
def registry(folder: Path) -> Iterator[tuple[str, str]]:
    """A server process on free ports; yields its gRPC and HTTP addresses. Stops it at the end and checks that it ended well."""
    command = (
        *PYTHON,
        *("flerm_server.cli", "serve", "--db", f"sqlite:///{DATABASE}"),
        *("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"),
    )
    say(f"$ {shown(command)}")
    log = folder / "server.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as server,
    ):
        try:
            # One line says that both sides answer and where; the end of the stream, that the server is gone.
            _, *addresses = (server.stdout.readline() if server.stdout else "").split() or [""]
            if len(addresses) == 2:
                yield addresses[0], addresses[1].rstrip("/")
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(timeout=30)
    if code != 0 or len(addresses) != 2:
        raise SystemExit(f"the server ended with code {code}:\n{log.read_text()}")
    say("server stopped")


def run(
    command: tuple[str, ...], environment: dict[str, str], out: Path, *, show: bool = False
) -> dict[str, Any]:
    """Runs one training command that writes its result to `out`; returns that. A failed one ends the demo with its output."""
    done = subprocess.run(
        (*PYTHON, *command, "--json", str(out)),
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(
            f"{shown(command)} ended with code {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    if show:
        say(done.stdout.rstrip())
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def main() -> None:
    """Runs the demo."""
    started = time.perf_counter()
    shutil.rmtree(DATABASE.parent, ignore_errors=True)
    DATABASE.parent.mkdir(parents=True)
    with (
        tempfile.TemporaryDirectory(prefix="flerm-demo-") as name,
        registry(Path(name)) as (grpc, http),
    ):
        folder = Path(name)
        environment = os.environ | {
            "FLERM_REGISTRY": grpc,
            "FLERM_SPOOL": str(folder / "spool"),
            "OMP_NUM_THREADS": "1",
        }
        say(f"registry at {grpc} and {http}\n")

        def get(path: str) -> Any:
            say(f"$ curl -s '{http}{path}'")
            with urllib.request.urlopen(http + path, timeout=30) as answer:
                return json.load(answer)

        def record(rate: float, seed: int) -> dict[str, Any]:
            command = (
                *TRAIN,
                "--lr",
                f"{rate:g}",
                "--seed",
                str(seed),
                "--record",
                "--every",
                str(EVERY),
            )
            result = run(command, environment, folder / f"base-{rate:g}-{seed}.json")
            say(f"$ {shown(command)}\n    final loss {result['final_loss']:.4f}")
            return result

        say(f"1. Record the base model: {len(RATES)} learning rates, {len(SEEDS)} seeds")
        with ThreadPoolExecutor(RANKS) as pool:
            base = list(pool.map(record, *zip(*product(RATES, SEEDS), strict=True)))

        say("\n2. Ask which learning rate to use")
        best = get(f"/api/v1/families/{FAMILY}/best")
        say(f"    {best['advice']}")
        rate = float(best["lr"])

        say(
            f"\n3. Train a model {WIDTH} times as wide on {RANKS} DDP ranks, at matched learning rates"
        )
        scaled = (*TRAIN, "--width", str(WIDTH), "--lr", f"{rate!r}", "--match")
        torchrun = (
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(RANKS),
            "-m",
            *scaled,
        )
        say(f"$ {shown(torchrun)}")
        matched = run(torchrun, environment, folder / "matched.json", show=True)
        if matched["world"] != RANKS or not matched["matched"]:
            raise SystemExit(
                f"the job matched {len(matched['matched'])} tensors on {matched['world']} ranks"
            )

        say("\n4. Read over HTTP what was recorded")
        family = get(f"/api/v1/families/{FAMILY}")
        rates = ", ".join(f"{lr:g}" for lr in family["learning_rates"])
        say(f"    {family['recordings']} recordings, base learning rates {rates}")
        recordings = get(f"/api/v1/recordings?family={FAMILY}")["recordings"]
        for item in recordings:
            kind = f"{item['role']} {item['variant']}"
            say(
                f"    {item['id']}  {kind:14}  lr {item['lr']:<6.4g} seed {item['seed']}  {item['status']}, {item['rows']} rows"
            )
        own = next(item for item in recordings if item["role"] == "scaled")
        trajectory = get(f"/api/v1/recordings/{own['id']}/trajectory")
        steps = ", ".join(str(row["step"]) for row in trajectory["rows"])
        say(
            f"    {len(trajectory['rows'])} measurements of {len(trajectory['names'])} tensors and roles, at steps {steps}"
        )
        if len(recordings) != len(base) + 1 or any(
            item["status"] != "completed" for item in recordings
        ):
            raise SystemExit(
                f"the registry holds {len(recordings)} recordings, not {len(base) + 1} completed ones"
            )
    scripts = Path(sys.executable).parent
    say("\nTo look at it:")
    say(f"$ {os.path.relpath(scripts / 'flerm')} serve --db sqlite:///{os.path.relpath(DATABASE)}")
    say(f"    and open http://127.0.0.1:8080/families/{FAMILY}")
    say(f"\n{time.perf_counter() - started:.0f} s in all")
    say(f"demo ok: {len(matched['matched'])} tensors matched on {matched['world']} ranks")


if __name__ == "__main__":
    main()
