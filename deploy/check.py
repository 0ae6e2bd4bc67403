"""`make deploy-check`: everything in deploy/ by the linter or the schema of its own kind.

Runs in an environment of its own (deploy/check-requirements.txt). Prints what is wrong; ends with 1
if anything is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes.client.models
import promql_parser
import yaml
from kubeflow.training import models
from kubernetes.client import ApiClient

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
COMMANDS = (
    ("hadolint", "container/Containerfile"),
    ("shellcheck", "container/install.sh", "tls/private-ca.sh", "jobs/train.slurm"),
    ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "container/compose.yaml"),
    ("kubernetes-validate", "--strict", "kubernetes/registry.yaml"),
)


def by_tools() -> list[str]:
    """What the linters say."""
    wrong = []
    for name, *arguments in COMMANDS:
        ended = subprocess.run(
            [BIN / name, *arguments], cwd=HERE, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            wrong.append(f"{name}: {ended.stdout}{ended.stderr}")
    parsed = subprocess.run(
        [BIN / "crossplane", "parse", "--strict", "container/nginx.conf"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=True,
    )
    return [*wrong, *(f"nginx: {error}" for error in json.loads(parsed.stdout)["errors"])]


def expressions() -> list[str]:
    """What Prometheus would not take of the alerts' and the dashboard's expressions."""
    alerts = yaml.safe_load((HERE / "observability" / "alerts.yml").read_text())
    asked = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    panels = json.loads((HERE / "observability" / "grafana.json").read_text())["panels"]
    asked += [
        target["expr"].replace("$__rate_interval", "5m")
        for panel in panels
        for target in panel["targets"]
    ]
    wrong = []
    for each in asked:
        try:
            promql_parser.parse(each)
        except ValueError as error:
            wrong.append(f"{each}: {error}")
    return wrong


def pytorchjob() -> list[str]:
    """Fields of the PyTorchJob that Kubeflow's own models do not know."""
    for name, kind in vars(models).items():  # where the Kubernetes client looks for them
        if isinstance(kind, type) and not hasattr(kubernetes.client.models, name):
            setattr(kubernetes.client.models, name, kind)
    given = yaml.safe_load((HERE / "jobs" / "pytorchjob.yaml").read_text())
    api = ApiClient()
    known = api.sanitize_for_serialization(
        api.deserialize(SimpleNamespace(data=json.dumps(given)), "KubeflowOrgV1PyTorchJob")
    )
    return [f"pytorchjob.yaml: {path} is no field" for path in lost(given, known)]


def lost(given: Any, known: Any, path: str = "") -> list[str]:
    """The paths of what is in `given` and not in `known`."""
    if isinstance(given, dict):
        return [
            each
            for key in given
            for each in (
                lost(given[key], known[key], f"{path}/{key}")
                if key in (known or {})
                else [f"{path}/{key}"]
            )
        ]
    if isinstance(given, list):
        return [
            each for mine, its in zip(given, known, strict=True) for each in lost(mine, its, path)
        ]
    return []


if __name__ == "__main__":
    found = [*by_tools(), *expressions(), *pytorchjob()]
    sys.stdout.write("".join(f"{each}\n" for each in found) or "deploy/: nothing wrong\n")
    sys.exit(bool(found))
