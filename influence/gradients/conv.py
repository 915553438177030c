"""The projected per-example gradient of `nn.Conv2d`.

A convolution is a linear layer over patches: a[n,s,:] is the patch under output position s, flattened to
I = channels · kernel height · kernel width in the order of the weight, and g[n,s,:] the gradient there. Projecting the
patches with R_i is itself a convolution with R_i as its kernel, so patches are only unfolded where they are kept whole.

Source: Grosse & Martens 2016, "A Kronecker-factored approximate Fisher matrix for convolution layers", section 3.
"""

from typing import Any

import torch
from torch import Tensor, nn

from influence.errors import CaptureError


def project_patches(module: nn.Conv2d, inputs: Tensor, side: Tensor | None, bias: bool) -> Tensor:
    """Return R_i a for every output position, [N, S, P] with S = output height × width.

    Args:
        module: The convolution, for its kernel, stride, padding and dilation; groups = 1, zero padding.
        inputs: Its input, [N, channels, height, width].
        side: R_i, [P, I], one column more where `bias`; None keeps the patches.
        bias: Append a 1 to every patch.

    Raises:
        CaptureError: The padding is not zeros.
    """
    if module.padding_mode != "zeros":
        raise CaptureError(
            f"A Conv2d with padding_mode={module.padding_mode!r} can't be tracked: use zeros, or exclude it."
        )
    kernel = (int(module.kernel_size[0]), int(module.kernel_size[1]))
    before, after = _padding(module, kernel)
    inputs = nn.functional.pad(inputs, (before[1], after[1], before[0], after[0]))
    if side is None:
        patches = nn.functional.unfold(inputs, kernel, dilation=module.dilation, stride=module.stride).transpose(1, 2)
        return torch.cat([patches, patches.new_ones(*patches.shape[:2], 1)], dim=2) if bias else patches
    weight = (side[:, :-1] if bias else side).reshape(-1, inputs.shape[1], *kernel)
    shift = side[:, -1] if bias else None
    steps: dict[str, Any] = {"stride": module.stride, "dilation": module.dilation}
    projected = nn.functional.conv2d(inputs, weight, shift, **steps)
    return projected.flatten(2).transpose(1, 2)


def output_positions(grads: Tensor) -> Tensor:
    """View output gradients [N, O, height, width] as [N, S, O]."""
    return grads.flatten(2).transpose(1, 2)


def _padding(module: nn.Conv2d, kernel: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the zeros added before and after, (height, width) each; `same` may add one more after than before."""
    if isinstance(module.padding, str):
        if module.padding == "valid":
            return (0, 0), (0, 0)
        total = [int(d) * (k - 1) for d, k in zip(module.dilation, kernel, strict=True)]
        before = (total[0] // 2, total[1] // 2)
        return before, (total[0] - before[0], total[1] - before[1])
    sides = (int(module.padding[0]), int(module.padding[1]))
    return sides, sides
