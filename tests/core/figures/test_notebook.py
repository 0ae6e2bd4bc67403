"""What a notebook shows of a trajectory."""

from __future__ import annotations

from tests.core.samples import trajectory


def test_a_notebook_gets_the_figure_and_a_table():
    shown = trajectory([[1, 2, 3, 7], [10, 20, 30, 70]])._repr_mimebundle_()
    assert set(shown) == {"application/vnd.plotly.v1+json", "text/html", "text/plain"}
    assert "<td>query/key</td><td>3</td><td>2</td><td>20</td>" in shown["text/html"]
    assert (
        shown["application/vnd.plotly.v1+json"]
        == trajectory([[1, 2, 3, 7], [10, 20, 30, 70]]).figure()
    )
