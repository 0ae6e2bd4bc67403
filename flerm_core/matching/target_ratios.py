"""The FSLRs of one recording over the targets that another gives for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flerm_core.errors import NotFound, join_names
from flerm_core.matching.match import match_rows, thinned_columns
from flerm_core.parameter_names import is_depth_group
from flerm_core.trajectory import Trajectory


def target_ratios(base: Trajectory, other: Trajectory, *, blocks: Sequence[str] = ()) -> Trajectory:
    """The FSLRs of `other` over the targets that `base` gives for the same steps.

    1 is matched, NaN is unmeasured.

    base: the recording that targets are taken from, by the default depth rule. Steps of `other`
        beyond the base's last step are compared with the base's last row.
    other: a recording of a model of the same family. Its depth groups are left out.
    blocks: the family's block axes; empty: they are found from the names.

    Returns a trajectory [T, tensors] without unit at the steps of `other`. Raises `NotFound` for
    tensors that have no counterpart in `base`, where there is no tensor to compare, and for a base
    without rows.
    """
    columns = [at for at, name in enumerate(other.names) if not is_depth_group(name)]
    names = [other.names[at] for at in columns]
    if not names:
        raise NotFound(
            f"names: {join_names(other.names)} are depth groups; there is no tensor to compare"
        )
    targets = match_rows(
        dict(zip(base.names, base.resampled(other.steps).T, strict=True)),
        names,
        whole_run=thinned_columns(base),
        bands=dict(zip(base.names, base.bands, strict=True)),
        blocks=tuple(blocks) or None,
    )
    wanted = np.stack([targets[name] for name in names], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = other.values[:, columns].astype(np.float64) / wanted
    ratios[~np.isfinite(ratios)] = np.nan
    shapes, bands = [other.shapes[at] for at in columns], [other.bands[at] for at in columns]
    return Trajectory(names, shapes, other.steps, ratios, bands=bands)
