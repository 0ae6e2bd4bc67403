"""The documentation as a site and as a map of the code.

The site builds without a warning, every link inside it leads somewhere, it fetches no picture or
script, and every file and function that a page names exists.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*SITE, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
# A path may be shortened to begin at one of these, where import names begin.
SOURCE_ROOTS = (
    "",
    "deploy",
    "client",
    "server",
    "proto",
    "client/flerm_client",
    "server/flerm_server",
)
FILE = re.compile(
    r"[\w.-]+(?:/[\w.*-]+)*\.(?:py|toml|proto|yml|yaml|md|txt|png|sql|xz)|(?:[\w.-]+/)+"
)


def spans(page: Path) -> list[str]:
    """What a page puts between backticks on one line, outside of its blocks."""
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


@cache
def definitions(path: Path) -> frozenset[str]:
    """Functions and classes of a module, and methods as `Class.method`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name")}
            found |= {
                f"{node.name}.{each.target.id}"
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            }
    return frozenset(found)


def in_tree(path: str) -> Path | None:
    """The file or folder of the repository that `path` names; None where there is none."""
    candidates = (ROOT / root / path for root in SOURCE_ROOTS)
    return next((each for each in candidates if each.exists()), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_fence_says_what_it_is(page: Path) -> None:
    """Only `python` and `console` run as tests. `py` holds signatures."""
    fences = re.findall(r"^ *```(\S*)$", page.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "console", "py", "text", "json", "proto", "toml"}
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    named = {each for each in spans(page) if FILE.fullmatch(each) and "/" in each}
    made_by_users = {"quarantine/"}
    assert sorted(each for each in named - made_by_users if in_tree(each) is None) == []


def test_every_file_and_function_of_the_architecture_exists() -> None:
    """In the map of the code every function stands behind the file that defines it."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    wrong = []
    for line in text.splitlines():
        file = None
        for name in re.findall(r"`([^`]+)`", line):
            if name.endswith(".py"):
                file = in_tree(name)
                if file is None:
                    wrong.append(name)
            elif (
                file is not None
                and name.endswith("()")
                and name.removesuffix("()") not in definitions(file)
            ):
                wrong.append(f"{file.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_every_name_of_the_glossary_exists() -> None:
    """The column `in the code` holds names of the source, options, or paths."""
    source = "\n".join(
        path.read_text()
        for root in ("flerm_core", "proto/flerm_proto", "client", "server/flerm_server")
        for path in sorted((ROOT / root).rglob("*.py"))
    )
    rows = re.findall(r"^\| [^|]+ \| ([^|]*) \|", (ROOT / "docs/glossary.md").read_text(), re.M)
    names = [name for cell in rows for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) > 40
    wrong = []
    for name in names:
        if FILE.fullmatch(name) or "/" in name:
            known = in_tree(name) is not None or name.endswith("/") or name in source
        else:
            word = re.sub(r"\(\)$|=.*$", "", name).split(".")[-1].split()[-1]
            known = re.search(rf"\b{re.escape(word.strip('[]-'))}\b", source) is not None
        if not known:
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"],
    ids=lambda path: path.name,
)
def test_the_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    links = [
        link.split("#")[0]
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        if "://" not in link
    ]
    assert [link for link in links if link and not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"),
        *("--site-dir", str(tmp_path)),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]+)"',
            page.read_text(),
        )
        assert fetched == [], page
