"""Training processes to be killed, made fast: torch is imported once, each line on standard input forks one run.

A line is `{"registry", "spool", "seed", "steps", "pace"}`; the answers are JSON lines too: `{"pid"}`, then one `{"step"}`
after every optimiser step (whose measurement is then in the spool), at the end `{"recording", "values"}`. The run is a session
of its own, as a training job is.
"""

import json
import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
import torch._dynamo  # which the first optimizer that is made imports, and that as slowly as torch itself
from measured_runs import fresh, loss_of

from flerm_client import FLeRM


def say(**content):
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


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
    pace = threading.Event()
    for step in range(1, order["steps"] + 1):
        optimizer.zero_grad()
        loss_of(model(batches[step % len(batches)])).backward()
        optimizer.step()
        say(step=step)
        pace.wait(order["pace"])  # a real step takes its time
    flerm.close(timeout=30.0)
    say(values=flerm.trajectory.values.tolist())


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.setsid()
        say(pid=os.getpid())
        train(json.loads(line))
        os._exit(0)
    os.waitpid(child, 0)
    say(ended=True)
