"""What the groups' partial sums become: merged in their order, decomposed, and saved, some modules a task.

Eigendecompositions take the time of the third power of a layer's width, so that for a large model they are work for
all workers; and no process has to hold more than its own modules' sums.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from influence.artifacts.tensors import load_tensors, remove_tensors
from influence.curvature.covariance import CovarianceSums, ModuleWidths
from influence.curvature.ekfac import EigenvalueSums
from influence.curvature.kfac import decompose
from influence.engine.stage import Stage, Task
from influence.stages.factor_group import FactorPartials


@dataclass
class FactorDecomposition(Stage):
    """The partial sums of one pass at one checkpoint, merged: eigenbases, or EK-FAC's eigenvalues.

    Attributes:
        sums: The pass.
        modules: Of each task: no process holds the sums of all.
    """

    sums: FactorPartials
    modules: tuple[tuple[ModuleWidths, ...], ...]

    name = "factors"
    local = ("modules",)

    def __post_init__(self) -> None:
        """Note the groups' files, in the order they are merged, and torch's threads, which decide the last bits."""
        self.partials = tuple(task.file for task in self.sums.cut())
        self.threads = self.sums.spec.threads

    @property
    def key(self) -> str:
        """That of the sums."""
        return self.sums.key

    def cut(self) -> list[Task]:
        """Return a task for some modules each."""
        names = [f"({modules[0].name} to {modules[-1].name})" for modules in self.modules]
        return [
            Task(self, number, f"{path.parent.name}/{path.stem} {names[number]}", self.modules[number], path, self.key)
            for number, path in enumerate(self.sums.products)
        ]

    def run(self, task: Task, session: Any) -> None:
        """Merge and save.

        Raises:
            CurvatureError: A factor that isn't finite, or a module that never ran; it is named.
            DigestMismatch: A partial is damaged.
        """
        task.save(self._decomposed(task.span) if self.sums.kind == "covariance" else self._averaged(task.span))

    def merge(self) -> None:
        """Remove the partial sums."""
        for path in self.partials:
            remove_tensors(path)

    def _decomposed(self, modules: tuple[ModuleWidths, ...]) -> dict[str, Tensor]:
        settings = self.sums.factors.settings
        sums = CovarianceSums(modules, settings)
        wanted = sums.names()
        for path in self.partials:
            sums.merge(CovarianceSums.from_tensors(modules, settings, load_tensors(path, self.key, wanted)))
        return decompose(sums).tensors()

    def _averaged(self, modules: tuple[ModuleWidths, ...]) -> dict[str, Tensor]:
        names = tuple(module.name for module in modules)
        squares = EigenvalueSums(names)
        for path in self.partials:
            squares.merge(EigenvalueSums.from_tensors(names, load_tensors(path, self.key, squares.tensor_names())))
        squares.eigenvalues()
        return squares.tensors()
