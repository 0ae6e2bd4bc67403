"""The questions that `registry_scale` asks, and what they cost.

Each function returns a dictionary for the result. Times are seconds, or milliseconds where a key
says so.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx
import numpy as np
import registry_scale_fill as stock
from registry_bench import Running
from registry_readers import reading

from flerm_client import RegistryClient
from flerm_core.records.recording import now
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import open_engine
from flerm_server.store.sql.store import SqlStore

ROUNDS, PATIENCE = 9, 15.0  # of one question; seconds
READERS, READING_SECONDS = 6, 10.0
JOBS = 40  # recordings started, appended to and finished
PRUNED = 3_000
PAGE_SECONDS = 120.0


@dataclass(frozen=True)
class Registry:
    """A running registry with a token that may write."""

    server: Running
    client: RegistryClient
    web: httpx.Client


def pages(large: Registry) -> dict[str, Any]:
    """First byte, whole time and size of each page, and of the figures that it loads.

    new_s: the whole time when the page is asked for the first time.
    """
    some = [each.spec.id for each in _some(large.client, stock.LARGE, 8)]
    long = next(iter(large.client.recordings("lab/long"))).spec.id
    family, search = f"/families/{stock.LARGE}", f"/families/{stock.SEARCH}"
    compared = "&".join(f"ids={each}" for each in some)
    addresses = {
        "index": "/",
        "family": family,
        "family, scaled": f"{family}?show=scaled/matched",
        "family figure": f"/api/v1{family}/figure",
        "search": search,
        "search figure": f"/api/v1{search}/figure",
        "family, by steps": f"{family}?sort=ran",
        "match": "/match",
        "match, family": f"/match?family={stock.LARGE}",
        "recording": f"/recordings/{long}",
        "recording figure": f"/api/v1/recordings/{long}/figure",
        "compare": f"/compare?{compared}",
        "compare figure": f"/api/v1/figures/compare?{compared}",
    }
    return {name: _page(large.web, address) for name, address in addresses.items()}


def _page(web: httpx.Client, address: str) -> dict[str, float]:
    size = 0
    first_bytes = []

    def load() -> None:
        nonlocal size
        begun = time.perf_counter()
        with web.stream("GET", address) as answer:
            assert answer.status_code == 200, (address, answer.status_code)
            content = answer.iter_bytes()
            size = len(next(content))
            first_bytes.append(time.perf_counter() - begun)
            size += sum(map(len, content))

    new = seconds(load)
    whole = typical(load)
    return {
        "new_s": round(new, 3),
        "first_byte_s": round(median(first_bytes[1:]), 3),
        "s": round(whole, 3),
        "kB": size // 1000,
    }


def families(large: Registry) -> dict[str, Any]:
    """Answers about the family of 20,000 against those about one of 80."""
    ends = {
        "best": "/best",
        "losses": "/losses",
        "overview": "",
        "transfer report": "/transfer",
        "figure": "/figure",
    }
    found = {}
    for name, end in ends.items():
        prefix = "/families/" if name == "overview" else "/api/v1/families/"
        times = {}
        for family in (stock.LARGE, stock.SMALL):
            address = f"{prefix}{family}{end}"
            times[family] = typical(lambda address=address: large.web.get(address))
        found[name] = _compared(times[stock.LARGE], times[stock.SMALL])
    return found


def targets(large: Registry, small: Registry) -> dict[str, Any]:
    """Targets from 400 seeds, from two rates of 400, and of a search, against one recording of an
    empty registry.
    """
    one = typical(lambda: small.client.targets("lab/one", 1e-3))
    rate = stock.RATES[8]
    asked: dict[str, Callable[[], Any]] = {
        "400 seeds": lambda: large.client.targets(stock.LARGE, rate),
        "between two rates of 400": lambda: large.client.targets(stock.LARGE, rate * 1.2),
        "random search": lambda: large.client.targets(stock.SEARCH, 1e-3),
        "one of 100,000": lambda: large.client.targets("lab/one", 1e-3),
    }
    found: dict[str, Any] = {}
    for name, ask in asked.items():
        first = seconds(ask)
        found[name] = {"first_s": round(first, 3), **_compared(typical(ask), one)}
    long = seconds(lambda: large.client.targets("lab/long", 1e-3))
    found["2,000 tensors x 5,000 steps"] = {"s": round(long, 2)}
    return found


def jobs(large: Registry, small: Registry) -> dict[str, Any]:
    """Start, append and finish of short jobs in turn on both registries."""
    times: dict[str, dict[str, list[float]]] = {"large": {}, "small": {}}
    for at in range(JOBS):
        for name, each in (("large", large), ("small", small)):
            for step, value in _job(each.client, at).items():
                times[name].setdefault(step, []).append(value)
    return {
        step: _compared(median(times["large"][step]), median(times["small"][step]))
        for step in times["large"]
    }


def _job(client: RegistryClient, seed: int) -> dict[str, float]:
    names = [f"layers.{at}.weight" for at in range(stock.TENSORS)]
    values = np.random.default_rng(seed).random((1, stock.TENSORS))
    moments = [time.perf_counter()]
    recording = client.start_recording(
        "lab/jobs", 1e-3, names, [(64, 64)] * len(names), seed=seed, optimizer="AdamW"
    )
    moments.append(time.perf_counter())
    client.append(recording, [1], values)
    moments.append(time.perf_counter())
    client.finish(recording, final_loss=1.0)
    moments.append(time.perf_counter())
    client.delete(recording)
    return dict(zip(("start", "append", "finish"), np.diff(moments).tolist(), strict=True))


def listing(large: Registry) -> float:
    """Seconds to list the 20,000 recordings of one family."""
    count = 0

    def ask() -> None:
        nonlocal count
        count = sum(1 for _ in large.client.recordings(stock.LARGE))

    found = seconds(ask)
    return round(found * stock.LARGE_SIZE / max(count, 1), 2)


def readers(large: Registry) -> dict[str, Any]:
    """The median append of a job, quiet and while six readers load the worst pages."""
    quiet = _appends(large.client)
    pages = [f"/families/{stock.LARGE}", f"/api/v1/families/{stock.LARGE}/figure"]
    addresses = [large.server.url + pages[at % 2] for at in range(READERS)]
    with reading(addresses, dict(large.web.headers)) as loaded:
        busy = _appends(large.client)
    return {**_compared(busy, quiet), "pages_per_s": round(sum(loaded) / READING_SECONDS, 1)}


def _appends(client: RegistryClient) -> float:
    names = [f"layers.{at}.weight" for at in range(stock.TENSORS)]
    recording = client.start_recording("lab/jobs", 1e-3, names, [(64, 64)] * len(names))
    values = np.random.default_rng(0).random((1, stock.TENSORS))
    found, step, end = [], 0, time.monotonic() + READING_SECONDS
    while time.monotonic() < end:
        step += 1
        started = time.perf_counter()
        client.append(recording, [step], values)
        found.append(time.perf_counter() - started)
        time.sleep(0.005)
    client.delete(recording)
    return median(found)


def prune(url: str) -> dict[str, float]:
    """Seconds of `flerm db prune`: a dry run of all, and of 3,000 recordings of one family."""
    engine = open_engine(parse_url(url))
    store = SqlStore(engine)
    runs = [stock.Run("base", "plain", 1e-3, at, 128) for at in range(PRUNED)]
    stock.fill_family(store, stock.template_of(store), f"{stock.OLD}-{now():%H%M%S}", runs, "bench")
    name = next(each.name for each in store.families(prefix=stock.OLD).items if each.recordings)
    store.close()
    command = [sys.executable, "-m", "flerm_server.cli", "db", "prune", "--db", url]
    start = seconds(lambda: subprocess.run([*command, "--help"], check=True, capture_output=True))
    dry = seconds(
        lambda: subprocess.run(
            [*command, "--older-than", "0", "--dry-run"], check=True, capture_output=True
        )
    )
    done = seconds(
        lambda: subprocess.run(
            [*command, "--older-than", "0", "--family", name], check=True, capture_output=True
        )
    )
    return {
        "dry run of all, s": round(dry, 2),
        "3,000, s": round(done, 2),
        "of them to start Python, s": round(start, 2),
    }


def _some(client: RegistryClient, family: str, count: int) -> list[Any]:
    found = client.recordings(family, role="base")
    return [each for each, _ in zip(found, range(count), strict=False)]


def seconds(act: Callable[[], object]) -> float:
    """The seconds of one call."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def typical(act: Callable[[], object]) -> float:
    """The median of some calls after a first one."""
    act()
    found: list[float] = []
    began = time.monotonic()
    while len(found) < ROUNDS and (not found or time.monotonic() - began < PATIENCE):
        found.append(seconds(act))
    return median(found)


def _compared(here: float, there: float) -> dict[str, float]:
    return {
        "ms": round(here * 1e3, 2),
        "against_ms": round(there * 1e3, 2),
        "ratio": round(here / there, 2),
    }
