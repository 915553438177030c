"""Representation similarity against one example at a time, unpadded, and a cosine written out."""

import pytest
import torch
from torch import nn

from influence.baselines import repsim
from influence.errors import DataError, ModelError
from tests.gradients.conftest import examples

FAMILIES = ["gpt2", "gptneox", "llama", "qwen3", "bert", "lora"]


def mean_last_hidden_state(model, single):
    """What `output_hidden_states` gives last, which the model's own head reads."""
    with torch.no_grad():
        found = model(input_ids=single.input_ids, attention_mask=single.attention_mask, output_hidden_states=True)
    return found.hidden_states[-1][0].mean(dim=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_representations_are_the_mean_last_hidden_state_of_each_example_alone(tiny_model, ragged_batch, family):
    model = tiny_model(family)
    slow = torch.stack([mean_last_hidden_state(model, single) for single in examples(ragged_batch)])
    torch.testing.assert_close(repsim.representations(model, [ragged_batch]), slow, rtol=1e-9, atol=1e-12)


def test_scores_are_cosines_and_one_on_the_diagonal(tiny_model, ragged_batch):
    found = repsim.representations(tiny_model("llama"), examples(ragged_batch))
    prepared = repsim.fit(found)
    assert prepared.rows == 4
    scores = prepared.scores(found[1:])
    torch.testing.assert_close(scores, nn.functional.cosine_similarity(found[1:, None], found[None], dim=2))
    torch.testing.assert_close(scores.diagonal(offset=1), torch.ones(3, dtype=torch.float64))


def test_a_row_of_zeros_scores_zero():
    assert torch.equal(repsim.fit(torch.zeros(1, 3)).scores(torch.ones(2, 3)), torch.zeros(2, 1))


def test_what_padding_holds_changes_nothing(tiny_model, ragged_batch):
    model = tiny_model("bert")
    plain = repsim.representations(model, [ragged_batch])
    model.bert.register_forward_hook(lambda module, args, output: _spoil_padding(output, ragged_batch))
    assert torch.equal(repsim.representations(model, [ragged_batch]), plain)


def _spoil_padding(output, batch):
    output.last_hidden_state[batch.attention_mask == 0] = torch.inf


def test_hidden_states_that_are_not_finite_name_the_examples(tiny_model, ragged_batch):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    with pytest.raises(ModelError, match=r"examples \[0, 1, 2, 3\] \(4 in all\) are not finite"):
        repsim.representations(model, [ragged_batch])


def test_a_model_without_a_body_and_batches_without_tokens_are_refused(tiny_model, ragged_batch):
    with pytest.raises(ModelError, match="LlamaModel has no body"):
        repsim.representations(tiny_model("llama").model, [ragged_batch])
    with pytest.raises(ModelError, match="Linear has no body"):
        repsim.representations(nn.Linear(2, 2), [ragged_batch])
    with pytest.raises(DataError, match="a batch \\(tuple\\) has no input_ids"):
        repsim.representations(tiny_model("llama"), [(1, 2)])
    with pytest.raises(DataError, match="no batches"):
        repsim.representations(tiny_model("llama"), [])
