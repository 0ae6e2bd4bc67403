"""How a training process reports: into the spool, and nothing else. The uploader beside it does the rest.

Rank 0 only. After `SpoolReporter.open` nothing here raises or waits because of a registry, a network or a full disk.
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
from flerm_client.spool.paths import QUARANTINE, default_folder, sidecar
from flerm_client.spool.writer import SpoolWriter
from flerm_client.upload.progress import DeliveryProgress
from flerm_core.errors import InvalidInput
from flerm_core.records.recording import Attempt, Ending, Measurement, RecordingSpec
from flerm_core.records.validation import validate_spec

log = logging.getLogger("flerm.reporting")

_RESTARTS = 20  # an uploader that ends so often has a fault that another start does not mend
_RESTART_SECONDS = 1.0

# Neither waits for the uploader nor dies of its death, whatever the training script did to SIGPIPE.
_QUIET = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


_lingering: list[subprocess.Popen[bytes]] = []
"""Uploaders that outlive their reporter. A Popen that is dropped while its process runs warns, and leaves a zombie."""


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What became of a run's measurements: how many are not in the registry, and a sentence that says why and what to do."""

    left: int
    problem: str


def check_reporting(
    registry: str | None, spec: RecordingSpec, spool: str | os.PathLike[str] | None = None
) -> None:
    """Raises now what `SpoolReporter.open` would raise: `InvalidInput` for a wrong address, specification or spool folder."""
    folder = _folder(address_of(registry), spool)
    validate_spec(spec)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidInput(
            f"the spool folder {folder} cannot be made ({error.strerror}): set FLERM_SPOOL to one that can"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidInput(
            f"the spool folder {folder} cannot be written: set FLERM_SPOOL to one that can"
        )


def _folder(address: RegistryAddress, spool: str | os.PathLike[str] | None) -> Path:
    return (
        address.folder or (Path(spool).expanduser() if spool is not None else default_folder())
    ).absolute()


class SpoolReporter:
    """One attempt's way to its registry: `open`, `append` for each measurement, `finish`. Not thread-safe.

    A copy of it in a forked child (a DataLoader worker) does nothing.
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
        self._line: socket.socket | None = None
        self._outcome: dict[str, Any] | None = None
        self._warned = False
        self._restarts = 0
        self._launched = 0.0
        self._delivery: DeliveryReport | None = None

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

        `registry`: grpc://host:port, grpcs://host:port, or file:///folder (its spool files are the registry; no uploader);
        None: environment FLERM_REGISTRY. `spool`: folder of the file, default FLERM_SPOOL or `~/.local/state/flerm/spool`.
        Raises `InvalidInput` for a wrong address, specification or spool folder; never for a registry that does not answer.
        """
        address = address_of(registry)
        validate_spec(spec)
        writer = SpoolWriter(_folder(address, spool), address.text)
        path = writer.start(spec, attempt)
        reporter = cls(address, writer, path, spec.id, token)
        if address.folder is None and writer.begun:
            reporter._launch()
        return reporter

    def append(self, row: Measurement) -> None:
        """Puts one measurement into the spool and returns: a few dozen microseconds."""
        if self._pid != os.getpid():
            return
        self._writer.append(_finite(row))
        self._ring()

    def finish(self, ending: Ending, timeout: float = 10.0) -> DeliveryReport:
        """Ends the attempt and waits, at most `timeout` seconds, until the registry has everything.

        What is left then goes on being sent while this process lives and a minute longer. Later calls return the first answer.
        """
        if self._pid != os.getpid():
            return DeliveryReport(0, "")
        if self._delivery is not None:
            return self._delivery
        written = self._writer.finish(ending)
        if self._address.folder is None:
            self._ring()
            self._await(time.monotonic() + timeout)
        self._delivery = self._judge(written)
        self._release()
        return self._delivery

    def close(self) -> None:
        """Lets go of everything. An attempt that was not finished is ended as interrupted, without waiting."""
        if self._pid == os.getpid() and self._delivery is None:
            self.finish(Ending(status="interrupted"), timeout=0.0)

    def __enter__(self) -> SpoolReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uploader_pid(self) -> int | None:
        """The process that delivers; None where there is none (a folder, or it could not be started)."""
        return None if self._uploader is None else self._uploader.pid

    def _launch(self) -> None:
        self._hang_up()
        self._launched = time.monotonic()
        command = child_command(
            "flerm_client.upload.worker",
            "--file",
            str(self.path),
            "--registry",
            self._address.text,
            "--parent",
            str(self._pid),
        )
        line, theirs = socket.socketpair()
        try:
            with theirs, sidecar(self.path, ".log").open("ab") as output:
                self._uploader = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=output,
                    env=child_environment(self._token),
                    start_new_session=True,
                )
        except OSError as error:
            line.close()
            self._warn(f"the uploader cannot be started ({error})")
            return
        self._line = line

    def _ring(self) -> None:
        """Wakes the uploader; starts another where it was killed."""
        if self._address.folder is not None or self._outcome is not None or not self._writer.begun:
            return
        if self._line is not None:
            try:
                self._line.send(b"\0", _QUIET)
                return
            except BlockingIOError:  # it has not looked for a while, and will
                return
            except OSError:  # it is gone
                self._read_outcome(0.0)
        if (
            self._outcome is None
            and self._restarts < _RESTARTS
            and time.monotonic() - self._launched > _RESTART_SECONDS
        ):
            self._restarts += 1
            self._launch()

    def _await(self, end: float) -> None:
        """Until the uploader tells the outcome, or time is up."""
        while self._outcome is None:
            left = end - time.monotonic()
            if left <= 0 or self._read_outcome(left):
                return
            if self._restarts >= _RESTARTS or self._uploader is None:
                return
            # It died meanwhile. The pause is what `_ring` wants between two starts.
            pause = self._launched + _RESTART_SECONDS - time.monotonic()
            if pause > 0:
                time.sleep(min(pause, left))
            self._restarts += 1
            self._launch()

    def _read_outcome(self, seconds: float) -> bool:
        """Waits for the uploader's one line; False when the uploader ended without it."""
        if self._line is None:
            return False
        self._line.settimeout(max(seconds, 0.0))
        try:
            told = self._line.recv(65536)
        except (TimeoutError, BlockingIOError):
            return True
        except ConnectionError:
            return False
        finally:
            self._line.settimeout(None)
        # Written at once and short: it comes whole or not at all.
        if not told.endswith(b"\n"):
            return False
        outcome: dict[str, Any] = json.loads(told)
        self._outcome = outcome
        if outcome["refused"]:
            self._warn(f"the registry refused recording {self._recording_id}: {outcome['problem']}")
        return True

    def _judge(self, written: bool) -> DeliveryReport:
        rows, lost = self._writer.rows, self._writer.lost
        of = f"measurements of recording {self._recording_id}"
        if lost:
            return DeliveryReport(
                lost,
                f"{lost} of {rows + lost} {of} could not be written to {self.path.parent} and are lost",
            )
        if self._address.folder is not None:
            return DeliveryReport(
                0,
                ""
                if written
                else f"the end of recording {self._recording_id} could not be written to {self.path}",
            )
        if self._outcome is None:
            progress = DeliveryProgress.of(self.path)
            left = max(rows - progress.acknowledged, 0)
            if not self.path.exists():  # delivered in the very moment
                return DeliveryReport(0, "")
            why = progress.problem or f"{self._address.text} has not taken them yet"
            what = (
                f"{left} of {rows} {of} are"
                if left
                else f"the end of recording {self._recording_id} is"
            )
            kept = "they are" if left else "it is"
            send = f"flerm sync --spool {self.path.parent}"
            return DeliveryReport(
                left,
                f"{what} not delivered ({why}); {kept} kept in {self.path.parent}, and `{send}` sends what is left",
            )
        if self._outcome["refused"]:
            refused = rows - int(self._outcome["acknowledged"])
            place = self.path.parent / QUARANTINE / self.path.name
            return DeliveryReport(
                refused,
                f"{refused} of {rows} {of} were refused ({self._outcome['problem']}); they are kept in {place}",
            )
        return DeliveryReport(0, "")

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _release(self) -> None:
        self._writer.close()
        self._hang_up()
        if self._uploader is not None:
            _lingering.append(self._uploader)
        _lingering[:] = [each for each in _lingering if each.poll() is None]

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "%s; training goes on, the measurements stay in %s (log: %s)",
                text,
                self.path,
                sidecar(self.path, ".log"),
            )


def _finite(row: Measurement) -> Measurement:
    """A loss that is no number (a run that diverges) is one that was not logged: registries take numbers only."""
    if row.loss is None or math.isfinite(row.loss):
        return row
    return replace(row, loss=None)
