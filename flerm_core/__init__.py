"""The mathematics of function-space learning rates (arXiv 2502.17405).

It knows no network and no database, and needs numpy only. `flerm_core.measure` alone imports
torch.
"""

from flerm_core.matching.match import match_targets
from flerm_core.trajectory import Trajectory

__all__ = ["Trajectory", "match_targets"]
