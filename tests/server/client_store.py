"""The store of a server, reached by `RegistryClient`, for the suite that tests the store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flerm_client import RegistryClient
from flerm_core.errors import FlermError
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.packing import unpack
from flerm_core.records.recording import Attempt, Ending, Family, Recording, RecordingSpec
from flerm_core.trajectory import Trajectory
from flerm_server.store.interface import Appended, Batch, Started
from tests.server.grpc_store import GrpcStore


class ClientStore(GrpcStore):
    """What the client offers, by the client; numbered attempts, leases and pages, over gRPC."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.client = RegistryClient(f"grpc://{address}")

    def register_family(
        self, name, *, description="", blocks: Sequence[str] = (), created_by=""
    ) -> Family:
        return self.client.register_family(name, description=description, blocks=blocks)

    def family(self, name: str) -> Family:
        return next(each for each in self.client.families(name) if each.name == name)

    def rename_family(self, name: str, new_name: str) -> Family:
        return self.client.rename_family(name, new_name)

    def tag(self, recording_id: str, tags, remove: Sequence[str] = ()) -> Recording:
        return self.client.tag(recording_id, tags, remove=remove)

    def delete(self, recording_id: str) -> int:
        return self.client.delete(recording_id)

    def start(
        self, spec: RecordingSpec, attempt: Attempt | None = None, *, created_by=""
    ) -> Started:
        if attempt is not None or spec != given_to_client(spec):
            return super().start(spec, attempt)
        try:
            there = self.client.recording(spec.id).attempt
        except FlermError:
            there = 0
        parameters = spec.parameters
        self.client.start_recording(
            spec.family,
            spec.lr,
            parameters.names,
            parameters.shapes,
            bands=parameters.bands,
            recording_id=spec.id,
            seed=spec.seed,
            role=spec.role,
            variant=spec.variant,
            optimizer=spec.optimizer,
            config=spec.config,
            optimizer_config=spec.optimizer_config,
            estimator=spec.estimator,
            tags=spec.tags,
        )
        return Started(spec.id, there or 1, not there)

    def append_many(self, batches: Sequence[Batch]) -> list[Appended | FlermError]:
        (batch, *more) = batches
        if more or batch.attempt or batch.acknowledged_step is not None:
            return super().append_many(batches)
        try:
            before = self.client.recording(batch.recording_id).rows
            self._append(batch.recording_id, batch.rows)
        except FlermError as error:
            return [error]
        new = self.client.recording(batch.recording_id).rows - before
        return [Appended(len(batch.rows), len(batch.rows) - new)]

    def _append(self, recording_id: str, rows: MeasurementBatch) -> None:
        auxiliary = [each for each in rows.auxiliary if each is not None]
        self.client.append(
            recording_id,
            rows.steps,
            np.stack([unpack(values, len(values) // 4)[0] for values in rows.fslr]),
            losses=[np.nan if loss is None else loss for loss in rows.losses],
            learning_rates=[np.nan if rate is None else rate for rate in rows.learning_rates],
            tokens=[np.nan if count is None else count for count in rows.tokens],
            scalars={name: [value] for each in auxiliary for name, value in each.scalars.items()},
            vectors={name: [value] for each in auxiliary for name, value in each.vectors.items()},
        )

    def finish(
        self,
        recording_id: str,
        attempt: int,
        ending: Ending,
        *,
        acknowledged_step: int | None = None,
    ) -> Recording:
        if attempt or acknowledged_step is not None:
            return super().finish(
                recording_id, attempt, ending, acknowledged_step=acknowledged_step
            )
        return self.client.finish(
            recording_id,
            ending.status,
            final_loss=ending.final_loss,
            final_step=ending.final_step,
            tokens=ending.tokens,
            remarks=ending.remarks,
        )

    def recording(self, recording_id: str) -> Recording:
        return self.client.recording(recording_id)

    def trajectory(self, recording_id: str) -> Trajectory:
        return self.client.trajectory(recording_id)

    def close(self) -> None:
        self.client.close()
        super().close()


def given_to_client(spec: RecordingSpec) -> RecordingSpec:
    """`spec` as far as a client can say it: versions, world size and targets are what a training
    run knows.
    """
    return RecordingSpec(
        id=spec.id,
        family=spec.family,
        lr=spec.lr,
        parameters=spec.parameters,
        seed=spec.seed,
        role=spec.role,
        variant=spec.variant,
        optimizer=spec.optimizer,
        optimizer_config=spec.optimizer_config,
        config=spec.config,
        estimator=spec.estimator,
        tags=spec.tags,
    )
