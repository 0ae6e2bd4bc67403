"""What the commands share: options, connections, tables for people, JSON for programs."""

from __future__ import annotations

import codecs
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import util
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer

from flerm_core.errors import InvalidInput, Refused, printable

if TYPE_CHECKING:
    from flerm_client.registry.client import RegistryClient
    from flerm_client.registry.connection import Connection

Item = TypeVar("Item")

LISTED = 100  # how many items a listing shows by default

Registry = Annotated[
    str | None,
    typer.Option(
        "--registry",
        "-r",
        help="grpc://host:port, grpcs://host:port or file:///folder; default: FLERM_REGISTRY",
    ),
]
Optimizer = Annotated[str, typer.Option(help="class name of the optimiser, if several were used")]
Policy = Annotated[
    str, typer.Option(help="between recorded learning rates: interpolate, nearest or exact")
]
Depth = Annotated[
    str,
    typer.Option(
        help="depth rule, if the number of blocks differs: coherent (default), split or root"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
JsonLines = Annotated[
    bool, typer.Option("--jsonl", help="print one JSON object a line, as they come")
]
Limit = Annotated[int | None, typer.Option(min=1, help="how many to list at most; default: 100")]
All = Annotated[bool, typer.Option("--all", help="list all, however many there are")]
Tag = Annotated[
    list[str] | None,
    typer.Option("--tag", help="a tag, key=value; may be repeated"),
]
Pick = Annotated[
    list[str] | None,
    typer.Option(
        "--pick",
        help="setting=value, such as steps=300: which experiment, where the family has several; "
        "default: the one with most recordings; may be repeated",
    ),
]
Spool = Annotated[
    Path | None,
    typer.Option(
        "--spool", help="spool folder; default: FLERM_SPOOL, else ~/.local/state/flerm/spool"
    ),
]


def client(registry: str | None) -> RegistryClient:
    """A client that gives up at once where the registry cannot be reached: a person is waiting."""
    from flerm_client.registry.client import RegistryClient

    return RegistryClient(registry, patience=0.0)


@contextmanager
def server(registry: str | None) -> Iterator[Connection]:
    """A connection to a registry server, for the export or import of a family.

    Raises `InvalidInput` where the registry is a folder, and `Refused` where pyarrow is not
    installed.
    """
    from flerm_client.registry.address import address_of, token_of
    from flerm_client.registry.connection import Connection

    address = address_of(registry)
    if address.folder is not None:
        raise InvalidInput(
            f"registry: {address.text} is a folder; `flerm sync` carries its recordings to a server"
        )
    if util.find_spec("pyarrow") is None:
        raise Refused(
            "families travel as Parquet, and pyarrow is not installed: pip install pyarrow"
        )
    connection = Connection(address, token_of())
    try:
        yield connection
    finally:
        connection.close()


def plain(value: Any) -> Any:
    """`value` in JSON's types.

    Times become ISO 8601 text, numbers that are not finite null, tuples and arrays lists, and
    dataclasses objects.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def print_json(value: Any) -> None:
    """Prints one JSON document."""
    say(_json_text(value, indent=2))


def _json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON, escaped where standard output does not take every character."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escaped = codecs.lookup(encoding).name != "utf-8"
    return json.dumps(plain(value), indent=indent, ensure_ascii=escaped)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str = "",
    empty: str = "none",
) -> None:
    """Prints a table with numbers aligned to the right.

    columns: the headings.
    rows: for each row its values, one for each column.
    title: a line above the table.
    empty: the line that is printed in place of a table without rows.
    """
    if not rows:
        say(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for at, column in enumerate(columns):
        numeric = all(isinstance(row[at], int | float) or row[at] is None for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    # The table may be wider than the window: neither a reader nor grep finds a value in a column
    # that is cut or folded.
    natural = Console(width=100_000).measure(table).maximum
    Console(width=max(natural, 1)).print(table)


@dataclass(frozen=True)
class Listing(Generic[Item]):
    """How a command prints the items that it lists.

    columns: for each heading of the table, a function that gives an item's value.
    content: a function that gives an item in JSON's types.
    empty: the line that is printed where there are no items.
    """

    columns: Mapping[str, Callable[[Item], object]]
    content: Callable[[Item], Any]
    empty: str

    def show(
        self,
        items: Iterable[Item],
        *,
        limit: int | None,
        everything: bool,
        as_json: bool,
        as_lines: bool,
    ) -> None:
        """Prints the first items, as a table unless `as_json` or `as_lines` asks for JSON.

        items: the items, which are read only as far as they are printed.
        limit: how many are printed at most. None: `LISTED`, with a line on standard error where
            there are more.
        everything: whether all are printed.
        as_json: whether the items are printed as one JSON array.
        as_lines: whether each item is printed as one line of JSON.
        """
        rest = iter(items)
        found = islice(rest, None if everything else min(limit or LISTED, sys.maxsize))
        if as_lines:
            for each in found:
                say(_json_text(self.content(each)))
        elif as_json:
            print_json([self.content(each) for each in found])
        else:
            rows = [[value(each) for value in self.columns.values()] for each in found]
            print_table(list(self.columns), rows, empty=self.empty)
        if not (limit or everything) and next(rest, None) is not None:
            complain(f"these are the first {LISTED}; --limit N lists more, --all lists all")


@contextmanager
def transfer(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error, as the `progress` argument of `RegistryClient.trajectory`.

    The value is None where standard error is no terminal.

    what: the text beside the bar.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda received, total: bar.update(task, completed=received, total=total)


def say(text: str) -> None:
    """Prints text to standard output."""
    sys.stdout.write(printable(text, kept="\n\t") + "\n")


def complain(text: str) -> None:
    """Prints one line to standard error."""
    sys.stderr.write(f"flerm: {printable(text)}\n")


def number(value: float | None) -> str:
    """A number with four significant digits; "–" for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.4g}"


def local_time(value: datetime | None) -> str:
    """A time in the local time zone, to the minute; "–" for None."""
    return value.astimezone().strftime("%Y-%m-%d %H:%M") if value is not None else "–"


def _cell(value: object) -> str:
    from rich.markup import escape

    if value is None:
        return "–"
    if isinstance(value, float):
        return number(value)
    return escape(printable(str(value), kept="\n"))
