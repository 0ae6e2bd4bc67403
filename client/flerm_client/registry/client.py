"""`RegistryClient`: a registry for scripts and notebooks.

A training job uses `FLeRM` instead, which never waits for a registry.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flerm_client._extras import needs
from flerm_client.registry.address import address_of, token_of
from flerm_client.registry.recording_writer import RecordingWriter
from flerm_core.matching.match_cautions import RunFacts, match_cautions
from flerm_core.matching.matched_rates import MatchedRates, matched_rates
from flerm_core.matching.targets import Targets
from flerm_core.parameter_names import as_axes
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import (
    EstimatorSettings,
    Family,
    Recording,
)
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import Best

if TYPE_CHECKING:
    from flerm_client.registry.backend import RegistryInfo


class RegistryClient(RecordingWriter):
    """A registry: a server, or a folder of spool files. Also a context manager.

    The methods that write recordings are those of `RecordingWriter`.

    address: grpc://host:port, grpcs://host:port (TLS) or file:///folder; None: FLERM_REGISTRY.
    token: the token itself; None: FLERM_TOKEN, else what the file FLERM_TOKEN_FILE holds.
    patience: seconds for which a call is tried again while the registry cannot be reached. The
        default of 10 covers the restart of a server. Every call may be repeated without harm.

    Methods raise errors of `flerm_core.errors`, each with one sentence: `InvalidInput`, `NotFound`,
    `Unreachable`, and `Refused` with its subclasses. A client may be used after a fork: it opens a
    channel of its own there.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | None = None,
        token: str | None = None,
        *,
        patience: float = 10.0,
    ) -> None:
        self.address = address_of(address)
        if self.address.folder is not None:
            with needs("RegistryClient", "client"):
                from flerm_client.registry.folder_backend import FolderBackend

            self._backend = FolderBackend(self.address.folder)
        else:
            # grpc is imported only here: a training process that imports flerm_client needs none.
            with needs("RegistryClient", "client"):
                from flerm_client.registry.connection import Connection
                from flerm_client.registry.grpc_backend import GrpcBackend

            self._backend = GrpcBackend(
                Connection(self.address, token_of(token), patience=patience)
            )

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RegistryClient({self.address.text!r})"

    def close(self) -> None:
        """Closes the connection. The next call would open another."""
        self._backend.close()

    def info(self) -> RegistryInfo:
        """Versions, limits and clock of a server. Raises `Unsupported` for a folder."""
        return self._backend.info()

    def register_family(
        self, name: str, *, description: str = "", blocks: str | Sequence[str] | None = None
    ) -> Family:
        """Describes a family, for the first time or again.

        name: "name" or "team/name".
        blocks: the family's block axes, such as "layers.*".

        A family need not be registered: its first recording creates it.
        """
        return self._backend.register_family(name, description, as_axes(blocks))

    def families(self, prefix: str = "") -> Iterator[Family]:
        """The families whose names begin with `prefix`, sorted by name, fetched page by page."""
        return self._backend.families(prefix)

    def rename_family(self, name: str, new_name: str) -> Family:
        """Renames a family together with its recordings. Idempotent.

        Raises `AlreadyExists` when both names are taken, and `Unsupported` for a folder, whose
        files are not changed.
        """
        return self._backend.rename_family(name, new_name)

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
        """The recordings that pass all filters, newest first, fetched page by page.

        They come without their parameters. A filter that is None lets every recording pass.

        family, role, variant, optimizer, status: the field has exactly this value.
        lr_min, lr_max: range of the base learning rate, both included.
        tags: the recording has all of these tags.
        created_after, created_before: range of the start time, the first included.
        """
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
        return self._backend.recordings(filters)

    def recording(self, recording_id: str) -> Recording:
        """One recording with its parameters."""
        return self._backend.recording(recording_id)

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
        """The measured FSLRs [T, L] of a recording.

        first_step, last_step: range of the steps, both included; None: no limit.
        pattern: only parameters whose names match this shell-style pattern; empty: all.
        max_points: the rows are thinned evenly to at most this number; 0: all rows.
        progress: called after each message with the number of rows received and the number of rows
            to come in all.
        """
        query = TrajectoryQuery(
            recording_id=recording_id,
            first_step=first_step,
            last_step=last_step,
            pattern=pattern,
            max_points=max_points,
        )
        return self._backend.trajectory(query, progress)

    def auxiliary(
        self, recording_id: str, *, first_step: int | None = None, last_step: int | None = None
    ) -> AuxiliaryColumns:
        """The auxiliary scalars [T] and vectors [T, L] of a recording's rows, by name.

        first_step, last_step: range of the steps, both included; None: no limit.
        """
        return self._backend.auxiliary(recording_id, first_step, last_step)

    def matched_rates(self, recording_id: str) -> MatchedRates:
        """The learning rates that a matched run trained at, with the targets behind them.

        Raises `NotFound` for a recording that was not matched.
        """
        found = self.recording(recording_id)
        families = self.families(found.spec.family)
        return matched_rates(
            found,
            self.trajectory(recording_id),
            self.auxiliary(recording_id),
            find=self.recording,
            load=self.trajectory,
            blocks=next(each.blocks for each in families if each.name == found.spec.family),
        )

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
        """Target FSLRs of a family at base learning rate `lr`.

        names, shapes: the parameters of the model that asks; None: those of the base.
        step: only the row at this step; None: all measured steps.
        policy: `interpolate` between the recorded learning rates, `nearest` or `exact`.
        depth: the rule for a model with another number of blocks; empty: the default rule.
        blocks: the block axes, such as "layers.*"; None: found from the names.
        optimizer, optimizer_config, estimator, tags: choose among recordings that differ in these;
            a mixture raises `Ambiguous`.
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
        return self._backend.targets(query)

    def match_cautions(self, targets: Targets, run: RunFacts) -> tuple[str, ...]:
        """When not to trust a match of `run` to `targets`, and what regret to expect, in sentences.

        targets: the answer of `targets`.
        run: what is known of the run.
        """
        here = self._backend
        return match_cautions(targets, run, best=here.best, recording=here.recording)

    def best(
        self,
        family: str,
        *,
        role: str = "base",
        variant: str = "plain",
        optimizer: str = "",
        tags: Mapping[str, str] | None = None,
        pick: Mapping[str, str] | None = None,
        cautions: bool = False,
    ) -> Best:
        """The best base learning rate: recorded, fitted with its spread, and which to try next.

        role, variant, optimizer, tags: only recordings with these.
        pick: setting to value (`{"steps": "300"}`): which experiment, where the family has several
            optimisers or schedules. Of a setting that is not named, the value with most recordings
            counts; `Best.experiment` says which that is, and what else there is.
        cautions: whether `Best.cautions` says when not to trust a match to this family.

        Raises `NotFound` for an unknown family, one without a completed run, and a pick that no
        run fits.
        """
        return self._backend.best(
            BestQuery(
                family=family,
                role=role,
                variant=variant,
                optimizer=optimizer,
                tags=dict(tags or {}),
                pick=dict(pick or {}),
                cautions=cautions,
            )
        )
