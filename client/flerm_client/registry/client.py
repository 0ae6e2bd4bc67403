"""`RegistryClient`: a registry for scripts and notebooks. (A training job uses `FLeRM`, which never waits for one.)"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from flerm_client.registry.address import address_of, token_of
from flerm_core.errors import InvalidInput
from flerm_core.matching.targets import Targets
from flerm_core.parameter_bands import bands_of
from flerm_core.parameter_names import as_axes
from flerm_core.records.auxiliary import Auxiliary
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery
from flerm_core.records.recording import (
    Attempt,
    Ending,
    EstimatorSettings,
    Family,
    Measurement,
    ParameterList,
    Recording,
    RecordingSpec,
    now,
)
from flerm_core.records.validation import validate_measurements, validate_spec
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import Best

if TYPE_CHECKING:
    from flerm_client.registry.folder_backend import FolderBackend
    from flerm_client.registry.grpc_backend import GrpcBackend, RegistryInfo


class RegistryClient:
    """A registry at `address`: grpc://host:port, grpcs://host:port (TLS), or file:///folder of spool files.

    Defaults: environment FLERM_REGISTRY for the address; FLERM_TOKEN, else the file FLERM_TOKEN_FILE, for the token.
    `patience`: seconds that a call goes on trying while the registry cannot be reached (no call does harm when repeated).

    Every method raises errors of `flerm_core.errors`: `InvalidInput`, `NotFound`, `Unreachable`, and `Refused` in its kinds,
    each with one sentence. A client may be used after a fork; it opens a channel of its own there. Also a context manager.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | None = None,
        token: str | None = None,
        *,
        patience: float = 10.0,
    ) -> None:
        self.address = address_of(address)
        self._registry: GrpcBackend | FolderBackend
        if self.address.folder is not None:
            from flerm_client.registry.folder_backend import FolderBackend

            self._registry = FolderBackend(self.address.folder)
        else:
            # grpc comes in here: `import flerm_client` must not bring it into training processes.
            from flerm_client.registry.connection import Connection
            from flerm_client.registry.grpc_backend import GrpcBackend

            self._registry = GrpcBackend(
                Connection(self.address, token_of(token), patience=patience)
            )

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RegistryClient({self.address.text!r})"

    def close(self) -> None:
        """Closes the connection; the next call would open another."""
        self._registry.close()

    def info(self) -> RegistryInfo:
        """Versions, limits and clock of a server. A folder has none: `InvalidInput`."""
        if self.address.folder is not None:
            raise InvalidInput(
                f"registry: {self.address.text} is a folder; only a server has versions and limits"
            )
        registry: Any = self._registry
        answer: RegistryInfo = registry.info()
        return answer

    def register_family(
        self, name: str, *, description: str = "", blocks: str | Sequence[str] | None = None
    ) -> Family:
        """Describes a family, once or again. `name`: "name" or "team/name". `blocks`: its block axes, "layers.*".

        Families also come into being with their first recording.
        """
        return self._registry.register_family(name, description, as_axes(blocks))

    def families(self, prefix: str = "") -> Iterator[Family]:
        """The families whose names begin with `prefix`, by name, fetched page by page."""
        return self._registry.families(prefix)

    def rename_family(self, name: str, new_name: str) -> Family:
        """Gives a family, with all its recordings, another name. Idempotent; `AlreadyExists` where both names are taken.

        Of a server; a folder's files are not changed: `Unsupported`. So are those of `tag` and `delete`.
        """
        return self._registry.rename_family(name, new_name)

    def start_recording(
        self,
        family: str,
        lr: float,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        *,
        bands: Sequence[str] | None = None,
        seed: int = 0,
        role: str = "base",
        variant: str = "plain",
        optimizer: str = "",
        optimizer_config: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        estimator: EstimatorSettings | None = None,
        tags: Mapping[str, str] | None = None,
        recording_id: str | None = None,
        resume_at: int | None = None,
    ) -> str:
        """Opens a recording, and returns its id (a UUID, by default a new one).

        `lr`: the base learning rate, the key within the family. `names` and `shapes` [L]: the tensors whose FSLRs will be
        appended; `bands`: theirs, by default found from the names. Idempotent by `recording_id`: starting it again changes
        nothing. With `resume_at=k` a new attempt of it begins, which owns the steps from k on.
        """
        found_shapes = tuple(tuple(int(size) for size in shape) for shape in shapes)
        if len(found_shapes) != len(names):
            raise InvalidInput(
                f"shapes: {len(found_shapes)} given for {len(names)} names; one for each is allowed"
            )
        if resume_at is not None and recording_id is None:
            raise InvalidInput(
                f"resume_at: {resume_at} needs the recording_id of the recording to resume"
            )
        spec = RecordingSpec(
            id=recording_id or str(uuid.uuid4()),
            family=family,
            lr=float(lr),
            parameters=ParameterList(
                tuple(names),
                found_shapes,
                tuple(bands) if bands is not None else tuple(bands_of(list(names), found_shapes)),
            ),
            seed=seed,
            role=role,
            variant=variant,
            optimizer=optimizer,
            optimizer_config=dict(optimizer_config or {}),
            config=dict(config or {}),
            estimator=estimator or EstimatorSettings(),
            tags=dict(tags or {}),
        )
        validate_spec(spec)
        self._registry.start(spec, None if resume_at is None else Attempt(resume_at=resume_at))
        return spec.id

    def append(
        self,
        recording_id: str,
        steps: Sequence[int],
        values: ArrayLike,
        *,
        losses: ArrayLike | None = None,
        learning_rates: ArrayLike | None = None,
        tokens: Sequence[int] | None = None,
        scalars: Mapping[str, ArrayLike] | None = None,
        vectors: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Adds rows and returns when they are committed. Rows that are there already with the same content are no error.

        `values` [len(steps), L]: FSLRs in the order of the recording's names, in output units per unit learning rate; NaN =
        unmeasured. `losses`, `learning_rates` (the schedule's), `tokens` (seen so far): one for each step, NaN = not logged.
        `scalars`: further numbers by name, [len(steps)] each, NaN = none; `vectors`: [len(steps), L] each. `extras` reads both.
        """
        array = np.asarray(values, np.float32)
        if array.ndim != 2 or len(array) != len(steps):
            raise InvalidInput(
                f"values: an array of shape {list(array.shape)}; allowed is [{len(steps)} steps, number of names]"
            )
        moment = now()
        columns = {
            "losses": _floats("losses", losses, len(steps)),
            "learning_rates": _floats("learning_rates", learning_rates, len(steps)),
        }
        counts = _floats("tokens", tokens, len(steps))
        further = {
            name: _floats(f"scalars {name!r}", column, len(steps))
            for name, column in (scalars or {}).items()
        }
        tables = {name: np.asarray(table, np.float32) for name, table in (vectors or {}).items()}
        for name, table in tables.items():
            if table.shape != array.shape:
                raise InvalidInput(
                    f"vectors {name!r}: an array of shape {list(table.shape)}; allowed is {list(array.shape)}, that of values"
                )
        rows = [
            Measurement(
                step=int(step),
                values=array[at],
                loss=columns["losses"][at],
                learning_rate=columns["learning_rates"][at],
                tokens=None if tokens is None or counts[at] is None else int(tokens[at]),
                measured_at=moment,
                scalars={
                    name: value
                    for name, column in further.items()
                    if (value := column[at]) is not None
                },
                vectors={name: table[at] for name, table in tables.items()},
            )
            for at, step in enumerate(steps)
        ]
        validate_measurements(rows, array.shape[1])
        self._registry.append(recording_id, rows)

    def finish(
        self,
        recording_id: str,
        status: str = "completed",
        *,
        final_loss: float | None = None,
        final_step: int | None = None,
        tokens: int | None = None,
    ) -> Recording:
        """Ends a recording: completed, diverged, failed or interrupted. `final_loss`: the mean over the last logged losses.

        Idempotent. Without a `final_loss` the recording takes no part in `best`.
        """
        ending = Ending(status=status, final_loss=final_loss, final_step=final_step, tokens=tokens)
        return self._registry.finish(recording_id, ending)

    def tag(
        self,
        recording_id: str,
        tags: Mapping[str, str] | None = None,
        *,
        remove: Sequence[str] = (),
    ) -> Recording:
        """Sets tags of a recording, whatever its status, and removes those of the keys `remove`; the recording. Idempotent."""
        return self._registry.tag(recording_id, dict(tags or {}), remove)

    def delete(self, recording_id: str) -> int:
        """Removes a recording with all its attempts, for good; how many rows went. 0 when it is not there."""
        return self._registry.delete(recording_id)

    def recordings(
        self,
        family: str | None = None,
        *,
        lr_min: float | None = None,
        lr_max: float | None = None,
        role: str | None = None,
        variant: str | None = None,
        optimizer: str | None = None,
        status: str | None = None,
        tags: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[Recording]:
        """The recordings that fit all that is given, newest first, fetched page by page, without their parameters."""
        filters = RecordingFilter(
            family=family or "",
            lr_min=lr_min,
            lr_max=lr_max,
            role=role or "",
            variant=variant or "",
            optimizer=optimizer or "",
            status=status or "",
            tags=dict(tags or {}),
            created_after=created_after,
            created_before=created_before,
        )
        return self._registry.recordings(filters)

    def recording(self, recording_id: str) -> Recording:
        """One recording with its parameters."""
        return self._registry.recording(recording_id)

    def trajectory(
        self,
        recording_id: str,
        *,
        first_step: int | None = None,
        last_step: int | None = None,
        pattern: str = "",
        max_points: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Trajectory:
        """The measured FSLRs [T, L] of a recording: steps `first_step` to `last_step` (both included), parameters whose names
        fit the shell-style `pattern`, thinned evenly to at most `max_points` rows (0: all).

        `progress` is called with the rows that have arrived and those there will be, message by message.
        """
        return self._registry.trajectory(
            recording_id,
            first_step=first_step,
            last_step=last_step,
            pattern=pattern,
            max_points=max_points,
            progress=progress or (lambda arrived, total: None),
        )

    def extras(
        self, recording_id: str, *, first_step: int | None = None, last_step: int | None = None
    ) -> Auxiliary:
        """The further scalars and vectors of a recording's rows, steps `first_step` to `last_step` (both included)."""
        return self._registry.extras(recording_id, first_step, last_step)

    def targets(
        self,
        family: str,
        lr: float,
        *,
        names: Sequence[str] | None = None,
        shapes: Sequence[Sequence[int]] | None = None,
        step: int | None = None,
        policy: str = "interpolate",
        depth: str = "",
        blocks: str | Sequence[str] | None = None,
        optimizer: str = "",
        optimizer_config: Mapping[str, Any] | None = None,
        estimator: EstimatorSettings | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Targets:
        """Target FSLRs at base learning rate `lr` for a model with parameters `names` (None: the base's own).

        `policy`: `interpolate` between recorded rates, `nearest` or `exact`. `depth`: the rule where the number of blocks
        differs. `optimizer`, `optimizer_config`, `estimator`, `tags` choose among recordings that differ in these. `step`:
        only the row at that step.
        """
        query = TargetQuery(
            family=family,
            lr=float(lr),
            names=tuple(names or ()),
            shapes=tuple(tuple(shape) for shape in shapes or ()),
            policy=policy,
            depth=depth,
            blocks=as_axes(blocks),
            optimizer=optimizer,
            optimizer_config=optimizer_config,
            estimator=estimator,
            tags=dict(tags or {}),
            step=step,
        )
        return self._registry.targets(query)

    def best(
        self,
        family: str,
        *,
        role: str = "base",
        variant: str = "plain",
        optimizer: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> Best:
        """Which base learning rate to use: the best recorded, the fitted optimum with its spread, and which to try next."""
        return self._registry.best(
            BestQuery(
                family=family,
                role=role,
                variant=variant,
                optimizer=optimizer,
                tags=dict(tags or {}),
            )
        )


def _floats(name: str, values: ArrayLike | None, length: int) -> list[float | None]:
    """One number or None (NaN: not logged) for each row."""
    if values is None:
        return [None] * length
    array = np.asarray(values, np.float64)
    if array.shape != (length,):
        raise InvalidInput(
            f"{name}: an array of shape {list(array.shape)}; allowed is [{length}], one for each step"
        )
    return [None if np.isnan(value) else float(value) for value in array]
