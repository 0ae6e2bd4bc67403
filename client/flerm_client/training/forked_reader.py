"""Batches that a copy of this process reads, so that the training's data set stays untouched."""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import pickle
import signal
import socket
import stat
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flerm_core.errors import InvalidInput, MeasurementError
from flerm_core.measure.state_guard import seed_generators

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class NotReadable(InvalidInput):
    """The data cannot be read in a copy of this process, or not be sent from there.

    what: this and why, without the remedy.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: give probe=, fresh input batches")
        self.what = what


class ForkedReader:
    """An iterable whose batches are read in a copy of this process.

    read: gives the batches of one pass. It is called in the copy, once for each pass.
    name: what is read, for error messages.

    The copy is made here, by `os.fork`, and again by the first pass after `close`. It has its own
    generators of every kind, and its own file for each file that is open for reading. Sockets and
    pipes are closed in the copy. Each pass is read by a copy of that copy, so all passes begin at
    the same state; only the global generators begin at a seed drawn from torch's generator.

    A reading process that was killed is replaced once for each batch. Iterating raises
    `InvalidInput` where the data cannot be read or sent, `MeasurementError` where the process that
    replaces it was killed too.
    """

    def __init__(self, read: Callable[[], Iterable[Any]], name: str) -> None:
        self._read = read
        self.name = name
        self._close: Callable[[], None] | None = None
        self._start()

    def __iter__(self) -> Iterator[Any]:
        return _Pass(self, int(torch.randint(2**62, ())))

    def open_pass(self, seed: int) -> Connection:
        """A connection to a new process that reads one pass."""
        if self._close is None:
            self._start()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._ask(seed, theirs)
            except OSError:  # the copy was killed: another one reads
                self.close()
                self._start()
                self._ask(seed, theirs)
        return Connection(ours.detach())

    def _ask(self, seed: int, connection: socket.socket) -> None:
        socket.send_fds(self._control, [seed.to_bytes(8, "little")], [connection.fileno()])

    def close(self) -> None:
        """Ends the reading processes. A later pass starts them again."""
        if self._close is not None:
            self._close()
            self._close = None

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        with warnings.catch_warnings():
            # Python warns of threads. The copy runs one thread, as a DataLoader's workers do.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _never_return(lambda: _serve(theirs, self._read))
        theirs.close()
        self._close = weakref.finalize(self, _end, self._control, pid, os.getpid())


class _Pass:
    """One pass over the batches."""

    def __init__(self, reader: ForkedReader, seed: int) -> None:
        self._reader = reader
        self._seed = seed
        self._position = 0
        self._connection: Connection | None = None
        self._hang_up: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            batch = self._next()
        except OSError:
            batch = self._next_of_another_process()
        self._position += 1
        return batch

    def _next_of_another_process(self) -> Any:
        name = self._reader.name
        try:
            return self._next()
        except OSError as error:
            raise MeasurementError(
                f"the process that reads {name} for the probe has ended twice ({error!r}), as one "
                "does that was killed for its memory: give probe=, fresh input batches"
            ) from error

    def _next(self) -> Any:
        if self._connection is None:
            # The first batch, or the first after an interrupt or after a process that was killed.
            connection = self._connection = self._reader.open_pass(self._seed)
            self._hang_up = weakref.finalize(self, _hang_up, connection, os.getpid())
            for _ in range(self._position):
                self._request(connection)
        return self._request(self._connection)

    def _request(self, connection: Connection) -> Any:
        """The answer to one request. Raises `OSError` where the process has ended."""
        name = self._reader.name
        try:
            connection.send_bytes(b"next")
            kind, content = pickle.loads(connection.recv_bytes())
        except EOFError as error:
            self._forget_connection()
            raise ConnectionResetError("no more is read") from error
        except BaseException:
            self._forget_connection()  # an interrupt may have left half an answer in it
            raise
        if kind == "end":
            raise StopIteration
        if kind == "error":
            raise NotReadable(f"{name} cannot be read in a process of its own ({content})")
        return content

    def _forget_connection(self) -> None:
        assert self._hang_up is not None
        self._hang_up()
        self._connection = None


def _end(control: socket.socket, pid: int, owner: int) -> None:
    # Later copies of this process (a DataLoader's workers) hold the socket too, and must not end
    # what is not theirs. Closing alone would not be seen while they live.
    if os.getpid() == owner:
        with suppress(OSError):  # the copy is gone already
            control.shutdown(socket.SHUT_RDWR)
        with suppress(ChildProcessError):  # someone else has waited for all children
            os.waitpid(pid, 0)
    control.close()


def _hang_up(connection: Connection, owner: int) -> None:
    if os.getpid() == owner:
        with socket.socket(fileno=os.dup(connection.fileno())) as peer, suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
    connection.close()


def _never_return(run: Callable[[], None]) -> None:
    """Runs `run` in a copy, which then leaves without the original's exit handlers."""
    try:
        run()
    finally:
        os._exit(0)


def _serve(control: socket.socket, read: Callable[[], Iterable[Any]]) -> None:
    """The copy: makes a process for each pass that is asked for, until the original is gone."""
    # What the original does at a signal (a checkpoint, say) is not the copy's to do.
    signal.set_wakeup_fd(-1)
    for each in _IGNORED:
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    torch.set_num_threads(1)  # OpenMP's other threads are not in the copy
    _take_own_files({control.fileno()})
    while True:
        message, descriptors, *_ = socket.recv_fds(control, 8, 1)
        if not message:
            return
        if _fork_of_copy() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _take_own_files({descriptors[0]})
            _read_pass(Connection(descriptors[0]), read, int.from_bytes(message, "little"))
            return
        os.close(descriptors[0])


def _fork_of_copy() -> int:
    """`os.fork` for the copy, without the handlers that libraries have set for a fork.

    gRPC's handlers wait for threads that the copy no longer has, or abort. A process of one thread
    needs none: its locks are in order.
    """
    bare_fork = getattr(ctypes.PyDLL(None), "_Fork", None)  # POSIX 2024; glibc since 2.34
    if bare_fork is None:
        return os.fork()
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(bare_fork())
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid


def _read_pass(connection: Connection, read: Callable[[], Iterable[Any]], seed: int) -> None:
    seed_generators(seed)
    batches: Iterator[Any] | None = None
    while True:
        try:
            connection.recv_bytes()
        except (EOFError, OSError):
            return  # the pass is over, or the original gone
        try:
            batches = iter(read()) if batches is None else batches
            answer = _pickled(("batch", next(batches)))
        except StopIteration:
            answer = _pickled(("end", None))
        except BaseException as error:
            answer = _pickled(("error", f"{type(error).__name__}: {error}"))
        with suppress(OSError):  # the next request then finds that the pass is over
            connection.send_bytes(answer)


def _take_own_files(kept: set[int]) -> None:
    """Opens every file anew that is open for reading, at its place, under the same number.

    Copies of a process share the position in a file. Sockets and pipes, which cannot be opened
    anew, are replaced by /dev/null; so is a file where the system has no /proc. Standard streams,
    devices and files that are open for writing alone stay.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for entry in list(Path("/dev/fd").iterdir()):
        descriptor = int(entry.name)
        if descriptor <= 2 or descriptor == null or descriptor in kept:
            continue
        try:
            kind = os.fstat(descriptor).st_mode
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        except OSError:
            continue  # the listing's own
        if stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind):
            os.dup2(null, descriptor, inheritable=False)
        elif stat.S_ISREG(kind) and flags & os.O_ACCMODE != os.O_WRONLY:
            _open_anew(descriptor, flags, null)
    os.close(null)


def _open_anew(descriptor: int, flags: int, null: int) -> None:
    at = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", flags & (os.O_ACCMODE | os.O_APPEND))
    except OSError:
        os.dup2(null, descriptor, inheritable=False)
        return
    os.lseek(own, at, os.SEEK_SET)
    os.dup2(own, descriptor, inheritable=False)
    os.close(own)


class _Pickler(pickle.Pickler):
    """Sends of a tensor that is a part of a bigger one that part alone."""

    def reducer_override(self, value: Any) -> Any:
        """As `pickle.Pickler` asks."""
        is_dense = isinstance(value, Tensor) and value.layout is torch.strided
        if is_dense and value.untyped_storage().nbytes() > value.nbytes:
            return value.detach().clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


def _pickled(content: Any) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(content)
    return stream.getvalue()
