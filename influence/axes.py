"""The letters that name tensor axes, stated once.

    N  examples          S  positions (tokens; height × width of a convolution's output)
    I  inputs of a layer (one more where its bias is tracked)     O  outputs of a layer
    P  projected inputs  Q  projected outputs                     D  columns of a row: the sum of Q·P over modules

The aliases are annotations for readers and for the type checker; nothing is checked at run time. This file imports no
torch, because the store, which imports none either, shares `ModuleColumns` with the capture.
"""

from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

PerExample: TypeAlias = Annotated["Tensor", "N"]
NS: TypeAlias = Annotated["Tensor", "N S"]
NSI: TypeAlias = Annotated["Tensor", "N S I"]
NSO: TypeAlias = Annotated["Tensor", "N S O"]
NQP: TypeAlias = Annotated["Tensor", "N Q P"]
ND: TypeAlias = Annotated["Tensor", "N D"]


class ModuleColumns(BaseModel):
    """Which columns of a row belong to one tracked module, and the shape they had.

    `row[start:stop]` is the module's [Q, P] block in row-major order: entry (q, p) lies at `start + q·P + p`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    outputs: int
    """O, the layer's outputs."""
    inputs: int
    """I, the layer's inputs, one more where the bias is tracked."""
    q: int
    """Q, the outputs after projection."""
    p: int
    """P, the inputs after projection."""
    start: int
    stop: int
