"""The training process's side of reporting: it writes the spool, and starts the uploader.

Only rank 0 reports. After `SpoolReporter.open`, nothing here raises or waits because of a registry,
a network or a full disk.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flerm_client.registry.address import RegistryAddress, address_of
from flerm_client.registry.subprocess_env import child_command, child_environment
from flerm_client.spool.paths import QUARANTINE, default_folder, own_folder, sidecar
from flerm_client.spool.writer import SpoolWriter
from flerm_client.upload.progress import DeliveryProgress
from flerm_core._files import make_private_folder, open_private
from flerm_core.errors import InvalidInput
from flerm_core.records.recording import Attempt, Ending, Measurement, RecordingSpec
from flerm_core.records.validation import validate_spec

log = logging.getLogger("flerm.reporter")

_MAX_RESTARTS = 20  # an uploader that ends so often has a fault that a restart does not cure
_RESTART_SECONDS = 1.0  # at least between two starts

# A send with these flags does not wait for the uploader. If the uploader has ended, the send does
# not raise SIGPIPE, whatever the training script has set for this signal.
_SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)

_orphans: list[subprocess.Popen[bytes]] = []
"""Uploaders that run on after their reporter was closed.

They are kept here because a Popen object that is dropped while its process runs gives a warning and
leaves a zombie.
"""


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What became of a run's measurements.

    left: how many are not in the registry.
    problem: a sentence that says why and what to do; empty when all went well.
    """

    left: int
    problem: str


def check_reporting(
    registry: str | None,
    spec: RecordingSpec,
    spool: str | os.PathLike[str] | None = None,
    token: str | None = None,
) -> tuple[RegistryAddress, Path]:
    """The address and the spool folder that `SpoolReporter.open` uses; nothing is opened.

    Raises `InvalidInput` for a wrong address, specification or spool folder.
    """
    address = address_of(registry)
    address.refuse_open_token(token)
    folder = _spool_folder(address, spool)
    validate_spec(spec)
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = (
            "set FLERM_SPOOL to one that can"
            if address.folder is None
            else "name another folder as the registry"
        )
        raise InvalidInput(f"the spool folder {folder} cannot be written: {remedy}")
    return address, folder


def _spool_folder(address: RegistryAddress, spool: str | os.PathLike[str] | None) -> Path:
    """The folder of the spool file.

    Raises `InvalidInput` for one that cannot be made or that others may write to.
    """
    if address.folder is None:
        named = Path(spool).expanduser() if spool is not None else default_folder()
        return own_folder(named.absolute())
    folder = address.folder.absolute()  # a registry of its own, which users may share
    try:
        make_private_folder(folder)
    except OSError as error:
        raise InvalidInput(
            f"the spool folder {folder} cannot be made ({error.strerror}): name another folder "
            "as the registry"
        ) from error
    return folder


class SpoolReporter:
    """Reports one attempt of a recording: `open`, `append` each measurement, `finish`.

    Not thread-safe. In a forked child (a DataLoader worker), a copy of it does nothing.
    """

    def __init__(
        self,
        address: RegistryAddress,
        writer: SpoolWriter,
        path: Path,
        recording_id: str,
        token: str | None,
    ) -> None:
        self.path = path
        self._address = address
        self._writer = writer
        self._recording_id = recording_id
        self._token = token
        self._pid = os.getpid()
        self._uploader: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._outcome: dict[str, Any] | None = None
        self._warned = False
        self._restarts = 0
        self._started_at = 0.0
        self._report: DeliveryReport | None = None

    @classmethod
    def open(
        cls,
        registry: str | None,
        spec: RecordingSpec,
        attempt: Attempt,
        *,
        token: str | None = None,
        spool: str | os.PathLike[str] | None = None,
    ) -> SpoolReporter:
        """Opens the attempt's spool file and starts the uploader.

        registry: grpc://host:port, grpcs://host:port or file:///folder; None: FLERM_REGISTRY. A
            folder is itself the registry: its spool files are written there, without an uploader.
        spec, attempt: the recording, and the attempt of it that begins.
        token: None: FLERM_TOKEN, else what the file FLERM_TOKEN_FILE holds.
        spool: the folder of the spool file; None: `flerm_client.spool.default_folder`.

        Raises `InvalidInput` for a wrong address, specification or spool folder. A registry that
        does not answer raises nothing.
        """
        address, folder = check_reporting(registry, spec, spool, token)
        writer = SpoolWriter(folder, address.text)
        path = writer.start(spec, attempt)
        reporter = cls(address, writer, path, spec.id, token)
        if address.folder is None and writer.has_header:
            reporter._start_uploader()
        return reporter

    def append(self, row: Measurement) -> None:
        """Writes one measurement to the spool. It takes a few dozen microseconds.

        A loss that is not finite is left out, because registries refuse such a loss.
        """
        if self._pid != os.getpid():
            return
        is_finite = row.loss is None or math.isfinite(row.loss)
        self._writer.append(row if is_finite else replace(row, loss=None))
        self._notify()

    def finish(self, ending: Ending, timeout: float = 10.0) -> DeliveryReport:
        """Ends the attempt, and waits at most `timeout` seconds until the registry has all of it.

        The uploader goes on sending the rest while this process runs and one minute longer. Later
        calls return the first result.
        """
        if self._pid != os.getpid():
            return DeliveryReport(0, "")
        if self._report is not None:
            return self._report
        written = self._writer.finish(ending)
        if self._address.folder is None:
            self._notify()
            self._wait_for_outcome(time.monotonic() + timeout)
        self._report = self._delivery_report(written)
        self._release()
        return self._report

    def close(self) -> None:
        """Closes the file. An attempt that is not finished ends as interrupted, without waiting."""
        if self._pid == os.getpid() and self._report is None:
            self.finish(Ending(status="interrupted"), timeout=0.0)

    def __enter__(self) -> SpoolReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uploader_pid(self) -> int | None:
        """The uploader's pid; None without one (a folder, or it could not be started)."""
        return None if self._uploader is None else self._uploader.pid

    def _start_uploader(self) -> None:
        self._close_socket()
        self._started_at = time.monotonic()
        command = child_command(
            "flerm_client.upload.worker",
            *("--file", str(self.path)),
            *("--registry", self._address.text),
            *("--parent", str(self._pid)),
        )
        ours, theirs = socket.socketpair()
        try:
            log_file = sidecar(self.path, ".log")
            with theirs, open_private(log_file, "ab", follow=False) as output:
                self._uploader = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=output,
                    env=child_environment(self._token),
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            self._warn(f"the uploader cannot be started ({error})")
            return
        self._socket = ours

    def _notify(self) -> None:
        """Wakes the uploader; starts another one when it was killed."""
        if self._address.folder is not None or self._outcome is not None:
            return
        if not self._writer.has_header:
            return
        if self._socket is not None:
            try:
                self._socket.send(b"\0", _SEND_FLAGS)
                return
            except BlockingIOError:  # the uploader has not read for a while, but it will
                return
            except OSError:  # the uploader has ended
                self._read_outcome(0.0)
        if (
            self._outcome is None
            and self._restarts < _MAX_RESTARTS
            and time.monotonic() - self._started_at > _RESTART_SECONDS
        ):
            self._restarts += 1
            self._start_uploader()

    def _wait_for_outcome(self, end: float) -> None:
        """Waits until the uploader reports the outcome, or until the time `end`."""
        while self._outcome is None:
            left = end - time.monotonic()
            if left <= 0 or self._read_outcome(left):
                return
            if self._restarts >= _MAX_RESTARTS or self._uploader is None:
                return
            # The uploader has ended without an outcome. Another one is started, not too soon.
            pause = self._started_at + _RESTART_SECONDS - time.monotonic()
            if pause > 0:
                time.sleep(min(pause, left))
            self._restarts += 1
            self._start_uploader()

    def _read_outcome(self, seconds: float) -> bool:
        """Waits for the uploader's one line; False when the uploader ended without writing it."""
        if self._socket is None:
            return False
        self._socket.settimeout(max(seconds, 0.0))
        try:
            line = self._socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return True
        except ConnectionError:
            return False
        finally:
            self._socket.settimeout(None)
        # The line is short and written at once, so that it arrives whole or not at all.
        if not line.endswith(b"\n"):
            return False
        outcome: dict[str, Any] = json.loads(line)
        self._outcome = outcome
        if outcome["refused"]:
            self._warn(f"the registry refused recording {self._recording_id}: {outcome['problem']}")
        return True

    def _delivery_report(self, written: bool) -> DeliveryReport:
        """What became of the measurements.

        written: whether the file holds the attempt's end.
        """
        rows, lost = self._writer.rows, self._writer.lost
        of = f"measurements of recording {self._recording_id}"
        end = f"the end of recording {self._recording_id}"
        if lost:
            return DeliveryReport(
                lost,
                f"{lost} of {rows + lost} {of} could not be written to {self.path.parent} "
                "and are lost",
            )
        if self._address.folder is not None:
            problem = "" if written else f"{end} could not be written to {self.path}"
            return DeliveryReport(0, problem)
        if self._outcome is None:
            progress = DeliveryProgress.of(self.path)
            if not self.path.exists():  # delivered meanwhile
                return DeliveryReport(0, "")
            left = max(rows - progress.acknowledged, 0)
            what, kept = (
                (f"{left} of {rows} {of} are", "they are") if left else (f"{end} is", "it is")
            )
            why = progress.problem or f"{self._address.text} has not taken them yet"
            return DeliveryReport(
                left,
                f"{what} not delivered ({why}); {kept} kept in {self.path.parent}, "
                f"and `flerm sync --spool {self.path.parent} --registry {self._address.text}` "
                "sends what is left",
            )
        if self._outcome["refused"]:
            refused = rows - int(self._outcome["acknowledged"])
            quarantined = self.path.parent / QUARANTINE / self.path.name
            return DeliveryReport(
                refused,
                f"{refused} of {rows} {of} were refused ({self._outcome['problem']}); "
                f"they are kept in {quarantined}",
            )
        return DeliveryReport(0, "")

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _release(self) -> None:
        self._writer.close()
        self._close_socket()
        if self._uploader is not None:
            _orphans.append(self._uploader)
        _orphans[:] = [each for each in _orphans if each.poll() is None]

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "%s; training goes on, the measurements stay in %s (log: %s)",
                text,
                self.path,
                sidecar(self.path, ".log"),
            )
