"""Parity with kronfluence 1.0.1 (PyPI): the same scores in float64 under the empirical Fisher, with padding.

It divides Σ g gᵀ by the tokens where we divide by the examples, so its K-FAC lacks the tokens per example, T/N; its
scores have the sign of the measurement's gradient times the loss's, and no 1/N. Its EK-FAC needs nothing put back.
Scores are compared, never eigenvectors; nor those of a layer that is used twice, of which its scores keep one use only,
also under `has_shared_parameters`. It is installed without its own dependencies: one of them, torchvision, which
its code never imports, breaks transformers wherever it was built for another torch.
"""

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from influence.model.layers import LayerSettings, tracked_layers
from influence.query.pairwise import pairwise
from influence.recipes import recipe
from influence.task import CausalLM
from tests.gradients.conftest import examples
from tests.reference.toys import Pictures, PictureTask, pictures, plain_loss

kronfluence = pytest.importorskip("kronfluence", reason="pip install --no-deps kronfluence==1.0.1: see make test")
arguments = pytest.importorskip("kronfluence.utils.common.factor_arguments")
score_arguments = pytest.importorskip("kronfluence.utils.common.score_arguments")

DAMPING = 0.1
"""Of the mean eigenvalue: its heuristic, which it takes where no damping is named."""


@pytest.fixture(autouse=True)
def little_garbage() -> Iterator[None]:
    """It collects garbage after every step, half a second of looking at modules that stay."""
    gc.freeze()
    yield
    gc.unfreeze()


class Rows(Dataset):
    """Examples one by one, as dictionaries of tensors."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}


class Summed(kronfluence.Task):
    """Our losses, summed over a batch, for its analyzer."""

    def __init__(self, measure: Any, names: list[str]) -> None:
        self.measure, self.names = measure, names

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> torch.Tensor:
        assert not sample
        return self.measure(model, batch).sum()

    def compute_measurement(self, batch: Any, model: nn.Module) -> torch.Tensor:
        return self.measure(model, batch).sum()

    def get_influence_tracked_modules(self) -> list[str]:
        return self.names

    def get_attention_mask(self, batch: Any) -> torch.Tensor | None:
        return batch.get("attention_mask")


def theirs(model, measure, layers, train, queries, strategy, folder):
    """Its scores [queries, rows], by its own pytest arguments."""
    task = Summed(measure, [layer.name for layer in layers])
    analyzer = kronfluence.Analyzer(
        "parity",
        kronfluence.prepare_model(model, task),
        task,
        cpu=True,
        disable_tqdm=True,
        output_dir=str(folder),
    )
    factors = arguments.pytest_factor_arguments(strategy)
    analyzer.fit_all_factors("factors", Rows(train), per_device_batch_size=3, factor_args=factors)
    analyzer.compute_pairwise_scores(
        "scores",
        "factors",
        Rows(queries),
        Rows(train),
        per_device_query_batch_size=2,
        per_device_train_batch_size=3,
        score_args=score_arguments.pytest_score_arguments(damping_factor=None),
    )
    return analyzer.load_pairwise_scores("scores")["all_modules"]


def ours(strategy):
    if strategy == "identity":
        return recipe("graddot", projection={"kind": "none"})
    return recipe(strategy, damping=DAMPING, factors={"labels": "empirical"})


def worst(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("strategy", ["identity", "kfac", "ekfac"])
@pytest.mark.parametrize("family", ["llama", "gptneox"])
def test_a_language_models_scores_are_kronfluences(tiny_model, ragged_batch, tmp_path, family, strategy):
    model, settings = tiny_model(family), LayerSettings(include=("*.0.*",), bias=True)
    layers = tracked_layers(model, settings)
    single = examples(ragged_batch)
    found = pairwise(model, CausalLM(), single, [ragged_batch], ours(strategy), settings)

    tensors = {name: getattr(ragged_batch, name) for name in ("input_ids", "attention_mask", "labels")}
    assert tensors["attention_mask"].dtype == torch.int64

    def measure(model, batch):
        return plain_loss(model, SimpleNamespace(**batch))

    their = theirs(model, measure, layers, tensors, tensors, strategy, tmp_path)
    # Ours is of the log-likelihood, minus the loss: −∇m is the measurement's gradient there, and the signs agree.
    expected = their if strategy == "identity" else their / 4
    if strategy == "kfac":
        expected = expected / (ragged_batch.tokens / 4)
    assert worst(found, expected) < 1e-8


@pytest.mark.parametrize("strategy", ["kfac", "ekfac"])
def test_scores_of_convolutions_are_kronfluences(tmp_path, strategy):
    class Convolutions(nn.Module):
        """What both can do: the same padding on either side."""

        def __init__(self) -> None:
            super().__init__()
            toy = Pictures()
            self.first, self.third = toy.first, nn.Conv2d(3, 4, 3, padding=1, stride=2).double()
            self.out = toy.out

        def forward(self, images):
            hidden = torch.tanh(self.third(torch.tanh(self.first(images))))
            return self.out(hidden.flatten(2).mean(2))

    model, (images, labels) = Convolutions(), pictures(6)
    settings = LayerSettings(include=("first", "third"), bias=True)
    layers = tracked_layers(model, settings)
    method = ours(strategy)
    positions = {"first": 4 * 3, "third": 2 * 2}
    found = pairwise(model, PictureTask(), [(images, labels)], [(images[:2], labels[:2])], method, settings)

    def measure(model, batch):
        return PictureTask().example_loss(model, (batch["images"], batch["labels"]))

    expected = torch.zeros(2, 6, dtype=torch.float64)
    train = {"images": images, "labels": labels}
    queries = {"images": images[:2], "labels": labels[:2]}
    for layer in layers:
        # Layer by layer: each has its own positions an example.
        fresh = Convolutions()
        fresh.load_state_dict(model.state_dict())
        their = theirs(fresh, measure, [layer], train, queries, strategy, tmp_path / layer.name)
        expected += their / 6 / (positions[layer.name] if strategy == "kfac" else 1)
    assert worst(found, expected) < 1e-8
