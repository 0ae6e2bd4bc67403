"""`make demo`: the whole path on this machine, in about a minute.

The demo starts a registry on SQLite and free ports, records a small residual MLP at three learning
rates and two seeds, and asks the registry which rate is best. Two DDP ranks then train a model four
times as wide at matched learning rates, and the demo reads over HTTP what the registry holds. It
ends with an error and a non-zero code where anything goes wrong. The recordings stay in .cache/demo
until the next demo, and the last lines tell how to look at them.
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
    """Prints one line and flushes, so that a pipe has it at once."""
    print(text, flush=True)  # noqa: T201


def shown(command: tuple[str, ...]) -> str:
    """The command as a user types it."""
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
    """Starts a server process on free ports; yields its gRPC and HTTP addresses. Stops it at the
    end and checks that it ended well.
    """
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
            # The server prints one line with its addresses once both answer. An empty line means
            # that it has ended.
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
    """Runs one training command that writes its result to `out`, and returns the result. A
    failed command ends the demo with its output.
    """
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


class Demo:
    """The demo's steps against one registry. Each raises `SystemExit` where the outcome is
    wrong."""

    def __init__(self, folder: Path, grpc: str, http: str) -> None:
        self.folder = folder
        self.http = http
        self.environment = os.environ | {
            "FLERM_REGISTRY": grpc,
            "FLERM_SPOOL": str(folder / "spool"),
            "OMP_NUM_THREADS": "1",
        }

    def get(self, path: str) -> Any:
        """The registry's answer over HTTP."""
        say(f"$ curl -s '{self.http}{path}'")
        with urllib.request.urlopen(self.http + path, timeout=30) as answer:
            return json.load(answer)

    def record_base(self) -> int:
        """Records the base model at all rates and seeds; returns the number of recordings."""
        say(f"1. Record the base model: {len(RATES)} learning rates, {len(SEEDS)} seeds")
        with ThreadPoolExecutor(RANKS) as pool:
            return len(list(pool.map(self._record, *zip(*product(RATES, SEEDS), strict=True))))

    def _record(self, rate: float, seed: int) -> None:
        options = ("--lr", f"{rate:g}", "--seed", str(seed), "--record", "--every", str(EVERY))
        command = (*TRAIN, *options)
        result = run(command, self.environment, self.folder / f"base-{rate:g}-{seed}.json")
        say(f"$ {shown(command)}\n    final loss {result['final_loss']:.4f}")

    def best_rate(self) -> float:
        """The learning rate that the registry recommends."""
        say("\n2. Ask which learning rate to use")
        best = self.get(f"/api/v1/families/{FAMILY}/best")
        say(f"    {best['advice']}")
        return float(best["lr"])

    def train_matched(self, rate: float) -> dict[str, Any]:
        """The result of the wide model, trained at matched rates."""
        say(
            f"\n3. Train a model {WIDTH} times as wide on {RANKS} DDP ranks, "
            "at matched learning rates"
        )
        launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), "-m")
        command = (*launcher, *TRAIN, "--width", str(WIDTH), "--lr", f"{rate!r}", "--match")
        say(f"$ {shown(command)}")
        result = run(command, self.environment, self.folder / "matched.json", show=True)
        if result["world"] != RANKS or not result["matched"]:
            raise SystemExit(
                f"the job matched {len(result['matched'])} tensors on {result['world']} ranks"
            )
        return result

    def read_back(self, base_recordings: int) -> None:
        """Reads over HTTP what the registry holds, and checks that it is complete."""
        say("\n4. Read over HTTP what was recorded")
        family = self.get(f"/api/v1/families/{FAMILY}")
        rates = ", ".join(f"{lr:g}" for lr in family["learning_rates"])
        say(f"    {family['recordings']} recordings, base learning rates {rates}")
        recordings = self.get(f"/api/v1/recordings?family={FAMILY}")["recordings"]
        for item in recordings:
            kind = f"{item['role']} {item['variant']}"
            say(
                f"    {item['id']}  {kind:14}  lr {item['lr']:<6.4g} seed {item['seed']}  "
                f"{item['status']}, {item['rows']} rows"
            )
        scaled = next(item for item in recordings if item["role"] == "scaled")
        trajectory = self.get(f"/api/v1/recordings/{scaled['id']}/trajectory")
        steps = ", ".join(str(row["step"]) for row in trajectory["rows"])
        say(
            f"    {len(trajectory['rows'])} measurements of {len(trajectory['names'])} tensors "
            f"and depth groups, at steps {steps}"
        )
        expected = base_recordings + 1
        if len(recordings) != expected or any(each["status"] != "completed" for each in recordings):
            raise SystemExit(
                f"the registry holds {len(recordings)} recordings, not {expected} completed ones"
            )


def main() -> None:
    """Runs the demo."""
    started = time.perf_counter()
    shutil.rmtree(DATABASE.parent, ignore_errors=True)
    DATABASE.parent.mkdir(parents=True)
    with (
        tempfile.TemporaryDirectory(prefix="flerm-demo-") as name,
        registry(Path(name)) as (grpc, http),
    ):
        say(f"registry at {grpc} and {http}\n")
        demo = Demo(Path(name), grpc, http)
        base_recordings = demo.record_base()
        matched = demo.train_matched(demo.best_rate())
        demo.read_back(base_recordings)
    flerm = os.path.relpath(Path(sys.executable).parent / "flerm")
    say("\nTo look at it:")
    say(f"$ {flerm} serve --db sqlite:///{os.path.relpath(DATABASE)}")
    say(f"    and open http://127.0.0.1:8080/families/{FAMILY}")
    say(f"\n{time.perf_counter() - started:.0f} s in all")
    say(f"demo ok: {len(matched['matched'])} tensors matched on {matched['world']} ranks")


if __name__ == "__main__":
    main()
