"""What a worker is told of a run: everything that decides a row, and nothing else."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from influence.artifacts.field import RunPath
from influence.config import RunConfig
from influence.curvature.covariance import FactorSettings
from influence.data.dataset import DataSettings
from influence.data.identity import DataIdentity
from influence.gradients.adam import GradientSettings
from influence.gradients.projection import ProjectionSettings
from influence.model.load import ModelSettings
from influence.recipes import Baseline, Recipe
from influence.task import Measured, TaskSettings

TOKEN_BUDGET = {"cpu": 2_048, "cuda": 16_384}
"""Padded tokens of a batch where nobody sets them: on a CPU activations stay in the cache, on a GPU they fill it."""


class FactorFiles(BaseModel):
    """Where the Kronecker factors of one checkpoint of a run are, for a projection that they are folded into.

    Attributes:
        checkpoint: Which of the recipe's checkpoints they are fitted to, from 0; the model itself where it names none.
        folder: That holds them.
        parts: How many files each pass has: some modules in each, in their order.
        rows: N of the run, which a bounded damping of the projection is held to.
        fingerprint: That these files carry.
        settings: Of the fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: int = 0
    folder: RunPath
    parts: int
    rows: int
    fingerprint: str
    settings: FactorSettings

    @property
    def bases(self) -> tuple[Path, ...]:
        """The eigenbases' files."""
        return self._paths("factors")

    @property
    def eigenvalues(self) -> tuple[Path, ...]:
        """The files of EK-FAC's eigenvalues."""
        return self._paths("eigenvalues")

    def _paths(self, stem: str) -> tuple[Path, ...]:
        if self.parts == 1:
            return (self.folder / f"{stem}.safetensors",)
        return tuple(self.folder / f"{stem}-{n:03d}-of-{self.parts:03d}.safetensors" for n in range(self.parts))


class CheckpointFiles(BaseModel):
    """One checkpoint whose gradients are a part of a row.

    Attributes:
        path: Its folder; None for the model itself.
        state: Its optimiser's second moments, where gradients are divided by them.
        share: What its losses and weights count for in a row's, a mean over the checkpoints.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = None
    state: str | None = None
    share: float = 1.0


class CaptureSpec(BaseModel):
    """Everything that decides a row, and nothing else; small, and sent to workers with their tasks.

    Attributes:
        measurement: What queries measure, which decides what a row is the gradient of.
        checkpoints: Whose gradients stand side by side in a row, at least one.
        factors: What a whitened projection, or one on eigenvectors, is made with, of each checkpoint; none for any
            other.
        baseline: What rows are in the place of gradients: with `repsim` mean last hidden states.
        drawn: What trak's projector drew for each checkpoint when the run was begun, as `drawn` writes it; nothing is
            compared where it is empty.
        digests: What a worker must find of the model, its tokeniser and the checkpoints, in this order, as the run's
            manifest has it; nothing is compared where it is empty.
        identity: Of the run whose rows are read; None while there is no run yet.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSettings
    data: DataSettings
    task: TaskSettings
    measurement: Measured = "log_likelihood"
    gradient: GradientSettings = GradientSettings()
    checkpoints: tuple[CheckpointFiles, ...] = (CheckpointFiles(),)
    projection: ProjectionSettings
    baseline: Baseline | None = None
    factors: tuple[FactorFiles, ...] = ()
    drawn: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    identity: DataIdentity | None = None
    token_budget: int | None
    threads: int
    device: Literal["auto", "cpu", "cuda"]

    @classmethod
    def of(cls, config: RunConfig, factors: tuple[FactorFiles, ...] = (), drawn: tuple[str, ...] = ()) -> Self:
        """Return the part of a configuration that decides its rows.

        Args:
            config: The run.
            factors: Of the run's checkpoints. Without them a projection that needs them is taken at random instead, of
                the same widths: for the steps that come before there are factors.
            drawn: As the run's manifest has it, once there is one.
        """
        recipe = config.recipe.stored
        projection = recipe.projection
        if projection.folds and not factors:
            projection = projection.model_copy(update={"rows": "random"})
        return cls(
            model=config.model,
            data=config.data,
            task=config.task,
            measurement=recipe.measurement,
            gradient=recipe.gradient,
            checkpoints=checkpoint_files(recipe),
            projection=projection,
            baseline=recipe.baseline,
            factors=factors if projection.folds else (),
            drawn=drawn,
            token_budget=config.cluster.token_budget,
            threads=config.cluster.threads_per_worker,
            device=config.cluster.device,
        )

    @property
    def projects_apart(self) -> bool:
        """Whether each checkpoint's gradients are divided or projected by numbers of its own."""
        return self.projection.kind == "trak" or self.projection.folds or self.gradient.kind == "adam"

    @property
    def row_is(self) -> str:
        """What a row is, for messages."""
        return "gradient" if self.baseline is None else "mean last hidden state"

    def resolved(self, dtype: str, device: Literal["cpu", "cuda"]) -> "CaptureSpec":
        """Return the specification with everything decided that was left to the device."""
        model = self.model.model_copy(update={"dtype": dtype})
        budget = self.token_budget or TOKEN_BUDGET[device]
        return self.model_copy(update={"model": model, "device": device, "token_budget": budget})

    def unprojected(self) -> "CaptureSpec":
        """Return the specification without its projection: what a process must load anew when it changes."""
        anew = {"projection": ProjectionSettings(), "factors": (), "drawn": (), "digests": (), "identity": None}
        return self.model_copy(update=anew)


def checkpoint_files(recipe: Recipe) -> tuple[CheckpointFiles, ...]:
    """Return whose gradients stand side by side in a row: the recipe's checkpoints, or the model alone.

    Learning rates decide nothing of a row; where rows have weights, the checkpoints' shares in their mean do.
    """
    count = len(recipe.checkpoints) or 1
    shares = recipe.checkpoint_shares(count) if recipe.weighted else (1 / count,) * count
    paths = [checkpoint.path for checkpoint in recipe.checkpoints] or [None]
    return tuple(
        CheckpointFiles(path=path, state=state, share=share)
        for path, state, share in zip(paths, recipe.optimiser_states(count), shares, strict=True)
    )
