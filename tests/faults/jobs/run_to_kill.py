"""A training run that a test kills.

Its argument is `{"registry", "spool", "seed", "steps", "pace"}` as JSON. `pace`: seconds that a
step takes at least. It prints JSON lines: `{"recording"}`, then `{"step"}` after every optimiser
step (its measurement is then in the spool), at the end `{"values"}`.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from measured_runs import fresh, loss_of

from flerm_client import FLeRM


def say(**content):
    os.write(1, json.dumps(content).encode() + b"\n")


def train(order):
    os.environ["FLERM_SPOOL"] = order["spool"]
    model, batches = fresh("resmlp")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    probe = [torch.randn(16, 8, generator=torch.Generator().manual_seed(1))]
    flerm = FLeRM.record(
        model,
        optimizer,
        probe=probe,
        family="killed",
        registry=order["registry"],
        seed=order["seed"],
        every=1,
        warmup=1,
    )
    say(recording=flerm.recording_id)
    for step in range(1, order["steps"] + 1):
        optimizer.zero_grad()
        loss_of(model(batches[step % len(batches)])).backward()
        optimizer.step()
        say(step=step)
        time.sleep(order["pace"])
    flerm.close(timeout=30.0)
    say(values=flerm.trajectory.values.tolist())


train(json.loads(sys.argv[1]))
