"""Where `flerm` is installed without the extra that a name needs, the error says which it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def ended(code: str, without: str) -> subprocess.CompletedProcess[str]:
    """A process in which the package `without` is not installed."""
    blocked = f"import sys; sys.modules[{without!r}] = None\n{code}"
    return subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, timeout=120
    )


def program(*words: str, without: str) -> subprocess.CompletedProcess[str]:
    """`flerm words…`, in such a process."""
    return ended(
        f"sys.argv = {['flerm', *words]!r}\n"
        "from flerm_client.command import main\nsys.exit(main())",
        without,
    )


@pytest.mark.parametrize(
    ("code", "package", "says"),
    [
        ("from flerm_client import FLeRM", "torch", "FLeRM needs the package torch: {}[train]'"),
        ("import flerm_client; flerm_client.FLeRM", "google", "FLeRM needs the package google"),
        (
            "from flerm_client import RegistryClient\nRegistryClient('grpc://127.0.0.1:1')",
            "grpc",
            "RegistryClient needs the package grpc: {}[client]'",
        ),
        (
            "from flerm_client import RegistryClient\nRegistryClient('file:///tmp/none')",
            "google",
            "RegistryClient needs the package google",
        ),
    ],
)
def test_a_name_whose_package_is_not_installed_says_what_to_install(code, package, says) -> None:
    run = ended(code, package)
    last = run.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: " + says.format("pip install 'flerm"))
    assert "pip install 'flerm[" in last


def test_the_program_without_its_extra_says_what_to_install() -> None:
    run = program(without="typer")
    assert run.returncode == 1
    assert run.stderr == (
        "flerm: the command line needs the package typer: pip install 'flerm[client]'\n"
    )


def test_the_program_is_the_command_line(tmp_path: Path) -> None:
    run = program("families", "--registry", tmp_path.as_uri(), without="no_such_package")
    assert (run.returncode, run.stderr) == (0, "")


def test_a_sweep_of_a_script_of_ones_own_needs_no_package_of_the_workloads(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'command = "python train.py {lr} {width}"\ninitial_lr = 0.01\nbase_seeds = 1\n'
        "[base]\nwidth = 8\n[target]\nwidth = 16\n"
    )
    run = program("sweep", str(own), "--table", "--registry", tmp_path.as_uri(), without="sklearn")
    assert (run.returncode, run.stderr) == (0, "")


def test_a_workload_whose_data_need_a_package_says_what_to_install() -> None:
    run = program("train", "resmlp", "--steps", "1", "--lr", "0.004", without="sklearn")
    assert run.returncode != 0
    assert run.stderr.splitlines()[-1] == (
        "flerm: the digits need the package scikit-learn: pip install 'flerm[workloads]'"
    )
