"""Writes docs/api.md, the Python reference, from the signatures and docstrings of the source.

Run it after a public signature or docstring was changed: `make api-reference`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"

# Heading, then (import path, public members; None: all of a class's, () none).
SECTIONS: list[tuple[str, list[tuple[str, tuple[str, ...] | None]]]] = [
    ("Training", [("flerm_client.flerm.FLeRM", None)]),
    (
        "Frameworks",
        [
            ("flerm_client.integrations.transformers.FLeRMCallback", ("add_to",)),
            ("flerm_client.integrations.lightning.FLeRMCallback", ()),
            ("flerm_client.integrations.accelerate.record", ()),
            ("flerm_client.integrations.accelerate.match", ()),
            ("flerm_client.integrations.accelerate.auto", ()),
            ("flerm_client.integrations.probe_batches.probe_of", ()),
        ],
    ),
    (
        "Asking a registry",
        [
            ("flerm_client.registry.client.RegistryClient", None),
            ("flerm_client.registry.recording_writer.RecordingWriter", None),
            ("flerm_experiments.paper_recordings.read_ptnorms", ()),
        ],
    ),
    (
        "Trajectories and matching",
        [
            ("flerm_core.trajectory.Trajectory", None),
            ("flerm_core.matching.targets.Targets", None),
            ("flerm_core.matching.match.match_targets", ()),
            ("flerm_core.tuning.best_lr.Best", None),
        ],
    ),
    (
        "Figures",
        [
            ("flerm_core.figures.trajectory_figure.fslr_figure", ()),
            ("flerm_core.figures.transfer_figure.transfer_figure", ()),
            ("flerm_core.figures.target_ratio_figure.ratio_figure", ()),
        ],
    ),
]
ERRORS = "flerm_core.errors"
INTRODUCTION = """# Python

What users import. This page is written from the source by `make api-reference`.

```py
from flerm_client import FLeRM, RegistryClient
from flerm_core import Trajectory, match_targets
```
"""

Definition = ast.ClassDef | ast.FunctionDef


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for heading, entries in SECTIONS:
        parts.append(f"## {heading}\n")
        for path, members in entries:
            module, _, name = path.rpartition(".")
            found = next(each for each in _definitions(_tree(module)) if each.name == name)
            parts += _entry(found, f"`{path}`", members)
    parts.append("## Errors\n")
    parts.append(f"All are in `{ERRORS}`, and subclasses of `FlermError`.\n")
    for each in _definitions(_tree(ERRORS)):
        if isinstance(each, ast.ClassDef):
            base = ", ".join(map(ast.unparse, each.bases))
            parts.append(f"- `{each.name}({base})`: {' '.join(_docstring(each).split())}")
    return "\n".join(parts).rstrip() + "\n"


def _tree(module: str) -> ast.Module:
    for folder in ("", "client", "server"):
        path = ROOT / folder / (module.replace(".", "/") + ".py")
        if path.exists():
            return ast.parse(path.read_text())
    raise FileNotFoundError(module)


def _definitions(tree: ast.Module | ast.ClassDef) -> list[Definition]:
    found = [each for each in tree.body if isinstance(each, ast.ClassDef | ast.FunctionDef)]
    return [each for each in found if not each.name.startswith("_")]


def _docstring(each: Definition) -> str:
    return ast.get_docstring(each) or ""


def _entry(each: Definition, title: str, members: tuple[str, ...] | None) -> list[str]:
    parts = [f"### {title}\n"]
    if isinstance(each, ast.FunctionDef):
        return [*parts, _signature(each), _markdown(_docstring(each))]
    init = [x for x in each.body if isinstance(x, ast.FunctionDef) and x.name == "__init__"]
    if init and not _docstring(init[0]).startswith("Not for users"):
        parts.append(_signature(init[0], each.name))
    parts.append(_markdown(_docstring(each)))
    for member in _definitions(each):
        if isinstance(member, ast.FunctionDef) and (members is None or member.name in members):
            parts += _member(member, each.name)
    return parts


def _member(member: ast.FunctionDef, owner: str) -> list[str]:
    decorators = {ast.unparse(each) for each in member.decorator_list}
    if "property" in decorators:
        returns = f": {ast.unparse(member.returns)}" if member.returns else ""
        text = _markdown(_docstring(member))
        return [f"#### `{owner}.{member.name}{returns}`\n", text]
    return [f"#### `{owner}.{member.name}`\n", _signature(member), _markdown(_docstring(member))]


def _signature(function: ast.FunctionDef, name: str = "") -> str:
    """The signature in a code block, one argument a line where it is long."""
    arguments = function.args
    given = [(each, "") for each in [*arguments.posonlyargs, *arguments.args]]
    defaults: list[ast.expr | None] = [None] * (len(given) - len(arguments.defaults))
    defaults += arguments.defaults
    texts = [
        _argument(each, default)
        for (each, _), default in zip(given, defaults, strict=True)
        if each.arg not in ("self", "cls")
    ]
    if arguments.vararg:
        texts.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        texts.append("*")
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    texts += [_argument(each, default) for each, default in keywords]
    if arguments.kwarg:
        texts.append(f"**{_argument(arguments.kwarg, None)}")
    name = name or function.name
    shown = function.returns is not None and function.name != "__init__"
    end = f" -> {ast.unparse(function.returns)}" if shown and function.returns else ""
    line = f"{name}({', '.join(texts)}){end}"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"    {text},\n" for text in texts) + f"){end}"
    return f"```py\n{line}\n```\n"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    annotation = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    if default is None:
        return argument.arg + annotation
    equals = " = " if annotation else "="
    return f"{argument.arg}{annotation}{equals}{ast.unparse(default)}".replace("'", '"')


def _markdown(text: str) -> str:
    """A docstring as Markdown: `name: meaning` lines become a list, examples a code block."""
    parts = [_paragraph(each) for each in re.split(r"\n\s*\n", text)]
    return "\n\n".join(parts) + "\n"


_ITEM = re.compile(r"^(`?[a-z_]\w*`?(?:, `?[a-z_]\w*`?)*)(?: \[[^\]]*\])?: ")


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if len(lines) > 1 and lines[0].endswith(":") and lines[1].startswith("    "):
        inner = [line.removeprefix("    ") for line in lines[1:]]
        if lines[0] == "Example:":
            return "\n".join(["Example:", "", "```py", *inner, "```"])
        return f"**{lines[0].removesuffix(':')}**\n\n" + _paragraph("\n".join(inner))
    # With names in backticks, the lines that continue an item need not be indented.
    marked = lines[0].startswith("`") and _ITEM.match(lines[0])
    if marked or all(_ITEM.match(line) or line.startswith("    ") for line in lines):
        items: list[str] = []
        for line in lines:
            match = _ITEM.match(line)
            if match:
                names = ", ".join(f"`{name.strip('`')}`" for name in match[1].split(", "))
                items.append("- " + names + line[len(match[1]) :])
            else:
                items.append("  " + line.strip())
        return "\n".join(items)
    return text


if __name__ == "__main__":
    PAGE.write_text(reference())
