"""The figure of FSLRs over targets."""

from __future__ import annotations

from flerm_core.figures import (
    ratio_figure,
)
from tests.core.samples import trajectory


def test_the_ratio_figure_has_a_line_at_1():
    assert ratio_figure(trajectory([[1, 1, 1, 1]]))["layout"]["shapes"][0]["y0"] == 1
