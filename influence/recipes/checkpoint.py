"""The checkpoints part of a recipe."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Checkpoint(BaseModel):
    """One of the checkpoints that scores are summed over.

    Attributes:
        path: Its folder; `influence.pairwise` is given the weights themselves.
        weight: What its inner products count for: in TracIn its learning rate η. Set it for all checkpoints or for
            none, which means their mean. Where a curvature is inverted weights are divided by their sum, so that the
            unit stays.
        state: Where its optimiser's second moments are, for gradients that Adam scales; see `GradientSettings`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[str, Field(min_length=1)] | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    state: Annotated[str, Field(min_length=1)] | None = None
