"""The wheel and the sdist: what is in them, what is not, and what they say of themselves."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("flerm_core", "flerm_client", "flerm_experiments", "flerm_server", "flerm_proto")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(
        command, check=True, capture_output=True
    )  # the sdist, and the wheel out of the sdist
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def sources() -> set[str]:
    """Every file of the packages in the tree, by its name in the wheel."""
    folders = (
        ROOT / "flerm_core",
        ROOT / "client" / "flerm_client",
        ROOT / "client" / "flerm_experiments",
        ROOT / "server" / "flerm_server",
        ROOT / "proto" / "flerm_proto",
    )
    files = (
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    return {
        str(path.relative_to(next(f for f in folders if f in path.parents).parent))
        for path in files
    }


def test_the_wheel_holds_the_packages_whole_and_nothing_beside_them(built: dict[str, Path]) -> None:
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == sources()
    assert {f"{package}/py.typed" for package in PACKAGES} <= packed


def test_the_sdist_builds_the_same_wheel_and_has_the_licence(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "PKG-INFO"} <= names
    tops = {name.split("/")[0] for name in names if "/" in name}
    assert tops == {"flerm_core", "client", "server", "proto", "examples"}


def test_what_it_says_of_itself(built: dict[str, Path]) -> None:
    wheel = zipfile.ZipFile(built["wheel"])
    [info] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_bytes(wheel.read(info))
    assert metadata["Name"] == "flerm"
    assert f"\n## {metadata['Version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    extras = set(metadata.get_all("Provides-Extra"))
    assert {
        "client",
        "train",
        "server",
        "workloads",
        "transformers",
        "lightning",
        "accelerate",
        "plot",
        "postgres",
    } <= extras
    unconditional = [each for each in metadata.get_all("Requires-Dist") if "extra ==" not in each]
    assert unconditional == ["numpy>=1.26"]
