"""The tasks: chunked log-likelihoods against the model's own logits, and what each refuses."""

from dataclasses import replace
from math import log

import pytest
import torch
import transformers
from torch import nn

from influence.errors import TaskError
from influence.model.forward_path import forward_path
from influence.model.token_likelihood import log_odds, token_log_likelihood
from influence.task import CausalLM, SequenceClassification, TaskSettings, task_for


def log_likelihood(model, batch):
    """From the model's own logits, the mask passed along."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    targets = batch.labels[:, 1:]
    flat = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    return -flat.view(targets.shape)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize("family", ["gpt2", "gptneox", "llama", "qwen2", "qwen3", "lora"])
def test_the_chunked_log_likelihood_is_that_of_the_models_own_logits(
    tiny_model, ragged_batch, monkeypatch, family, chunk
):
    monkeypatch.setattr("influence.model.token_likelihood.LOGIT_BYTES", {"cpu": 4 * 300 * chunk, "cuda": 1})
    model = tiny_model(family)
    with torch.no_grad():
        found = CausalLM().token_log_likelihood(model, ragged_batch)
        torch.testing.assert_close(found, log_likelihood(model, ragged_batch), rtol=1e-9, atol=1e-9)


def test_a_token_whose_probability_underflows_keeps_its_log_likelihood_and_gradient(tiny_model, ragged_batch):
    model = tiny_model("llama", torch.float32)
    model.requires_grad_(False)
    model.lm_head.weight.mul_(100)
    model.model.norm.weight.requires_grad_()
    found = CausalLM().token_log_likelihood(model, ragged_batch)
    logits = model(input_ids=ragged_batch.input_ids, attention_mask=ragged_batch.attention_mask).logits[:, :-1].double()
    targets = ragged_batch.labels[:, 1:]
    every = torch.log_softmax(logits, dim=-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    expected = every * (targets != -100)
    assert expected.min() < -200
    assert expected.float().exp().min() == 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)
    ours, theirs = (torch.autograd.grad(total.sum(), model.model.norm.weight)[0] for total in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_only_scored_positions_count(tiny_model, ragged_batch):
    model = tiny_model("llama")
    labels = ragged_batch.labels.clone()
    labels[:, 1:4] = -100
    partial = replace(ragged_batch, labels=labels)
    with torch.no_grad():
        whole = CausalLM().token_log_likelihood(model, ragged_batch)
        found = CausalLM().measurement(model, partial)
    torch.testing.assert_close(found, whole[:, 3:].sum(1))


def test_a_model_that_caps_its_logits_is_noticed(ragged_batch):
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        final_logit_softcapping=0.1,
        query_pre_attn_scalar=12,
    )
    model = transformers.Gemma2ForCausalLM(config).double().eval()
    with torch.no_grad():
        model.lm_head.weight.normal_()
        found = CausalLM().token_log_likelihood(model, ragged_batch)
        torch.testing.assert_close(found, log_likelihood(model, ragged_batch), rtol=1e-6, atol=1e-6)


def test_a_bidirectional_model_gets_its_mask(ragged_batch):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=300, is_decoder=False, **sizes))
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        found = CausalLM().token_log_likelihood(model, ragged_batch)
        torch.testing.assert_close(found, log_likelihood(model, ragged_batch), rtol=1e-6, atol=1e-6)


def test_mean_reduction_divides_the_loss_and_not_the_measurement(tiny_model, ragged_batch):
    model, mean = tiny_model("llama"), CausalLM(TaskSettings(reduction="mean"))
    with torch.no_grad():
        total = CausalLM().example_loss(model, ragged_batch)
        counts = (ragged_batch.labels[:, 1:] != -100).sum(1)
        torch.testing.assert_close(mean.example_loss(model, ragged_batch), total / counts)
        torch.testing.assert_close(mean.measurement(model, ragged_batch), -total)


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("include", [(), ("lm_head",)])
@pytest.mark.parametrize("family", ["llama", "gptneox"])
def test_log_odds_and_residual_are_those_of_the_models_own_logits(
    tiny_model, ragged_batch, monkeypatch, family, include, chunk
):
    monkeypatch.setattr("influence.model.token_likelihood.LOGIT_BYTES", {"cpu": 4 * 300 * chunk, "cuda": 1})
    model = tiny_model(family)
    head = model.get_output_embeddings()
    watched = [next(model.base_model.parameters()), *(head.parameters() if include else ())]
    model.requires_grad_(False)
    for parameter in watched:
        parameter.requires_grad_()
    log_p, scored = log_likelihood(model, ragged_batch), ragged_batch.labels[:, 1:] != -100
    expected = (log_p - (1 - log_p.exp()).clamp(min=1e-300).log()).where(scored, torch.zeros_like(log_p)).sum(1)
    found = CausalLM().log_odds(model, ragged_batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(total.sum(), watched) for total in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    behind = ((1 - log_p.exp()) * scored).sum(1) / scored.sum(1)
    residual = CausalLM().residual(model, ragged_batch)
    torch.testing.assert_close(residual, behind.detach(), rtol=1e-9, atol=1e-12)
    assert not residual.requires_grad
    mean = CausalLM(TaskSettings(reduction="mean")).residual(model, ragged_batch)
    torch.testing.assert_close(mean, residual / scored.sum(1))


class OwnLinear(nn.Linear):
    """A layer that may compute anything, so logits are read from the model."""


def test_a_model_whose_logits_are_computed_whole_has_the_same_log_odds(tiny_model, ragged_batch):
    plain = CausalLM().log_odds(tiny_model("llama"), ragged_batch)
    model = tiny_model("llama")
    model.lm_head.__class__ = OwnLinear
    assert forward_path(model).head is None
    torch.testing.assert_close(CausalLM().log_odds(model, ragged_batch), plain)


@pytest.mark.parametrize("size", [-200.0, 200.0])
def test_log_odds_of_a_token_that_is_all_but_certain_or_impossible_are_finite(size):
    hidden = torch.tensor([[[1.0, 0.0, 0.0]]], requires_grad=True)
    head = nn.Linear(3, 5, bias=False).requires_grad_(False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(5, 3))
        head.weight[0, 0] = size
    found = token_log_likelihood(head, hidden, torch.tensor([[0]]), odds=True)
    torch.testing.assert_close(found, torch.tensor([[size - log(4)]]))
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    torch.testing.assert_close(gradient, (head.weight[0] - head.weight[1:].mean(0)).view(1, 1, 3))
    p = log_odds(head(hidden), torch.tensor([[0]]))
    torch.testing.assert_close(p, found)
    assert (torch.sigmoid(-found.double()) > 0).all()


def test_a_classifiers_log_odds_and_residual_are_those_of_its_logits(tiny_model, ragged_batch):
    model, task = tiny_model("bert"), SequenceClassification()
    p = torch.exp(-task.example_loss(model, ragged_batch))
    torch.testing.assert_close(task.log_odds(model, ragged_batch), (p / (1 - p)).log(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(task.residual(model, ragged_batch), (1 - p).detach(), rtol=1e-9, atol=1e-12)
    with pytest.raises(TaskError, match=r"needs input_ids, label: the batch .* has no label"):
        task.log_odds(model, replace(ragged_batch, label=None))


def test_one_token_examples_and_missing_labels_are_refused(tiny_model, ragged_batch):
    one = replace(ragged_batch, input_ids=ragged_batch.input_ids[:, :1], labels=ragged_batch.labels[:, :1])
    with pytest.raises(TaskError, match="nothing to predict"):
        CausalLM().example_loss(tiny_model("llama"), one)
    with pytest.raises(TaskError, match=r"needs input_ids, label: the batch .* has no label"):
        SequenceClassification().example_loss(tiny_model("bert"), replace(ragged_batch, label=None))


def test_a_kind_of_model_has_its_task():
    assert isinstance(task_for("causal_lm"), CausalLM)
    assert isinstance(task_for("sequence_classification"), SequenceClassification)


def changed(batch, **fields):
    """A batch of a user's own, with other fields."""
    names = ("input_ids", "attention_mask", "labels", "label")
    return {**{name: getattr(batch, name) for name in names}, **fields}


def test_batches_may_be_mappings(tiny_model, ragged_batch):
    for family, task in (("llama", CausalLM()), ("bert", SequenceClassification())):
        model = tiny_model(family)
        with torch.no_grad():
            plain = task.example_loss(model, ragged_batch)
            assert torch.equal(task.example_loss(model, changed(ragged_batch)), plain)
            assert torch.equal(task.residual(model, changed(ragged_batch)), task.residual(model, ragged_batch))


def test_fields_of_a_batch_that_would_be_ignored_are_refused(tiny_model, ragged_batch):
    ids, mask = ragged_batch.input_ids, ragged_batch.attention_mask
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    refused = {
        "padded on the left or has holes": {"attention_mask": mask.flip(1)},
        "has position_ids": {"position_ids": positions + 1},
        "has token_type_ids": {"token_type_ids": mask},
        "has inputs_embeds": {"inputs_embeds": torch.ones(4, 5, 3)},
        "attention_mask is": {"attention_mask": mask[:, None, None]},
    }
    for reason, fields in refused.items():
        with pytest.raises(TaskError, match=reason):
            CausalLM().example_loss(tiny_model("gpt2"), changed(ragged_batch, **fields))
    with pytest.raises(TaskError, match="has token_type_ids, which SequenceClassification does not hand"):
        SequenceClassification().example_loss(tiny_model("bert"), changed(ragged_batch, token_type_ids=mask))
    usual = {"position_ids": positions, "token_type_ids": torch.zeros_like(ids)}
    CausalLM().example_loss(tiny_model("gpt2"), changed(ragged_batch, **usual))
