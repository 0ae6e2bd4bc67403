"""`make screenshots`: the README's pictures, from the recordings behind docs/results.md.

It imports the family of prenorm decoders into an empty registry, and takes the pages of the family
and of one matched recording, in both themes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))

from browser import chromium, wait_until_drawn  # noqa: E402

from flerm_client import RegistryClient  # noqa: E402

RECORDINGS = HERE.parent / "figures" / "results" / "recordings.tar.xz"
FAMILY, RATE, WIDTH = "decoder", 2.0**-5, 8


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
    """Imports, looks, writes family-light.png, family-dark.png, recording-light.png and
    recording-dark.png beside this file."""
    with (
        tempfile.TemporaryDirectory(prefix="flerm-screenshots-") as name,
        registry(Path(name)) as (grpc, http),
    ):
        with tarfile.open(RECORDINGS) as archive:
            archive.extractall(name, filter="data")
        flerm = [sys.executable, "-m", "flerm_client.cli"]
        subprocess.run([*flerm, "import", str(Path(name) / FAMILY), "--registry", grpc], check=True)
        with RegistryClient(grpc) as client:
            matched = next(
                each.spec
                for each in client.recordings(FAMILY, variant="matched", optimizer="Adam")
                if each.spec.lr == RATE and each.spec.config["width"] == WIDTH
            )
        pages = {
            "family": f"/families/{FAMILY}?scale=width",
            "recording": f"/recordings/{matched.id}",
        }
        with chromium() as browser:
            for (page_name, path), theme in product(pages.items(), ("light", "dark")):
                page = browser.new_page(color_scheme=theme, viewport={"width": 1280, "height": 960})
                page.goto(http + path)
                wait_until_drawn(page)
                page.screenshot(path=HERE / f"{page_name}-{theme}.png")
                page.close()


if __name__ == "__main__":
    main()
