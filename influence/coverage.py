"""Which share of a model's trained weights the rows of a run hold. This file imports no torch, as the store doesn't."""

from typing import Any

from pydantic import BaseModel, ConfigDict

SHOWN = 6
"""Kinds of parameters that a sentence names."""


class LeftOut(BaseModel):
    """Trained parameters that are not tracked, all of one kind.

    Attributes:
        pattern: Their names, `*` for a number.
        parameters: How many parameters.
        weights: How many numbers they hold.
        chosen: Whether the default or a glob of `model.layers` leaves them out; else they can't be tracked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str
    parameters: int
    weights: int
    chosen: bool


class Coverage(BaseModel):
    """The share of the trained weights that are tracked, counted in numbers. A weight without a gradient doesn't count.

    The body is what the user would expect to be tracked: the trained weights without the embeddings, the unembedding
    and what globs of `model.layers` leave out. Embeddings that were trained as, or beside, adapters belong to it.

    Attributes:
        trained: Trained weights that got a gradient on a probed batch.
        tracked: Those of them that are tracked.
        body: Weights of the body.
        body_tracked: Those of them that are tracked.
        left_out: What isn't tracked, the most first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trained: int
    tracked: int
    body: int
    body_tracked: int
    left_out: tuple[LeftOut, ...] = ()

    @property
    def share(self) -> float:
        """The share of all trained weights that are tracked."""
        return self.tracked / self.trained if self.trained else 1.0

    @property
    def body_share(self) -> float:
        """The share of the body that is tracked."""
        return self.body_tracked / self.body if self.body else 1.0

    @property
    def summary(self) -> str:
        """One sentence: `68.2 % of 124,439,808 trained weights are tracked, 99.9 % of the body (…)`."""
        whole = f"{percent(self.share)} of {self.trained:,} trained weights are tracked"
        if self.body == self.trained:
            return whole
        rest = "without embeddings, unembedding and what model.layers leaves out"
        return f"{whole}, {percent(self.body_share)} of the body ({rest})"

    @property
    def brief(self) -> str:
        """The two shares alone: `68.2 % of the trained weights tracked, 99.9 % of the body`."""
        whole = f"{percent(self.share)} of the trained weights tracked"
        return whole if self.body == self.trained else f"{whole}, {percent(self.body_share)} of the body"

    def to_dict(self) -> dict[str, Any]:
        """Return the counts with the two shares and the summary."""
        shares = {"share": self.share, "body_share": self.body_share, "summary": self.summary}
        return {**shares, **self.model_dump(mode="json")}

    def missing(self) -> str:
        """Return what of the body isn't tracked: `model.layers.*.mlp.experts.gate_up_proj (2 parameters, …)`."""
        lacking = [part for part in self.left_out if not part.chosen]
        named = [f"{part.pattern} ({_counted(part.parameters)}, {part.weights:,} weights)" for part in lacking[:SHOWN]]
        return "; ".join(named) + ("; …" if len(lacking) > SHOWN else "")


def shares(coverage: Coverage | None) -> dict[str, float | None]:
    """Return the two shares as an answer carries them; None where they weren't measured."""
    return {"coverage": coverage and coverage.share, "body_coverage": coverage and coverage.body_share}


def percent(share: float) -> str:
    """Return a share with one decimal, never rounded up to all of it: `99.9 %`."""
    return "100 %" if share >= 1 else f"{min(99.9, 100 * share):.1f} %"


def _counted(count: int) -> str:
    return f"{count:,} parameter{'' if count == 1 else 's'}"
