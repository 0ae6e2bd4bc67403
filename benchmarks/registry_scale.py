"""A registry of 100,000 recordings: what each question costs, against the same question where
little is stored, and against what is to be reached.

    python benchmarks/registry_scale.py [--db URL|postgresql] [--folder DIR] [--recordings 100000]
        [--against sqlite.json]

It fills two registries, unless they are filled: a large one, and one of a single family. Then it
asks a server on each the same questions, one after the other. A SQLite file and its counterpart
are kept in DIR for the next run. `reach` in the result has a line for each promise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import registry_scale_fill as stock
from registry_bench import database, registry, resident
from registry_ingest import measured_ingest
from registry_scale_questions import (
    PAGE_SECONDS,
    PRUNED,
    READERS,
    Registry,
    families,
    jobs,
    listing,
    pages,
    prune,
    readers,
    targets,
)

from flerm_client import RegistryClient
from flerm_core.errors import NotFound
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.store.sql import schema
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import open_engine
from flerm_server.store.sql.store import SqlStore

INGEST_ROUNDS = 5
MB = 1e6 / 2**20  # in MiB


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--recordings", type=int, default=100_000)
    parser.add_argument("--against", type=Path, help="the result of an earlier run, on SQLite")
    options = parser.parse_args()
    begun = time.monotonic()
    with ExitStack() as stack:
        large_url, folder = stack.enter_context(database(options.db))
        folder = options.folder or folder
        folder.mkdir(parents=True, exist_ok=True)
        away = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        if options.db:
            small_url, ingest_url = _sibling(large_url, "small"), _sibling(large_url, "ingest")
        else:
            large_url, small_url, ingest_url = (
                f"sqlite:///{each}.db" for each in (folder / "large", folder / "small", away / "in")
            )
        tokens = [
            _filled(large_url, options.recordings, folder / "large.token"),
            _filled(small_url, 0, folder / "small.token"),
        ]
        filled = time.monotonic()
        large, small = (
            stack.enter_context(_running(url, token))
            for url, token in zip((large_url, small_url), tokens, strict=True)
        )
        result = {
            "pages": pages(large),
            "large family of small": families(large),
            "targets": targets(large, small),
            "jobs": jobs(large, small),
            "list": {"s": listing(large)},
            "readers": readers(large),
            "rss_mb": round(resident(large.server.pid, "VmHWM") / MB),
            "prune": prune(large_url),
            "ingest": measured_ingest(ingest_url, away, INGEST_ROUNDS),
        }
    result["seconds"] = {"fill": round(filled - begun), "all": round(time.monotonic() - begun)}
    before = json.loads(options.against.read_text()) if options.against else {}
    result["times SQLite's"] = _against(result, before)
    print(json.dumps(result | {"reach": reach(result)}, indent=2))


def reach(result: dict[str, Any]) -> dict[str, list[Any]]:
    """What was to be reached and what was found, by the promise: [bound, found, whether kept]."""
    shown, prunes = list(result["pages"].values()), result["prune"]
    ratios = [each["ratio"] for each in result["targets"].values() if "ratio" in each]
    asked = ("best", "losses", "overview", "transfer report")
    answers = [result["large family of small"][name]["ratio"] for name in asked]
    most = {
        "a page's first byte, s": (0.3, max(each["first_byte_s"] for each in shown)),
        "a page rendered, s": (1.5, max(each["s"] for each in shown)),
        "a page's first time rendered, s": (1.5, max(each["new_s"] for each in shown)),
        "a page, MB": (1.0, max(each["kB"] for each in shown) / 1000),
        f"{', '.join(asked)}: family of 20,000 against one of 80": (3.0, max(answers)),
        "targets against one recording in an empty registry": (2.0, max(ratios)),
        "start, append, finish at 100,000 recordings against at 80": (
            1.2,
            max(each["ratio"] for each in result["jobs"].values()),
        ),
        "list of 20,000 recordings, s": (2.0, result["list"]["s"]),
        f"append beside {READERS} readers against quiet": (2.0, result["readers"]["ratio"]),
        "memory of the server, MB": (300.0, result["rss_mb"]),
        f"prune of {PRUNED} recordings, s": (5.0, prunes["3,000, s"]),
        "dry run of pruning all, s": (3.0, prunes["dry run of all, s"]),
    }
    if beside := result["times SQLite's"]:
        most["the same questions against SQLite"] = (2.0, max(beside.values()))
    found = {name: [f"<= {bound}", it, it <= bound] for name, (bound, it) in most.items()}
    floor = min(each["of_floor"] for each in result["ingest"].values())
    return found | {"ingest by calls against the floor": [">= 0.5", floor, floor >= 0.5]}


def _against(result: dict[str, Any], sqlite: dict[str, Any]) -> dict[str, float]:
    """How many times as long each page, answer and query of targets takes here as on SQLite.

    sqlite: the result of the same questions there, or nothing.
    """
    found = {}
    for part in ("pages", "large family of small", "targets") if sqlite else ():
        for name, here in result[part].items():
            unit = "s" if "s" in here else "ms"
            found[f"{part}: {name}"] = round(here[unit] / sqlite[part][name][unit], 2)
    return found


def _sibling(url: str, end: str) -> str:
    """The URL of a database beside the first one, which is made unless it is there."""
    import psycopg

    name = f"{url.rsplit('/', 1)[-1]}_{end}"
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if not found.fetchone():
            connection.execute(f'CREATE DATABASE "{name}"')
    return url.rsplit("/", 1)[0] + "/" + name


def _filled(url: str, recordings: int, secret: Path) -> str:
    """Fills a database unless it is filled; a token that owns its recordings."""
    engine = open_engine(parse_url(url))
    schema.upgrade(engine)
    store = SqlStore(engine)
    try:
        try:
            store.family(stock.SMALL)
        except NotFound:
            token, text = SqlTokenStore(engine).create("bench", "admin")
            secret.write_text(text.text)
            started = time.perf_counter()
            if recordings:
                stock.fill(store, recordings, f"bench ({token.id})")
            else:
                template = stock.recorded_template(store, "lab/one", stock.TENSORS)
                runs = list(stock.sweep(stock.FEW_RATES, 4, 1))
                stock.fill_family(store, template, stock.SMALL, runs, f"bench ({token.id})")
            print(f"filled {url} in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        return secret.read_text()
    finally:
        store.close()


@contextmanager
def _running(url: str, token: str) -> Iterator[Registry]:
    with (
        tempfile.TemporaryDirectory() as folder,
        registry(url, Path(folder)) as server,
        RegistryClient(f"grpc://{server.address}", token) as client,
        httpx.Client(
            base_url=server.url, timeout=PAGE_SECONDS, headers={"Authorization": f"Bearer {token}"}
        ) as web,
    ):
        yield Registry(server, client, web)


if __name__ == "__main__":
    main()
