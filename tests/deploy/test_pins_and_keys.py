"""What deployments fetch is pinned, and keys and spools are where only their owner reaches them."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DIGEST = "sha256:" + "0123456789abcdef" * 4
PIN = re.compile(r"^(\S+?)(\[\S+\])?==(\S+)")


def versions(file: Path) -> dict[str, str]:
    """The versions that a requirements file asks for."""
    found = (PIN.match(line) for line in file.read_text().splitlines())
    return {each[1].lower().replace("_", "-"): each[3] for each in found if each}


@pytest.mark.parametrize("name", ["requirements.txt", "build-requirements.txt"])
def test_the_image_has_the_versions_that_were_tested(name: str):
    tested = versions(ROOT / "constraints.txt")
    asked = versions(DEPLOY / "container" / name)
    assert len(asked) > 5
    assert {each: asked[each] for each in asked if each in tested} == {
        each: tested[each] for each in asked if each in tested
    }
    # What is in the image alone is of another system (Windows, old Pythons), or of its own tools.
    assert set(asked) - set(tested) <= {
        "backports-zstd", "colorama", "async-timeout", "exceptiongroup", "importlib-metadata",
        "psycopg-binary", "psycopg-pool", "tzdata", "zipp", "tomli",
    }  # fmt: skip


def fake(folder: Path, name: str, script: str) -> None:
    """A command of that name, first in PATH."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(("answer", "code"), [(DIGEST, 0), ("", 1), ("error: denied", 1)])
def test_images_are_pinned_to_digests_or_not_built(tmp_path: Path, answer: str, code: int):
    container = tmp_path / "container"
    container.mkdir()
    script = container / "pin-images.sh"
    script.write_text((DEPLOY / "container" / "pin-images.sh").read_text())
    fake(tmp_path / "bin", "docker", f"echo '{answer}'")
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    ended = subprocess.run(["sh", script], env={"PATH": path}, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    if code:
        assert "is no digest" in ended.stderr and not (container / ".env").exists()
    else:
        names = [line.partition("=")[0] for line in (container / ".env").read_text().splitlines()]
        used = "".join(
            (DEPLOY / "container" / each).read_text() for each in ("Containerfile", "compose.yaml")
        )
        assert all(f"@${{{name}" in used for name in names)


def test_the_key_of_the_authority_is_not_beside_the_servers(tmp_path: Path):
    folder, authority = tmp_path / "tls", tmp_path / "tls.authority"
    command = ["bash", DEPLOY / "tls" / "private-ca.sh", folder, "localhost"]
    subprocess.run(command, check=True, capture_output=True)
    assert {each.name for each in folder.iterdir()} == {"ca.pem", "server.pem", "server.key"}
    assert {each.name for each in authority.iterdir()} == {"ca.key", "ca.srl"}
    modes = {
        each.name: stat.S_IMODE(each.stat().st_mode)
        for each in (authority, *authority.iterdir(), folder / "server.key")
    }
    assert modes == {"tls.authority": 0o700, "ca.key": 0o600, "ca.srl": 0o600, "server.key": 0o600}
    # A folder of an earlier version keeps its authority, whose key moves out.
    before = (folder / "ca.pem").read_bytes()
    for name in ("ca.key", "ca.srl"):
        (authority / name).rename(folder / name)
    subprocess.run(command, check=True, capture_output=True)
    assert not (folder / "ca.key").exists() and (authority / "ca.key").exists()
    assert (folder / "ca.pem").read_bytes() == before
    subprocess.run(
        ["openssl", "verify", "-CAfile", folder / "ca.pem", folder / "server.pem"],
        check=True,
        capture_output=True,
    )


def test_the_certificate_has_names_as_names_and_addresses_as_addresses(tmp_path: Path):
    # "face.de" has the digits of hexadecimal numbers only.
    names = ["registry.example", "face.de", "cafe", "10.0.0.7", "fd00::7", "*.lab.example"]
    command = ["bash", DEPLOY / "tls" / "private-ca.sh", tmp_path / "tls", *names]
    subprocess.run(command, check=True, capture_output=True)
    show = ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in"]
    shown = subprocess.run([*show, tmp_path / "tls" / "server.pem"], capture_output=True, text=True)
    found = [each.strip() for each in shown.stdout.splitlines()[1].split(",")]
    assert found == [
        "DNS:registry.example",
        "DNS:face.de",
        "DNS:cafe",
        "IP Address:10.0.0.7",
        "IP Address:FD00:0:0:0:0:0:0:7",
        "DNS:*.lab.example",
    ]


def test_a_slurm_job_has_a_spool_that_nobody_could_make_before(tmp_path: Path):
    for name, script in (
        ("scontrol", "echo node1"),
        ("flerm", "stat -c '%a %u' \"$FLERM_SPOOL\""),
        ("srun", "true"),
    ):
        fake(tmp_path / "bin", name, script)
    environment = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "FLERM_REGISTRY": "grpcs://registry.example:50051",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_NNODES": "1",
    }
    names = set()
    for _ in range(2):
        command = ["bash", DEPLOY / "jobs" / "train.slurm"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        named, *modes = ended.stdout.splitlines()
        names.add(named)
        assert modes == [f"700 {os.geteuid()}"] * 2 and "4711" not in named
    assert len(names) == 2
