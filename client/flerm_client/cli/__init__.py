"""The `flerm` command.

Each command is a function in a module that is imported only for that command: a listing must not
wait for torch. Other packages add commands through entry points of the group `flerm.commands`. An
entry point's name is the command's name, its value is a function or a typer app, and its extra is
what to install where a package is missing.

Exit codes: 0 success; 1 an internal error, or what the command's help says; 2 wrong usage or input;
3 not found; 4 the registry cannot be reached; 5 refused.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flerm_client._extras import missing_words

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

# click's UsageError. Versions of typer differ in where they import it from.
_USAGE_ERROR: Any = typer.BadParameter.__base__

_COMMANDS = {
    "families": "flerm_client.cli.families",
    "recordings": "flerm_client.cli.recordings",
    "show": "flerm_client.cli.show",
    "best": "flerm_client.cli.best",
    "targets": "flerm_client.cli.targets",
    "check": "flerm_client.cli.check",
    "export": "flerm_client.cli.export",
    "import": "flerm_client.cli.import_",
    "plot": "flerm_client.cli.plot",
    "tag": "flerm_client.cli.edit",
    "rename": "flerm_client.cli.edit",
    "delete": "flerm_client.cli.edit",
    "sync": "flerm_client.cli.sync",
    "doctor": "flerm_client.cli.doctor",
}

# Commands that a person waits for. They end before uncollected garbage uses much memory.
_SHORT = {"families", "recordings", "show", "best", "targets"}

# The extra that a command needs, where [client] is not enough.
_EXTRAS = {"plot": "plot"}


def _root() -> None:
    """Function-space learning rates: recorded on a small model, used to train a big one."""


def build(name: str | None = None) -> typer.Typer:
    """The app with the command `name` alone.

    Where `name` is None or unknown, the app has all commands: help and completion list them.
    """
    app = typer.Typer(
        name="flerm", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    app.callback()(_root)
    if name in _COMMANDS:
        _add(app, name, _own_command(name))
        return app
    if name is not None and (found := _added_commands(name)):
        _add(app, name, next(iter(found)).load())
        return app
    for each in _COMMANDS:
        _add(app, each, _own_command(each))
    for entry in sorted(_added_commands(), key=lambda each: each.name):
        _add(app, entry.name, entry.load())
    return app


def _add(app: typer.Typer, name: str, command: Any) -> None:
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)


def _own_command(name: str) -> Any:
    return getattr(import_module(_COMMANDS[name]), f"{name}_" if iskeyword(name) else name)


def _added_commands(name: str = "") -> EntryPoints:
    # The import is slow, so it is not made for a command in _COMMANDS.
    from importlib.metadata import entry_points

    found = entry_points(group="flerm.commands")
    return found.select(name=name) if name else found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. An error becomes one line on standard error.

    arguments: the words after `flerm`; None for those of this process.
    """
    from flerm_core.errors import FlermError

    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by who started the process, as some daemons are
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, TextIOWrapper):
        # A character that the terminal's encoding does not have becomes a question mark.
        sys.stdout.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = given[0] if given else None
    try:
        with _without_garbage_collection(asked in _SHORT):
            code = build(asked)(given, prog_name="flerm", standalone_mode=False)
            sys.stdout.flush()  # a full disk must fail here, not at exit
    except FlermError as error:
        return _fail(str(error), error.exit_code)
    except _USAGE_ERROR as error:
        message = error.format_message()
        if error.ctx is not None and message == error.ctx.get_help():
            # A command without its arguments: the help is meant for people, as it stands.
            sys.stderr.write(f"{message}\n")
            return 2
        command = error.ctx.command_path if error.ctx is not None else "flerm"
        return _fail(f"{message} (see {command} --help)" if message else "", 2)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except ModuleNotFoundError as missing:
        added = next(iter(_added_commands(asked or "")), None)
        extra = added.extras[0] if added is not None else _EXTRAS.get(asked or "", "client")
        return _fail(missing_words(f"flerm {asked}", missing, extra), 1)
    except BrokenPipeError:  # `flerm recordings | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, a missing permission
        named = f"{error.filename}: " if error.filename else ""
        return _fail(f"{named}{error.strerror or error}", 1)
    return int(code or 0)


@contextmanager
def _without_garbage_collection(wanted: bool) -> Iterator[None]:
    """Turns the garbage collector off inside the `with` block, if `wanted`.

    The import of modules creates no garbage, and the search for garbage takes a sixth of the time
    of a command that lists.
    """
    wanted = wanted and gc.isenabled()
    if wanted:
        gc.disable()
    try:
        yield
    finally:
        if wanted:
            gc.enable()


def _fail(message: str, code: int) -> int:
    from flerm_core.errors import printable

    if message:
        sys.stderr.write(f"flerm: {printable(' '.join(message.split()))}\n")
    return code
