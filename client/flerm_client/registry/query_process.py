"""The queries of a training process before its first step: targets, and the best learning rate.

No gRPC object may exist in a training process, so each call to a server runs in a child process,
`python -m flerm_client.registry.query_process`. The call is given up after a time limit. Then the
cached answer to the same request is used; answers are cached in `targets/` under the spool folder.
A folder registry (file:///) is read in the training process itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import selectors
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from google.protobuf.message_factory import GetMessageClass

from flerm_client.registry.address import RegistryAddress, address_of, token_of
from flerm_client.registry.backend import RegistryBackend
from flerm_client.registry.calls import UNARY_SECONDS, RegistryCalls
from flerm_client.registry.folder_backend import FolderBackend
from flerm_client.registry.grpc_backend import GrpcBackend
from flerm_client.registry.subprocess_env import child_command, child_environment
from flerm_client.spool.paths import default_folder, own_folder
from flerm_core import errors
from flerm_core._files import atomic_write
from flerm_core.matching.targets import Targets
from flerm_core.records.queries import BestQuery, TargetQuery
from flerm_core.records.recording import Recording, now
from flerm_core.tuning.best_lr import Best
from flerm_proto.v1 import registry_pb2 as pb

log = logging.getLogger("flerm.query")

_LENGTH = struct.Struct("<I")
_EXTRA_SECONDS = 3.0  # beyond the time limit: the child's own start and end
# Of one answer, from its first byte on: a registry could otherwise send one without end. The
# largest answers over slow networks stay far below.
_MOST_SECONDS, _MOST_BYTES = 600.0, 1 << 30


def fetch_targets(
    registry: str | os.PathLike[str] | None,
    query: TargetQuery,
    *,
    token: str | None = None,
    timeout: float = 60.0,
) -> Targets:
    """The targets that the registry at `registry` (None: FLERM_REGISTRY) gives for `query`.

    `timeout`: seconds for which a registry that cannot be reached is asked again. After that the
    cached answer to the same query is used, with a warning that tells its age. Raises `Unreachable`
    when there is no cached answer, and the registry's own errors as they are.
    """
    return _backend(registry, token, timeout).targets(query)


def fetch_best(
    registry: str | os.PathLike[str] | None,
    query: BestQuery | str,
    *,
    token: str | None = None,
    timeout: float = 60.0,
) -> Best:
    """The best rate of a family, fetched as `fetch_targets` does.

    `query`: a query, or a family's name (its base recordings of the variant plain).
    """
    query = BestQuery(family=query) if isinstance(query, str) else query
    return _backend(registry, token, timeout).best(query)


def fetch_recording(
    registry: str | os.PathLike[str] | None,
    recording_id: str,
    *,
    token: str | None = None,
    timeout: float = 60.0,
) -> Recording:
    """The recording with an id, fetched as `fetch_targets` does."""
    return _backend(registry, token, timeout).recording(recording_id)


def _backend(
    registry: str | os.PathLike[str] | None, token: str | None, timeout: float
) -> RegistryBackend:
    address = address_of(registry)
    if address.folder is not None:
        return FolderBackend(address.folder)
    return GrpcBackend(ChildCalls(address, token, max(timeout, 0.0)))


class ChildCalls(RegistryCalls):
    """Calls that a child process makes, with a cache of their answers.

    `timeout`: seconds for which the registry is asked again while it cannot be reached.
    """

    def __init__(self, address: RegistryAddress, token: str | None, timeout: float) -> None:
        self.address = address
        self._token = token
        self._timeout = timeout

    def unary(self, method: str, request: Any, *, seconds: float = UNARY_SECONDS) -> Any:
        """See `RegistryCalls.unary`. The time limit is that of all calls; `seconds` is not used."""
        (answer,) = self.stream(method, request)
        return answer

    def stream(self, method: str, request: Any) -> Iterator[Any]:
        """See `RegistryCalls.stream`. Raises `Unreachable` without an answer, cached or not."""
        answer_type = GetMessageClass(_method(method).output_type)
        content = request.SerializeToString(deterministic=True)
        cache = _cache_file(self.address, method, content)
        try:
            answers = self._run_child(method, content)
        except errors.Unreachable as error:
            cached = _read_cache(cache)
            if cached is None:
                raise
            fetched_at, answers = cached
            log.warning(
                "%s; going on with its answer to the same query of %s, %s old",
                error,
                fetched_at.isoformat(),
                _age(fetched_at),
            )
        else:
            _write_cache(cache, self.address, answers)
        return map(answer_type.FromString, _split(answers))

    def close(self) -> None:
        """Does nothing: each child process closes its own connection."""

    def _run_child(self, method: str, content: bytes) -> bytes:
        """The answers as bytes, each after its length. Raises the error that the child reports."""
        command = child_command(
            "flerm_client.registry.query_process",
            *("--registry", self.address.text),
            *("--method", method),
            *("--timeout", str(self._timeout)),
        )
        with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as complaints:
            asked.write(content)
            asked.seek(0)
            child = subprocess.Popen(
                command,
                stdin=asked,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=child_environment(self._token),
                start_new_session=True,
            )
            try:
                answers = self._read(child)
                status = child.wait(self._timeout + _EXTRA_SECONDS)
            except subprocess.TimeoutExpired:
                raise self._silent() from None
            finally:
                child.kill()
                child.wait()
            if status == 0:
                return answers
            complaints.seek(0)
            report = complaints.read()
        raise self._reported(report)

    def _read(self, child: subprocess.Popen[bytes]) -> bytes:
        """What the child writes.

        Raises `Unreachable` where it writes nothing for too long, or without end.
        """
        assert child.stdout is not None
        found: list[bytes] = []
        left, end = _MOST_BYTES, math.inf
        with child.stdout as output, selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while True:
                if not selector.select(self._timeout + _EXTRA_SECONDS):
                    raise self._silent()
                part = os.read(output.fileno(), 1 << 20)
                if not part:
                    return b"".join(found)
                found.append(part)
                left -= len(part)
                end = min(end, time.monotonic() + _MOST_SECONDS)
                if left < 0 or time.monotonic() > end:
                    raise errors.Unreachable(
                        f"{self.address.text} sends an answer without end, of which "
                        f"{(_MOST_BYTES - left) >> 20} MiB came: see whether a FLeRM registry is "
                        "at this address"
                    )

    def _silent(self) -> errors.Unreachable:
        return errors.Unreachable(f"{self.address.text} did not answer within {self._timeout:g} s")

    def _reported(self, report: bytes) -> errors.FlermError:
        """The error that the child reported."""
        lines = report.decode(errors="replace").strip().splitlines() or ["no reason given"]
        try:
            content = json.loads(lines[-1])
            name, message = str(content["error"]), str(content["message"])
        except (ValueError, KeyError, TypeError):
            return errors.FlermError(
                f"the process that asks {self.address.text} failed: {lines[-1]}"
            )
        error: type[errors.FlermError] = getattr(errors, name, errors.FlermError)
        return error(message)


def _method(name: str) -> Any:
    """The descriptor of a method of the wire contract."""
    return pb.DESCRIPTOR.services_by_name["Registry"].methods_by_name[name]


def _split(answers: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(answers):
        (length,) = _LENGTH.unpack_from(answers, position)
        position += _LENGTH.size
        yield answers[position : position + length]
        position += length


def _cache_file(address: RegistryAddress, method: str, content: bytes) -> Path:
    key = hashlib.sha256(f"{address.text}\n{method}\n".encode() + content).hexdigest()
    return default_folder() / "targets" / f"{key}.answer"


def _write_cache(cache: Path, address: RegistryAddress, answers: bytes) -> None:
    """Writes one line of JSON and then the answers. A disk error costs only the cached copy."""
    head = {
        "fetched_at": now().isoformat(),
        "registry": address.text,
        "sha256": hashlib.sha256(answers).hexdigest(),
    }
    try:
        _own_cache(cache)
        atomic_write(cache, json.dumps(head).encode() + b"\n" + answers)
    except OSError as error:
        log.warning("the answer cannot be cached in %s: %s", cache.parent, error.strerror)
    except errors.InvalidInput as error:
        log.warning("the answer is not cached: %s", error)


def _own_cache(cache: Path) -> None:
    """Raises `InvalidInput` where others could put an answer of theirs into the cache."""
    own_folder(cache.parent.parent)
    own_folder(cache.parent)


def _read_cache(cache: Path) -> tuple[datetime, bytes] | None:
    """When the cached answers were fetched, and the answers. None without an undamaged file."""
    if not cache.exists():
        return None
    try:
        _own_cache(cache)
        first, _, answers = cache.read_bytes().partition(b"\n")
    except OSError:
        return None
    except errors.InvalidInput as error:
        log.warning("the cached answer is not used: %s", error)
        return None
    try:
        head = json.loads(first)
        fetched_at, digest = datetime.fromisoformat(head["fetched_at"]), head["sha256"]
    except (ValueError, KeyError, TypeError):
        digest, fetched_at = "", now()
    if hashlib.sha256(answers).hexdigest() != digest:
        log.warning("the cached answer %s is damaged and not used", cache)
        return None
    return fetched_at, answers


def _age(fetched_at: datetime) -> str:
    seconds = max((now() - fetched_at).total_seconds(), 0.0)
    for length, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def main(argv: list[str] | None = None) -> int:
    """Runs the child process; its exit code.

    It reads a request on standard input and writes the answers to standard output, each after its
    length. It writes an error as JSON to standard error.
    """
    # gRPC is imported in the child alone.
    from flerm_client.registry.connection import Connection

    parser = argparse.ArgumentParser(
        prog="python -m flerm_client.registry.query_process",
        description="Makes one call to a registry.",
    )
    parser.add_argument("--registry", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--timeout", type=float, required=True)
    options = parser.parse_args(argv)
    method = _method(options.method)
    request = GetMessageClass(method.input_type).FromString(sys.stdin.buffer.read())
    connection = Connection(
        address_of(options.registry), token_of(), deadline=time.monotonic() + options.timeout
    )
    try:
        if method.server_streaming:
            answers = connection.stream(options.method, request)
        else:
            answers = iter([connection.unary(options.method, request)])
        for answer in answers:
            content = answer.SerializeToString()
            sys.stdout.buffer.write(_LENGTH.pack(len(content)) + content)
            sys.stdout.buffer.flush()
    except errors.FlermError as error:
        sys.stderr.write(json.dumps({"error": type(error).__name__, "message": str(error)}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
