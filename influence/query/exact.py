"""Queries made ready for exact scoring: whole gradients under the inverse curvature, module by module."""

from collections.abc import Sequence

from torch import Tensor

from influence.axes import ND, ModuleColumns
from influence.curvature.kfac import KroneckerCurvature


def preconditioned(gradients: ND, modules: Sequence[ModuleColumns], curvature: KroneckerCurvature) -> list[Tensor]:
    """Return (H + λ)⁻¹ u of each module, for queries' whole gradients u = −∇m.

    Args:
        gradients: [m, D], unprojected: the modules' blocks are whole weight gradients.
        modules: Their columns, in the order of the curvature's.
        curvature: K-FAC's or EK-FAC's.

    Returns:
        For each module [m, O, I], in the dtype of the gradients.
    """
    matrices = []
    for number, module in enumerate(modules):
        block = gradients[:, module.start : module.stop].unflatten(1, (module.q, module.p))
        matrices.append(curvature.apply(number, block).contiguous())
    return matrices
