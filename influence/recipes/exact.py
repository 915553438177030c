"""What decides among the rows that an index proposes."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from influence.curvature.damping import Damping


class ExactSettings(BaseModel):
    """The second step of a query: whole gradients of the rows that the index proposes, under the full curvature.

    Attributes:
        kind: `ekfac` or `kfac`, what decides; `none` leaves the index's own scores.
        damping: λ of that curvature; see `curvature.damping`. By default as little as orders rows best on small models,
            and more where scores would promise more than any row's loss.
        candidates: The rows proposed for each side, whose gradients are computed again; None scores every row.
        lexical: Whether BM25 proposes too, as many.
        rank: Compress each query's matrices to this rank first; None keeps them whole.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none", "kfac", "ekfac"] = "none"
    damping: Damping = Damping(kind="bounded", value=0.01)
    candidates: Annotated[int, Field(ge=1)] | None = 200
    lexical: bool = True
    rank: Annotated[int, Field(ge=1)] | None = None
