"""A recipe: the parts of an influence method, and the named presets.

No method has code of its own. A recipe names its parts, and each room reads its own part: measurement (`task`),
gradient and projection (`gradients`), curvature (`curvature`), comparison (`vectors`). A new method is a new line in
`PRESETS`, or one new part in one new file.

The sign rule, for every recipe except the baselines: **positive = training more on this row raises the measured
output's log-probability (promotes it); negative = opposes it.** The rule of a baseline's scores is in `sign`.
"""

from influence.recipes.checkpoint import Checkpoint
from influence.recipes.curvature import Curvature
from influence.recipes.exact import ExactSettings
from influence.recipes.magnitude import RANK_ONLY, Magnitudes, joint_magnitudes, magnitudes, rank_only_queries
from influence.recipes.method import EXTRA_COPY, Recipe, extra_copy
from influence.recipes.presets import PRESETS, recipe
from influence.recipes.sign import SIGN_RULE, Baseline, sign_rule

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
