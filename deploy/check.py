"""`make deploy-check`: checks each file in deploy/ by the linter or the schema of its kind.

It runs in an environment of its own (deploy/check-requirements.txt), prints what is wrong, and ends
with exit code 1 if anything is.
"""

from __future__ import annotations

import json
import re
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
PINNED = re.compile(r"@(sha256:[0-9a-f]{64}|\$\{[A-Z]+_DIGEST(:\?[^}]*)?\})$")
HASHED = re.compile(r"\S+==\S+( ;[^\\]*)?(\s+--hash=sha256:[0-9a-f]{64})+\s*$")
BIN = Path(sys.executable).parent
COMMANDS = (
    ("hadolint", "container/Containerfile"),
    (
        "shellcheck",
        "container/install.sh",
        "container/pin-images.sh",
        "tls/private-ca.sh",
        "jobs/train.slurm",
    ),
    ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "container/compose.yaml"),
    ("kubernetes-validate", "--strict", "kubernetes/registry.yaml"),
)


def linter_errors() -> list[str]:
    """The linters' output, for each linter that fails."""
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


def pin_errors() -> list[str]:
    """What the container files would fetch without a digest or a hash."""
    container = HERE / "container"
    images = re.findall(r"^FROM (\S+)", (container / "Containerfile").read_text(), re.MULTILINE)
    services = yaml.safe_load((container / "compose.yaml").read_text())["services"].values()
    images += [each["image"] for each in services if "build" not in each]
    wrong = [f"image {each}: no digest" for each in images if not PINNED.search(each)]
    for name in ("requirements.txt", "build-requirements.txt"):
        text = (container / name).read_text().replace("\\\n", " ")
        wrong += [
            f"{name}: {line}"
            for line in text.splitlines()
            if line and not line.startswith("#") and not HASHED.match(line)
        ]
    return wrong


def network_errors() -> list[str]:
    """The pods that no network policy limits, and the ports of the proxy without a limit."""
    documents = list(yaml.safe_load_all((HERE / "kubernetes" / "registry.yaml").read_text()))
    limited = [
        each["spec"]["podSelector"]["matchLabels"]
        for each in documents
        if each["kind"] == "NetworkPolicy"
        and {"Ingress", "Egress"} <= set(each["spec"]["policyTypes"])
    ]
    pods = [each["spec"]["template"] for each in documents if each["kind"] in ("Job", "Deployment")]
    names = [each["metadata"]["labels"] for each in pods]
    wrong = [f"{each}: no network policy" for each in names if each not in limited]
    servers = (HERE / "container" / "nginx.conf").read_text().split("\n  server {\n")[1:]
    return [
        *wrong,
        *(f"nginx: no limit_conn in {each}" for each in servers if "limit_conn " not in each),
    ]


def expression_errors() -> list[str]:
    """The expressions of the alerts and the dashboard that Prometheus would refuse."""
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


def pytorchjob_errors() -> list[str]:
    """The fields of the PyTorchJob that Kubeflow's own models do not have."""
    for name, kind in vars(models).items():  # the Kubernetes client looks there
        if isinstance(kind, type) and not hasattr(kubernetes.client.models, name):
            setattr(kubernetes.client.models, name, kind)
    given = yaml.safe_load((HERE / "jobs" / "pytorchjob.yaml").read_text())
    api = ApiClient()
    known = api.sanitize_for_serialization(
        api.deserialize(SimpleNamespace(data=json.dumps(given)), "KubeflowOrgV1PyTorchJob")
    )
    return [f"pytorchjob.yaml: {path} is no field" for path in unknown_fields(given, known)]


def unknown_fields(given: Any, known: Any, path: str = "") -> list[str]:
    """The paths of the fields that are in `given` and not in `known`."""
    if isinstance(given, dict):
        return [
            each
            for key in given
            for each in (
                unknown_fields(given[key], known[key], f"{path}/{key}")
                if key in (known or {})
                else [f"{path}/{key}"]
            )
        ]
    if isinstance(given, list):
        return [
            each
            for mine, its in zip(given, known, strict=True)
            for each in unknown_fields(mine, its, path)
        ]
    return []


if __name__ == "__main__":
    found = [
        *linter_errors(),
        *pin_errors(),
        *network_errors(),
        *expression_errors(),
        *pytorchjob_errors(),
    ]
    sys.stdout.write("".join(f"{each}\n" for each in found) or "deploy/: nothing wrong\n")
    sys.exit(bool(found))
