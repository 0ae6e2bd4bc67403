"""`make screenshots`: the README's pictures, from runs that are trained for them.

It trains a base model at five learning rates and two seeds and a matched model four times as wide
at the same rates (about two minutes on 2 cores). Then it takes the family's page and one
recording's page in both themes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))

from browser import chromium, wait_until_drawn  # noqa: E402

from flerm_client import RegistryClient  # noqa: E402
from flerm_experiments.workloads import Scale  # noqa: E402
from flerm_experiments.workloads.train_loop import Job, train  # noqa: E402

FAMILY = "resmlp"
RATES, SEEDS, WIDTH, STEPS, EVERY = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), (0, 1), 4, 200, 10


@contextmanager
def registry(folder: Path) -> Iterator[tuple[str, str]]:
    """Starts a server on free ports; yields its gRPC and HTTP addresses."""
    command = [
        sys.executable,
        "-m",
        "flerm_server.cli",
        "serve",
        "--db",
        f"sqlite:///{folder}/flerm.db",
    ]
    with subprocess.Popen(
        [*command, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            _, grpc, http = (server.stdout.readline() if server.stdout else "").split()
            yield grpc, http.rstrip("/")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def main() -> None:
    """Trains, looks, writes family-light.png, family-dark.png, recording-light.png and
    recording-dark.png beside this file."""
    with (
        tempfile.TemporaryDirectory(prefix="flerm-screenshots-") as name,
        registry(Path(name)) as (grpc, http),
    ):
        common = {"workload": "resmlp", "steps": STEPS, "family": FAMILY, "registry": grpc}
        with RegistryClient(grpc) as client:
            client.register_family(
                FAMILY, description=f"Residual MLPs on scikit-learn's digits, {STEPS} steps, Adam"
            )
        for rate, seed in product(RATES, SEEDS):
            train(Job(**common, lr=rate, seed=seed, mode="record", every=EVERY))
        for rate in RATES:
            train(Job(**common, lr=rate, scale=Scale(width=WIDTH), mode="match"))
        with RegistryClient(grpc) as client:
            base = next(
                each
                for each in client.recordings(FAMILY)
                if each.spec.role == "base" and each.spec.lr == RATES[2]
            )
        pages = {"family": f"/families/{FAMILY}", "recording": f"/recordings/{base.spec.id}"}
        with chromium() as browser:
            for (page_name, path), theme in product(pages.items(), ("light", "dark")):
                page = browser.new_page(color_scheme=theme, viewport={"width": 1280, "height": 960})
                page.goto(http + path)
                wait_until_drawn(page)
                page.screenshot(path=HERE / f"{page_name}-{theme}.png")
                page.close()


if __name__ == "__main__":
    main()
