"""The section on Ray Tune in docs/tuners.md is run as it stands, where Ray is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from flerm_client.registry.client import RegistryClient

PAGE = Path(__file__).parents[2] / "docs/tuners.md"

# The training that the section leaves to its reader, in a module of its own: Ray's processes
# import it.
TRAINING = """
import os
import torch
from flerm_client import FLeRM

def train(lr):
    torch.manual_seed(0)
    model, batch = torch.nn.Linear(4, 2), torch.randn(8, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    flerm = FLeRM.auto(model, optimizer, probe=[batch])
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        flerm.log(loss=loss)
        optimizer.step()
    flerm.close()
    return loss.item()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trials_of_ray_tune_are_recorded_at_their_rates(tmp_path: Path) -> None:
    pytest.importorskip("ray.tune")
    section = PAGE.read_text().split("## Ray Tune\n")[1]
    code = dedent("".join(re.findall(r"(?:^(?:    .*)?\n)+", section, re.MULTILINE)))
    address = f"file://{tmp_path}/registry"
    code = code.replace("grpc://head:50051", address)
    assert address in code
    (tmp_path / "training.py").write_text(TRAINING)
    script = tmp_path / "search.py"
    modules = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    begin = f"ray.init(num_cpus=2, include_dashboard=False, runtime_env={{'env_vars': {modules}}})"
    script.write_text(f"import ray\nfrom training import train\n\n{begin}\n{code}")
    subprocess.run([sys.executable, str(script)], check=True, timeout=250, cwd=tmp_path)
    with RegistryClient(address) as registry:
        (recording,) = registry.recordings("team/decoder")
    assert recording.status == "completed"
    assert 1e-4 <= recording.spec.lr <= 1e-1
    assert recording.rows > 0
