"""The half of `RegistryClient` that writes: recordings, their rows, their end, their tags."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from flerm_client.registry.columns import measurements, parameter_list
from flerm_core.errors import InvalidInput
from flerm_core.records.recording import (
    Attempt,
    Ending,
    EstimatorSettings,
    Recording,
    RecordingSpec,
)
from flerm_core.records.validation import validate_spec

if TYPE_CHECKING:
    from flerm_client.registry.backend import RegistryBackend


class RecordingWriter:
    """What `RegistryClient` writes: recordings, rows, ends and tags."""

    _backend: RegistryBackend

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
        """Opens a recording, and returns its id. Starting the same id again changes nothing.

        family: the family's name, "name" or "team/name".
        lr: the base learning rate, the recording's key within the family.
        names, shapes: the L tensors whose FSLRs will be appended.
        bands: the kind of each tensor; None: found from names and shapes.
        seed: the random seed of the run.
        role: "base" for the model that is tuned, "scaled" for a larger one.
        variant: "plain", "matched", or another name of how the run was trained.
        optimizer, optimizer_config: class name and settings; targets are never mixed from
            recordings that differ in them.
        config: the model's configuration, JSON-like.
        estimator: how FSLRs were measured; None: the default settings.
        tags: labels to filter by.
        recording_id: a UUID; None: a new one.
        resume_at: the step from which a new attempt of the recording replaces the earlier rows;
            None: the first attempt. Needs `recording_id`.
        """
        if resume_at is not None and recording_id is None:
            raise InvalidInput(
                f"resume_at: {resume_at} needs the recording_id of the recording to resume"
            )
        spec = RecordingSpec(
            id=recording_id or str(uuid.uuid4()),
            family=family,
            lr=float(lr),
            parameters=parameter_list(names, shapes, bands),
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
        self._backend.start(spec, None if resume_at is None else Attempt(resume_at=resume_at))
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
        """Adds T rows, and returns when they are committed.

        A row that is stored already with the same content is skipped. Raises `AlreadyExists` where
        a step is stored with other content.

        recording_id: a recording that was started.
        steps: the optimiser steps of the rows, counted from 1.
        values [T, L]: FSLRs in the order of the recording's names, in output units per unit
            learning rate; NaN: not measured.
        losses, learning_rates [T]: the loss and the schedule's learning rate; NaN: not logged.
        tokens [T]: the number of tokens seen so far.
        scalars: further numbers by name, [T] each; NaN: none.
        vectors: further numbers for each tensor by name, [T, L] each. The method `auxiliary` reads
            scalars and vectors back.
        """
        rows = measurements(
            steps,
            values,
            losses=losses,
            learning_rates=learning_rates,
            tokens=tokens,
            scalars=scalars,
            vectors=vectors,
        )
        self._backend.append(recording_id, rows)

    def finish(
        self,
        recording_id: str,
        status: str = "completed",
        *,
        final_loss: float | None = None,
        final_step: int | None = None,
        tokens: int | None = None,
        remarks: Sequence[str] = (),
    ) -> Recording:
        """Ends a recording. Idempotent.

        recording_id: a recording that was started.
        status: completed, diverged, failed or interrupted.
        final_loss: the mean of the last logged losses; None: `best` leaves the recording out.
        final_step: the last optimiser step; None: unknown.
        tokens: the number of tokens seen in all; None: unknown.
        remarks: sentences on what was not measured or matched, at most 20 of 1,000 characters.
        """
        ending = Ending(
            status=status,
            final_loss=final_loss,
            final_step=final_step,
            tokens=tokens,
            remarks=tuple(remarks),
        )
        return self._backend.finish(recording_id, ending)

    def judge(
        self,
        recording_id: str,
        final_loss: float | None,
        *,
        status: str = "completed",
        remarks: Sequence[str] = (),
    ) -> Recording:
        """Sets the final loss and the status of an ended run, where another program found them.

        final_loss: the loss that counts; None: there is none.
        status: as in `finish`.
        remarks: sentences that are added to the run's own.

        The answer is kept as the end of a new attempt, in which nothing is measured.
        """
        found = self._backend.recording(recording_id)
        last = max(found.final_step or 0, found.last_step)
        self._backend.start(found.spec, Attempt(resume_at=last + 1))
        ending = replace(
            Ending.of(found),
            status=status,
            final_loss=final_loss,
            final_step=last,
            remarks=(*found.remarks, *remarks),
        )
        return self._backend.finish(recording_id, ending)

    def tag(
        self,
        recording_id: str,
        tags: Mapping[str, str] | None = None,
        *,
        remove: Sequence[str] = (),
    ) -> Recording:
        """Sets `tags` of a recording and removes those with the keys `remove`. Idempotent.

        The recording may have any status. Raises `Unsupported` for a folder.
        """
        return self._backend.tag(recording_id, dict(tags or {}), remove)

    def delete(self, recording_id: str) -> int:
        """Removes a recording with all its attempts; the number of rows that are removed.

        The number is 0 when there is no such recording. Raises `Unsupported` for a folder.
        """
        return self._backend.delete(recording_id)
