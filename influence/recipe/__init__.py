"""A recipe: the parts of an influence method, and the named presets.

No method has code of its own. A recipe names its parts, and the rooms of the house read the part that is theirs:
measurement (`task`), gradient and projection (`gradients`), curvature (`curvature`), comparison (`vectors`). A new
method is a new line in `PRESETS`, or one new part in one new file.

The sign rule, for every recipe but the baselines: **positive = training more on this row raises the measured output's
log-probability (promotes it); negative = opposes it.** What a baseline's scores say is beside it in `sign`.
"""

from influence.recipe.checkpoint import Checkpoint
from influence.recipe.curvature import Curvature
from influence.recipe.exact import ExactSettings
from influence.recipe.magnitude import RANK_ONLY, Magnitudes, joint_magnitudes, magnitudes, rank_only_queries
from influence.recipe.method import EXTRA_COPY, Recipe, extra_copy
from influence.recipe.presets import PRESETS, recipe
from influence.recipe.sign import SIGN_RULE, Baseline, sign_rule

__all__ = [
    "EXTRA_COPY",
    "PRESETS",
    "RANK_ONLY",
    "SIGN_RULE",
    "Baseline",
    "Checkpoint",
    "Curvature",
    "ExactSettings",
    "Magnitudes",
    "Recipe",
    "extra_copy",
    "joint_magnitudes",
    "magnitudes",
    "rank_only_queries",
    "recipe",
    "sign_rule",
]
