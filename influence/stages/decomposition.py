"""What the groups' partial sums become: merged in their order, decomposed, and saved, some modules a task.

Eigendecompositions take the time of the third power of a layer's width, so that for a large model they are work for
all workers; and no process has to hold more than its own modules' sums.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from influence.artifacts.tensors import load_tensors, save_tensors
from influence.curvature.covariance import CovarianceSums, FactorSettings, ModuleWidths
from influence.curvature.ekfac import EigenvalueSums
from influence.curvature.kfac import decompose
from influence.engine.threads import torch_threads
from influence.errors import InfluenceError

Pass = Literal["covariance", "eigenvalues"]


@dataclass(frozen=True)
class MergeTask:
    """What a worker is sent: some modules, whose partial sums it merges and decomposes.

    Attributes:
        kind: Which pass's sums.
        modules: Whose.
        settings: Of the fit.
        partials: The groups' files, in the order they are merged.
        path: What is written.
        fingerprint: Of all these files.
        threads: Torch's, which decide the last bits.
    """

    kind: Pass
    modules: tuple[ModuleWidths, ...]
    settings: FactorSettings
    partials: tuple[Path, ...]
    path: Path
    fingerprint: str
    threads: int

    @property
    def name(self) -> str:
        """The file that is written, for messages."""
        return f"{self.path.parent.name}/{self.path.stem} ({self.modules[0].name} to {self.modules[-1].name})"


def run_merge(task: MergeTask) -> int:
    """Merge and save; the entry point of a task. Returns the modules done.

    Raises:
        CurvatureError: A factor that isn't finite, or a module that never ran; it is named.
        DigestMismatch: A partial is damaged.
    """
    try:
        with torch_threads(task.threads):
            tensors = _decomposed(task) if task.kind == "covariance" else _averaged(task)
        save_tensors(task.path, tensors, task.fingerprint)
    except InfluenceError as error:
        raise type(error)(f"{task.name}: {error}") from error
    return len(task.modules)


def _decomposed(task: MergeTask) -> dict:
    sums = CovarianceSums(task.modules, task.settings)
    wanted = sums.names()
    for path in task.partials:
        tensors = load_tensors(path, task.fingerprint, wanted)
        sums.merge(CovarianceSums.from_tensors(task.modules, task.settings, tensors))
    return decompose(sums).tensors()


def _averaged(task: MergeTask) -> dict:
    names = tuple(module.name for module in task.modules)
    squares = EigenvalueSums(names)
    for path in task.partials:
        squares.merge(EigenvalueSums.from_tensors(names, load_tensors(path, task.fingerprint, squares.tensor_names())))
    squares.eigenvalues()
    return squares.tensors()
