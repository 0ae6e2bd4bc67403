"""A rank that trains on demand.

Rank 0 reads runs as JSON lines from a socket, all ranks train them, and rank 0 writes the results.
The argument is the port to connect to. World size and rank come by environment, as torchrun sets
them. A run is `{"mode": "plain" | "record" | "match", "registry", "family", "spool", "token_file",
"pause_at", "every", "timeout"}`. Before step `pause_at`, rank 0 writes `{"paused": step}` and waits
for a line.
"""

import hashlib
import json
import os
import socket
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from measured_runs import fresh, loss_of
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM
from flerm_core.errors import FlermError

STEPS = 12
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def shared(value):
    """Rank 0's `value` on every rank."""
    box = [value]
    if WORLD > 1:
        dist.broadcast_object_list(box)
    return box[0]


def attach(run, model, optimizer):
    generator = torch.Generator().manual_seed(11 + RANK)
    probe = [torch.randn(16, 8, generator=generator) for _ in range(4)]
    common = {
        "probe": probe,
        "family": run["family"],
        "registry": run["registry"],
        "every": run["every"],
        "warmup": 1,
    }
    if run["mode"] == "record":
        return FLeRM.record(model, optimizer, **common)
    return FLeRM.match(model, optimizer, timeout=run["timeout"], **common)


def train(run, wait):
    """What a training script does; weights and what FLeRM says of the run."""
    os.environ["FLERM_SPOOL"] = run["spool"]
    os.environ["FLERM_TOKEN_FILE"] = run["token_file"]
    model, _ = fresh("resmlp")
    if run["mode"] == "match":
        torch.manual_seed(5)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    generator = torch.Generator().manual_seed(100 + RANK)
    batches = [torch.randn(12, 8, generator=generator) for _ in range(STEPS)]
    trained = DistributedDataParallel(model) if WORLD > 1 else model
    optimizer = torch.optim.AdamW(trained.parameters(), 1e-3)
    flerm = None if run["mode"] == "plain" else attach(run, trained, optimizer)
    for step, batch in enumerate(batches, 1):
        if step == run["pause_at"] and RANK == 0:
            wait(step)
        optimizer.zero_grad()
        loss = loss_of(trained(batch))
        loss.backward()
        if flerm is not None:
            flerm.log(loss=loss)
        optimizer.step()
    weights = hashlib.sha256(
        b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    ).hexdigest()
    if flerm is None:
        return {"weights": weights}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        flerm.close(timeout=0.5)
    trajectory = flerm.trajectory
    return {
        "weights": weights,
        "recording": flerm.recording_id,
        "steps": trajectory.steps.tolist(),
        "values": trajectory.values.tolist(),
        "multipliers": flerm.multipliers,
        "said": [str(each.message) for each in caught],
    }


def main(port):
    line = None
    if RANK == 0:
        line = socket.create_connection(("127.0.0.1", port)).makefile("rw")
    if WORLD > 1:
        dist.init_process_group("gloo")

    def wait(step):
        line.write(json.dumps({"paused": step}) + "\n")
        line.flush()
        line.readline()

    while run := shared(json.loads(line.readline() or "null") if RANK == 0 else None):
        try:
            outcome = train(run, wait)
        except FlermError as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
        outcomes = [outcome]
        if WORLD > 1:
            outcomes = [None] * WORLD
            dist.all_gather_object(outcomes, outcome)
        if RANK == 0:
            line.write(json.dumps(outcomes) + "\n")
            line.flush()
    if WORLD > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]))
