"""Runs every `python` and `console` block of the documentation and the README as a test.

It also keeps imported modules out of garbage collections, and takes the settings of whoever runs
the tests out of the environment: their registry is not for tests.

A page's blocks share one namespace and run in order, in a folder of their own. The default ports
are replaced by free ones. A page that speaks to a registry without starting one finds a running
registry with a few recordings. In a console block the lines that begin with `$` are commands, and
`&` at the end leaves a command running. The output is not compared, because figures differ between
machines.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres import free_port
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parent
GRPC, HTTP = "127.0.0.1:50051", "127.0.0.1:8080"

for name in [each for each in os.environ if each.startswith("FLERM_")]:
    if not name.startswith("FLERM_TEST_"):
        del os.environ[name]


class Page(Document):
    """A page with ports of its own."""

    @classmethod
    def parse(cls, path: str, *parsers: Any, encoding: str = "utf-8") -> Document:
        """As `Document.parse`, with the ports replaced."""
        grpc, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
        text = Path(path).read_text(encoding).replace(GRPC, grpc).replace(HTTP, http)
        page = cls(text, path)
        page.namespace |= {"GRPC_ADDRESS": grpc, "HTTP_ADDRESS": http}
        for parser in parsers:
            for region in parser(page):
                page.add(region)
        return page


def run_console(example: Example) -> None:
    """Runs the commands of a console block. Each must end with exit code 0."""
    commands = [line[2:] for line in str(example.parsed).splitlines() if line.startswith("$ ")]
    assert commands, "a console block without a line that begins with '$ '"
    for command in commands:
        if command.endswith("&"):
            started = subprocess.Popen(
                command.removesuffix("&"), shell=True, start_new_session=True
            )
            example.namespace["STARTED"].append(started)
            wait_for(example.namespace["HTTP_ADDRESS"])
        else:
            ran = subprocess.run(command, shell=True, capture_output=True, text=True)
            assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"


def wait_for(http: str) -> None:
    """Waits until the registry that a page started answers."""
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://{http}/readyz", timeout=5):
                return
        except OSError:
            assert time.monotonic() < end, f"no registry answers on {http}"
            time.sleep(0.2)


def serve(namespace: dict[str, Any]) -> None:
    """Starts a registry with the recordings that pages speak of, on the page's ports.

    An invisible block calls it as `registry_runs()`.
    """
    command = [
        shutil.which("flerm") or "flerm",
        "serve",
        "--db",
        "sqlite:///given.db",
        "--grpc",
        namespace["GRPC_ADDRESS"],
    ]
    command += ["--http", namespace["HTTP_ADDRESS"]]
    namespace["STARTED"].append(subprocess.Popen(command, start_new_session=True))
    wait_for(namespace["HTTP_ADDRESS"])
    from flerm_client import RegistryClient

    with RegistryClient(f"grpc://{namespace['GRPC_ADDRESS']}") as registry:
        for at, lr in enumerate((2e-3, 4e-3, 8e-3)):
            given = {"optimizer": "Adam", "seed": at}
            given |= {"recording_id": "6a1f0c1e-8a57-4b6e-9f0e-0c5d3c1c9a11"} if at == 0 else {}
            recording = registry.start_recording(
                "resmlp", lr, ["input.weight", "readout.weight"], [(8, 4), (2, 8)], **given
            )
            registry.append(recording, [1, 101], [[3.0, 1.0], [2.0, 0.5]], losses=[1.0, 0.5])
            registry.finish(recording, final_loss=[0.5, 0.4, 0.6][at], final_step=200)


def begin(namespace: dict[str, Any]) -> None:
    """Makes the page's own folder and environment."""
    folder = tempfile.mkdtemp(prefix="flerm-docs-")
    namespace |= {"STARTED": [], "FOLDER": folder, "BEFORE": (Path.cwd(), dict(os.environ))}
    namespace["registry_runs"] = lambda: serve(namespace)
    scripts = Path(sys.executable).parent
    os.environ |= {
        "FLERM_SPOOL": f"{folder}/spool",
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "HOME": folder,
    }
    os.chdir(folder)


def end(namespace: dict[str, Any]) -> None:
    """Ends the processes that the page started, and removes its folder."""
    for process in namespace["STARTED"]:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    folder, environment = namespace["BEFORE"]
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    shutil.rmtree(namespace["FOLDER"])


# Pages that start several trainings or import several frameworks.
LONG = ("README.md", "quickstart.md", "frameworks.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Blocks of long pages run with the long tests: a page runs whole or not at all."""
    for item in items:
        if item.path.name in LONG:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(300))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Takes all that is imported out of garbage collections.

    A million objects of torch and transformers are looked at in each full collection. Frameworks
    ask for one at the end of each training, which took half of the time of such a test.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


PARSERS = [
    PythonCodeBlockParser(),
    CodeBlockParser(language="console", evaluator=run_console),
    SkipParser(),
]

pytest_collect_file = Sybil(
    parsers=PARSERS,
    path=str(ROOT),
    patterns=["README.md", "docs/*.md"],
    setup=begin,
    teardown=end,
    document_types={".md": Page},
).pytest()
