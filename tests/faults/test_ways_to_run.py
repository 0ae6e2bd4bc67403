"""Ways to run: a script without a main guard, `python -c`, a notebook, DataLoader workers."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from forked import fork, rendezvous

from flerm_client import RegistryClient

# What users write, without functions and guards. `{loader}`: the loader's arguments;
# `{rounds}`: passes over the data.
TRAINING = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from flerm_client import FLeRM

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
data = TensorDataset(torch.randn(32, 8), torch.randint(0, 4, (32,)))
probe = [torch.randn(16, 8) for _ in range(4)]
flerm = FLeRM.record(model, optimizer, probe=probe, family="{family}", every=1, warmup=1)
for _ in range({rounds}):
    for inputs, labels in DataLoader(data, batch_size=16, {loader}):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
{ending}
"""


def training(
    family: str, *, rounds: int = 3, loader: str = "num_workers=0", ending: str = ""
) -> str:
    return TRAINING.format(family=family, rounds=rounds, loader=loader, ending=ending)


def guarded(code: str) -> str:
    """The same in a main function behind a guard, as spawn needs it.

    All objects of the run are collected before the process ends.
    """
    body = "".join(f"    {line}\n" for line in code.splitlines())
    guard = 'if __name__ == "__main__":\n    main()\n    gc.collect()\n'
    return f"import gc\n\ndef main():\n{body}\n{guard}"


@pytest.fixture
def family():
    return f"ways-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def environment(registry, tmp_path):
    """The registry by environment, and a spool of the test's own."""
    return {
        **os.environ,
        "FLERM_REGISTRY": registry.address,
        "FLERM_SPOOL": str(tmp_path / "spool"),
        "OMP_NUM_THREADS": "1",
    }


def run(
    command: list[str], environment: dict[str, str], seconds: float = 60.0
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


def assert_recorded(registry, family: str, steps: int) -> None:
    """One completed recording of `family`, with every step of it."""
    with RegistryClient(registry.address) as client:
        (recording,) = client.recordings(family)
        assert (recording.status, recording.rows, recording.last_step) == (
            "completed",
            steps,
            steps,
        )


def run_forked(script: Path, environment: dict[str, str], seconds: float = 60.0) -> tuple[int, str]:
    """The script's exit code, and what the script prints. Its process is forked."""
    output = script.with_suffix(".output")
    (code,) = fork(script, environments=[environment], output=output).wait(seconds)
    return code, output.read_text()


def test_a_script_without_a_main_guard_that_never_closes(registry, family, environment, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(training(family))
    assert run_forked(script, environment) == (0, "")
    assert_recorded(registry, family, 6)


def test_a_program_on_the_command_line(registry, family, environment):
    done = run([sys.executable, "-c", training(family)], environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_recorded(registry, family, 6)


def test_a_script_that_fails_is_recorded_as_failed(registry, family, environment, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(training(family, ending="raise RuntimeError('out of memory')"))
    code, printed = run_forked(script, environment)
    assert code == 1 and "out of memory" in printed
    with RegistryClient(registry.address) as client:
        assert [each.status for each in client.recordings(family)] == ["failed"]


@pytest.mark.slow
def test_leaving_an_interactive_prompt_records_the_run_as_interrupted(
    registry, family, environment
):
    done = run([sys.executable, "-i", "-c", training(family)], environment)
    assert done.returncode == 0
    with RegistryClient(registry.address) as client:
        assert [each.status for each in client.recordings(family)] == ["interrupted"]


def test_a_notebook(registry, family, environment, tmp_path):
    from jupyter_client.manager import KernelManager

    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(
        env={**environment, "IPYTHONDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)},
        cwd=str(tmp_path),
    )
    client = kernel.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        for cell in (training(family), "flerm.close()"):
            answer = client.execute_interactive(cell, timeout=60, output_hook=lambda message: None)
            assert answer["content"]["status"] == "ok", answer["content"]
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert_recorded(registry, family, 6)


MANY = [2, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]


@pytest.mark.parametrize("rounds", MANY)
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_beside_dataloader_workers(method, rounds, registry, family, environment, tmp_path):
    script = tmp_path / "train.py"
    workers = 2 if method == "fork" else 1
    code = training(
        family, rounds=rounds, loader=f"num_workers={workers}, multiprocessing_context='{method}'"
    )
    script.write_text(guarded(code) if method == "spawn" else code)
    seconds = 60.0 if rounds == 2 else 1000.0
    if method == "fork":
        assert run_forked(script, environment, seconds) == (0, "")
    else:
        done = run([sys.executable, str(script)], environment, seconds)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_recorded(registry, family, 2 * rounds)


MATCH = """
import os
import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from flerm_client import FLeRM

dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
FLeRM.match(model, optimizer, probe=[torch.randn(8, 4)], family="nowhere", timeout=1.0)
print("training begins")
"""


def test_a_matched_script_without_targets_ends_on_every_rank_before_it_trains(tmp_path):
    script = tmp_path / "match.py"
    script.write_text(MATCH)
    store, group = rendezvous(2)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"grpc://127.0.0.1:{bound.getsockname()[1]}"
        common = {"FLERM_REGISTRY": address, "FLERM_SPOOL": str(tmp_path / "spool")}
        outputs = [tmp_path / f"rank{rank}" for rank in range(2)]
        jobs = [
            fork(script, environments=[common | own], output=output)
            for own, output in zip(group, outputs, strict=True)
        ]
        assert [job.wait(60.0) for job in jobs] == [[1], [1]]
    del store
    for output in outputs:
        printed = output.read_text()
        assert "training begins" not in printed
        assert re.search(
            rf"^(\[rank\d\]: )?flerm_core\.errors\.Unreachable: {address} "
            r"cannot be reached: .*refused$",
            printed,
            re.MULTILINE,
        ), printed
    assert not list(Path(tmp_path / "spool").glob("*.spool"))
