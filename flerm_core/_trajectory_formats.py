"""The forms in which a trajectory leaves Python: an .npz file without pickles, a data frame."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flerm_core._files import atomic_path
from flerm_core.errors import DataLoss, NotFound, Unsupported

if TYPE_CHECKING:
    import pandas

    from flerm_core.trajectory import Trajectory

_FORMAT = "flerm-trajectory-1"
_LISTS = ("names", "shapes", "bands")
_ARRAYS = ("steps", "values", "losses", "learning_rates", "tokens")


def write_file(trajectory: Trajectory, path: str | os.PathLike[str]) -> None:
    """Writes all of `trajectory`. A failed write leaves the old file as it was."""
    header = {"format": _FORMAT, **{name: getattr(trajectory, name) for name in _LISTS}}
    arrays = {name: getattr(trajectory, name) for name in _ARRAYS}
    packed = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with atomic_path(Path(path)) as partial, partial.open("wb") as file:
        np.savez_compressed(file, header=packed, **arrays)


def read_file(path: str | os.PathLike[str], make: type[Trajectory]) -> Trajectory:
    """The trajectory that `write_file` wrote, made by `make`.

    Raises `NotFound` for a missing file, `DataLoss` for a damaged file or another format.
    """
    if not Path(path).is_file():
        raise NotFound(f"path: there is no file {os.fspath(path)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            header: dict[str, Any] = json.loads(file["header"].tobytes())
            if header.get("format") != _FORMAT:
                raise DataLoss(
                    f"{os.fspath(path)} has the format {header.get('format')!r}; this version "
                    f"reads {_FORMAT!r}"
                )
            lists = {name: header[name] for name in _LISTS}
            return make(**lists, **{name: file[name] for name in _ARRAYS})
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataLoss(
            f"{os.fspath(path)} is not a trajectory that can be read: {error}"
        ) from error


def to_dataframe(trajectory: Trajectory) -> pandas.DataFrame:
    """`Trajectory.to_dataframe`, which says what the frame holds and what is raised."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise Unsupported(
            "to_dataframe needs the package pandas, which is not installed: pip install pandas"
        ) from error
    index = pandas.Index(trajectory.steps, name="step")
    tokens = pandas.array(trajectory.tokens, dtype="Int64")
    tokens[trajectory.tokens < 0] = pandas.NA
    logged = {
        "loss": trajectory.losses,
        "learning_rate": trajectory.learning_rates,
        "tokens": tokens,
    }
    values = pandas.DataFrame(trajectory.values, index=index, columns=trajectory.names)
    return pandas.concat([pandas.DataFrame(logged, index=index), values], axis=1)
