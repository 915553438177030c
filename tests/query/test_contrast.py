"""A contrast asks for the difference of two measurements, and of nothing else."""

from dataclasses import replace

import pytest
import torch

import influence.recipes as recipes
from influence.errors import TaskError
from influence.query.contrast import Contrast
from influence.query.pairwise import pairwise
from influence.task import CausalLM
from tests.gradients.conftest import alone


def other_answers(batch):
    """The same texts with their last scored token replaced."""
    tokens, labels = batch.input_ids.clone(), batch.labels.clone()
    for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        tokens[row, length - 1] = labels[row, length - 1] = 5 + row
    return replace(batch, input_ids=tokens, labels=labels)


@pytest.mark.parametrize("name", ["graddot", "ekfac"])
def test_scores_of_a_contrast_are_those_of_a_less_those_of_b(tiny_model, ragged_batch, name):
    model, recipe = tiny_model("llama"), recipes.recipe(name)
    other = other_answers(ragged_batch)
    a, b = (pairwise(model, CausalLM(), [ragged_batch], [asked], recipe) for asked in (ragged_batch, other))
    found = pairwise(model, Contrast(CausalLM()), [ragged_batch], [(ragged_batch, other)], recipe)
    torch.testing.assert_close(found, a - b, rtol=1e-8, atol=1e-10)
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


def test_a_contrast_with_itself_scores_zero(tiny_model, ragged_batch):
    found = pairwise(tiny_model("llama"), Contrast(CausalLM()), [ragged_batch], [(ragged_batch, ragged_batch)])
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_a_contrast_refuses_what_is_no_pair_of_the_same_examples(tiny_model, ragged_batch):
    model, task = tiny_model("llama"), Contrast(CausalLM())
    with pytest.raises(TaskError, match=r"a pair of batches, \(A, B\); found Batch"):
        pairwise(model, task, [ragged_batch], [ragged_batch])
    with pytest.raises(TaskError, match="A has 4 and B has 1"):
        pairwise(model, task, [ragged_batch], [(ragged_batch, alone(ragged_batch, 0))])


def test_a_contrast_samples_labels_only_where_its_task_can():
    class Bare:
        def example_loss(self, model, batch):
            return -CausalLM().measurement(model, batch)

    assert getattr(Contrast(Bare()), "sampled_loss", None) is None
    assert Contrast(CausalLM()).sampled_loss is not None
