"""What a worker is told of a run: everything that decides a row, and nothing else."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from influence.config import RunConfig
from influence.curvature.covariance import FactorSettings
from influence.data.dataset import DataSettings
from influence.gradients.projection import ProjectionSettings
from influence.model.load import ModelSettings
from influence.task import TaskSettings

TOKEN_BUDGET = {"cpu": 2_048, "cuda": 16_384}
"""Padded tokens of a batch where nobody sets them: on a CPU activations stay in the cache, on a GPU they fill it."""


class FactorFile(BaseModel):
    """Where a run's Kronecker factors are, for a projection that they are folded into."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    fingerprint: str
    settings: FactorSettings


class CaptureSpec(BaseModel):
    """Everything that decides a row, and nothing else; small, and sent to workers with their tasks.

    Attributes:
        factors: What a whitened projection, or one on eigenvectors, is made with; None for any other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSettings
    data: DataSettings
    task: TaskSettings
    projection: ProjectionSettings
    factors: FactorFile | None = None
    token_budget: int | None
    threads: int
    device: Literal["auto", "cpu", "cuda"]

    @classmethod
    def of(cls, config: RunConfig, factors: FactorFile | None = None) -> Self:
        """Return the part of a configuration that decides its rows.

        Args:
            config: The run.
            factors: Of the run. Without them a projection that needs them is taken at random instead, of the same
                widths: for the steps that come before there are factors.
        """
        projection = config.recipe.stored.projection
        if projection.folds and factors is None:
            projection = projection.model_copy(update={"rows": "random"})
        return cls(
            model=config.model,
            data=config.data,
            task=config.task,
            projection=projection,
            factors=factors if projection.folds else None,
            token_budget=config.cluster.token_budget,
            threads=config.cluster.threads_per_worker,
            device=config.cluster.device,
        )

    def resolved(self, dtype: str, device: Literal["cpu", "cuda"]) -> "CaptureSpec":
        """Return the specification with everything decided that was left to the device."""
        model = self.model.model_copy(update={"dtype": dtype})
        budget = self.token_budget or TOKEN_BUDGET[device]
        return self.model_copy(update={"model": model, "device": device, "token_budget": budget})

    def unprojected(self) -> "CaptureSpec":
        """Return the specification without its projection: what a process must load anew when it changes."""
        return self.model_copy(update={"projection": ProjectionSettings(), "factors": None})
