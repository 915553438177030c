"""The curvature part of a recipe."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from influence.curvature.damping import Damping


class Curvature(BaseModel):
    """The curvature part: what stands between the query's gradient and the row's.

    Attributes:
        kind: `identity`; `fisher`, the projected Gauss-Newton matrix, fitted to the *stored* rows, so with the data's
            own labels; `kfac` and `ekfac`, over whole gradients, so with `projection: none`.
        damping: λ, relative to each block's mean eigenvalue unless absolute.
        blocks: Of a Fisher: one block a `module`, or one over `all` columns together.
        side: `query` applies the inverse to the query; `both` its root to either side. The scores are the same.
            `cosine` needs `both`, which is its default there.
        rescale: Divide each checkpoint's inverse by the mean absolute value of its entries, as `traker` does; of a
            Fisher over all columns. Scores then have no unit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["identity", "fisher", "kfac", "ekfac"] = "identity"
    damping: Damping = Damping()
    blocks: Literal["module", "all"] = "module"
    side: Literal["query", "both"] | None = None
    rescale: bool = False

    @property
    def whole(self) -> bool:
        """Whether it acts on whole gradients, which no store holds."""
        return self.kind in ("kfac", "ekfac")
