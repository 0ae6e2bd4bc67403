"""The command line and the environment of a child process that runs a module of this package."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from importlib import util
from pathlib import Path


def child_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` in this interpreter.

    `-P` keeps the working directory off the import path: a user's `grpc.py` there would be imported
    instead of the package grpc.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(token: str | None = None) -> dict[str, str]:
    """This process's environment, in which a child finds our packages.

    `token` is passed on as FLERM_TOKEN, where `ps` does not show it.
    """
    environment = dict(os.environ)
    inherited = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [*inherited, *(root for root in _package_roots() if root not in inherited)]
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    if token is not None:
        environment["FLERM_TOKEN"] = token
    return environment


def _package_roots() -> list[str]:
    """The folders of our packages that a new interpreter would not search by itself."""
    searched = {
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        site.getusersitepackages(),
        *site.getsitepackages(),
    }
    roots = []
    for package in ("flerm_client", "flerm_proto", "flerm_core"):
        spec = util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            root = str(Path(location).resolve().parent)
            if root not in searched and root not in roots:
                roots.append(root)
    return roots
