"""The documentation as a site: it builds without a warning, every link inside it leads somewhere, and no picture or
script is fetched."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name
)
def test_every_fence_says_what_it_is(page: Path) -> None:
    """Only `python` and `console` run as tests; what cannot run is indented, or `text`, `proto`, `toml`."""
    fences = re.findall(r"^ *```(\S*)$", page.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "console", "text", "proto", "toml"}
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"],
    ids=lambda path: path.name,
)
def test_the_links_of_what_is_outside_the_site_lead_somewhere(page: Path) -> None:
    links = [
        link.split("#")[0]
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        if "://" not in link
    ]
    assert [link for link in links if link and not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]+)"',
            page.read_text(),
        )
        assert fetched == [], page
