"""`flerm plot`: the pages' figures as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flerm_client import RegistryClient
from flerm_client.cli import main
from tests.conftest import RegistryProcess

NAMES = ["layers.0.weight", "layers.1.weight"]


@pytest.fixture(scope="module")
def recorded(registry: RegistryProcess) -> tuple[str, str]:
    """A registry's address and a recording of the family `plotted`."""
    with RegistryClient(registry.address) as client:
        found = client.start_recording("plotted", 4e-3, NAMES, [(4, 4), (4, 4)])
        client.append(found, [1, 101], np.array([[4, 2], [2, 1]], np.float32), losses=[2.0, 1.0])
        client.finish(found)
    return registry.address, found


def test_a_recording_as_plotlys_own_format_and_as_a_page(recorded: tuple[str, str], tmp_path: Path):
    address, recording = recorded
    assert (
        main(
            [
                "plot",
                recording,
                "--out",
                str(tmp_path / "a.json"),
                "-r",
                address,
                "--pattern",
                "layers.1.*",
            ]
        )
        == 0
    )
    figure = json.loads((tmp_path / "a.json").read_text())
    assert next(each for each in figure["data"] if each.get("name") == NAMES[1])["y"] == [2.0, 1.0]
    assert main(["plot", recording, "--out", str(tmp_path / "a.html"), "-r", address]) == 0
    page = (tmp_path / "a.html").read_text()
    assert "plotly.js v" in page
    assert 'src="https://' not in page


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG\r\n"), ("a.svg", b"<svg")])
def test_a_family_as_a_picture(recorded: tuple[str, str], tmp_path: Path, name: str, begins: bytes):
    assert main(["plot", "plotted", "--out", str(tmp_path / name), "-r", recorded[0]]) == 0
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (
            ["plotted", "--out", "a.pdf"],
            2,
            "--out: 'a.pdf' has an unknown ending; allowed are .html, .png, .svg, .json",
        ),
        (["none-such", "--out", "a.json"], 3, "none-such"),
        (["plotted", "--out", "a.json", "--pattern", "x"], 2, "'plotted' is a family"),
        (["plotted", "--out", "/no/such/folder/a.json"], 2, "cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    recorded: tuple[str, str], capsys, arguments: list[str], code: int, sentence: str
):
    assert main(["plot", *arguments, "-r", recorded[0]]) == code
    assert sentence in capsys.readouterr().err
