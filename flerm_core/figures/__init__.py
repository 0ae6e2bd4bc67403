"""The paper's figures as plotly figure dictionaries: `{"data": [...], "layout": {...}}`.

The dictionaries are made without plotly. Pages give them to plotly.js, `flerm plot` gives them to
plotly, and a notebook gives them to its own renderer, so all three show the same figure. Numbers
are rounded to five digits. Names are escaped, because plotly reads text as a kind of HTML, and a
user may choose any name.
"""

from flerm_core.figures.style import Figure
from flerm_core.figures.target_ratio_figure import ratio_figure
from flerm_core.figures.trajectory_figure import fslr_figure, run_figure
from flerm_core.figures.transfer_figure import transfer_figure

__all__ = [
    "Figure",
    "fslr_figure",
    "ratio_figure",
    "run_figure",
    "transfer_figure",
]
