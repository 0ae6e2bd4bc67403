"""What the container file does, done here: its installation, its commands, its probe."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml
from waiting import until

from flerm_server.server import STOP_SECONDS

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy" / "container"
FILE = (CONTAINER / "Containerfile").read_text()


def test_what_it_copies_is_there_and_not_ignored():
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", FILE, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    kept = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert set(copied) == set(kept)
    assert all((ROOT / each).exists() for each in copied)


def test_it_does_not_run_as_root():
    stages = FILE.split("\nFROM ")
    assert "\nUSER 10001\n" in stages[-1]


def test_compose_runs_two_servers_that_drain_in_time():
    services = yaml.safe_load((CONTAINER / "compose.yaml").read_text())["services"]
    for name in ("registry-1", "registry-2"):
        command = services[name]["command"]
        drain = float(command[command.index("--drain") + 1])
        grace = float(services[name]["stop_grace_period"].removesuffix("s"))
        assert drain + 2 * STOP_SECONDS < grace
        assert f"{name}:50051" in (CONTAINER / "nginx.conf").read_text()


def test_kubernetes_waits_until_a_server_has_ended_itself():
    parts = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "registry.yaml").read_text())
    pod = next(each for each in parts if each["kind"] == "Deployment")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    (drain,) = (each for each in server["args"] if each.startswith("--drain="))
    pause = float(server["lifecycle"]["preStop"]["exec"]["command"][1])
    longest = pause + float(drain.removeprefix("--drain=")) + 2 * STOP_SECONDS
    assert longest < pod["terminationGracePeriodSeconds"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_steps_of_the_image_make_a_server_without_torch(tmp_path: Path):
    home = tmp_path / "opt"
    subprocess.run(
        ["sh", CONTAINER / "install.sh", ROOT, home],
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    environment = {
        "PATH": f"{home}/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "FLERM_DB": f"sqlite:///{tmp_path}/flerm.db",
    }
    run = {"env": environment, "cwd": tmp_path, "text": True, "check": True, "capture_output": True}
    listed = subprocess.run(
        [home / "bin" / "python", "-m", "pip", "list", "--format=json"], **run
    ).stdout
    packages = {each["name"].lower() for each in json.loads(listed)}
    assert {"flerm", "grpcio", "psycopg", "opentelemetry-sdk"} <= packages
    assert not {"torch", "pytest", "pandas", "scikit-learn"} & packages
    flerm = str(home / "bin" / "flerm")
    subprocess.run([flerm, "db", "upgrade"], **run)
    token = subprocess.run(
        [flerm, "token", "create", "root", "--scope", "admin"], **run
    ).stdout.strip()
    command = json.loads(re.search(r"^CMD (.*)$", FILE, re.MULTILINE)[1])
    assert (
        shlex.join(command)
        == "serve --grpc 0.0.0.0:50051 --http 0.0.0.0:8080 --tls-terminated-upstream"
    )
    local = [
        each.replace("0.0.0.0:50051", "127.0.0.1:0").replace("0.0.0.0:8080", "127.0.0.1:0")
        for each in command
    ]
    announce = tmp_path / "announce.json"
    with subprocess.Popen(
        [flerm, *local, "--announce", str(announce)], env=environment, cwd=tmp_path
    ) as server:
        try:
            until(announce.exists, "the server did not start")
            http = f"http://{json.loads(announce.read_text())['http']}"
            with urllib.request.urlopen(f"{http}/readyz", timeout=20) as answer:
                assert answer.status == 200
            request = urllib.request.Request(
                f"{http}/api/v1/families", headers={"Authorization": f"Bearer {token}"}
            )
            with urllib.request.urlopen(request, timeout=20) as answer:
                assert json.load(answer)["families"] == []
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
