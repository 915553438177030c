"""Captured rows against one ordinary backward pass per example, in float64."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from influence.errors import CaptureError, TaskError
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import LayerSettings, tracked_layers
from influence.task import CausalLM
from tests.gradients.conftest import alone, examples, task_of
from tests.reference.microbatch import one_backward_per_example

FAMILIES = ["gpt2", "gptneox", "llama", "qwen2", "qwen3", "bert", "lora"]


def capture_rows(model, batch, projection, measure, settings=LayerSettings()):
    with Capture(model, tracked_layers(model, settings), projection) as capture:
        return capture(measure, batch)[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_rows_equal_one_backward_per_example(tiny_model, ragged_batch, whole, family, bias):
    model, task = tiny_model(family), task_of(family)
    settings = LayerSettings(bias=bias)
    fast = capture_rows(model, ragged_batch, whole, task.example_loss, settings)
    layers = tracked_layers(model, settings)
    slow = one_backward_per_example(model, layers, whole, task.example_loss, examples(ragged_batch))
    assert slow.abs().sum() > 0
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_projected_rows_equal_projecting_one_example_at_a_time(tiny_model, ragged_batch, seeded, family):
    model, task = tiny_model(family), task_of(family)
    fast = capture_rows(model, ragged_batch, seeded, task.example_loss)
    layers = tracked_layers(model, LayerSettings())
    slow = one_backward_per_example(model, layers, seeded, task.example_loss, examples(ragged_batch))
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_more_padding_and_another_batch_size_change_nothing(tiny_model, ragged_batch, seeded, family):
    model, task = tiny_model(family), task_of(family)
    together = capture_rows(model, ragged_batch, seeded, task.example_loss)
    padded = replace(
        ragged_batch,
        input_ids=nn.functional.pad(ragged_batch.input_ids, (0, 9), value=1),
        attention_mask=nn.functional.pad(ragged_batch.attention_mask, (0, 9)),
        labels=nn.functional.pad(ragged_batch.labels, (0, 9), value=-100),
    )
    torch.testing.assert_close(capture_rows(model, padded, seeded, task.example_loss), together, rtol=1e-10, atol=1e-12)
    one = capture_rows(model, alone(ragged_batch, 1), seeded, task.example_loss)
    torch.testing.assert_close(one[0], together[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("include", [("*", "lm_head"), ("*", "*embed_tokens"), ("lm_head",)])
def test_embeddings_and_unembedding_are_captured_when_asked_for(tiny_model, ragged_batch, seeded, include):
    model, settings = tiny_model("llama"), LayerSettings(include=include)
    fast = capture_rows(model, ragged_batch, seeded, CausalLM().example_loss, settings)
    layers = tracked_layers(model, settings)
    slow = one_backward_per_example(model, layers, seeded, CausalLM().example_loss, examples(ragged_batch))
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_the_chunks_of_a_tracked_unembedding_add_up(tiny_model, ragged_batch, whole, monkeypatch):
    model, settings = tiny_model("llama"), LayerSettings(include=("lm_head",))
    in_one = capture_rows(model, ragged_batch, whole, CausalLM().example_loss, settings)
    monkeypatch.setattr("influence.model.token_likelihood.LOGIT_BYTES", {"cpu": 4 * 300 * 4 * 3, "cuda": 1})
    in_three_positions = capture_rows(model, ragged_batch, whole, CausalLM().example_loss, settings)
    torch.testing.assert_close(in_three_positions, in_one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(tiny_model, ragged_batch, seeded, reentrant):
    model = tiny_model("llama")
    plain = capture_rows(model, ragged_batch, seeded, CausalLM().example_loss)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    for block in model.model.layers:
        block.training = True
    recomputed = capture_rows(model, ragged_batch, seeded, CausalLM().example_loss)
    torch.testing.assert_close(recomputed, plain, rtol=1e-10, atol=1e-12)


def test_tokens_add_up_to_their_row(tiny_model, ragged_batch, seeded):
    model = tiny_model("gptneox")
    batch = alone(ragged_batch, 0)
    total = capture_rows(model, batch, seeded, CausalLM().example_loss)
    per_token = []
    for position in (batch.labels[0] != -100).nonzero().flatten().tolist():
        labels = torch.full_like(batch.labels, -100)
        labels[0, position] = batch.labels[0, position]
        per_token.append(capture_rows(model, replace(batch, labels=labels), seeded, CausalLM().example_loss))
    torch.testing.assert_close(torch.cat(per_token).sum(0, keepdim=True), total, rtol=1e-9, atol=1e-12)


class Toy(nn.Module):
    """Convolutions and a linear layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding="valid", dilation=1)
        self.second = nn.Conv2d(4, 6, (2, 3), padding="same", dilation=(1, 2))
        self.third = nn.Conv2d(6, 6, 3, padding=(1, 2), stride=(2, 1))
        self.twice = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu_(self.first(images))
        hidden = torch.tanh(self.third(torch.tanh(self.second(hidden))))
        hidden = torch.tanh(self.twice(hidden.flatten(2).transpose(1, 2)))
        return self.out(torch.tanh(self.twice(hidden)).mean(1))


class ImageTask:
    def example_loss(self, model, batch):
        images, labels = batch
        return nn.functional.cross_entropy(model(images), labels, reduction="none")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["none", "kronecker"])
def test_convolutions_and_a_layer_used_twice_equal_one_backward_per_example(bias, kind):
    projection = Projection(ProjectionSettings(kind=kind, p=5, q=3, entries="normal"))
    model = Toy().double()
    images, labels = torch.randn(4, 2, 12, 11, dtype=torch.float64), torch.tensor([0, 2, 1, 0])
    settings = LayerSettings(bias=bias)
    fast = capture_rows(model, (images, labels), projection, ImageTask().example_loss, settings)
    single = [(images[n : n + 1], labels[n : n + 1]) for n in range(4)]
    layers = tracked_layers(model, settings)
    slow = one_backward_per_example(model, layers, projection, ImageTask().example_loss, single)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_the_model_is_left_as_it_was_found(tiny_model, ragged_batch, seeded):
    model = tiny_model("llama")
    model.lm_head.weight.requires_grad_(False)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    with Capture(model, tracked_layers(model), seeded) as capture:
        capture(CausalLM().example_loss, ragged_batch)
        assert all(parameter.grad is None for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failed_batch_leaves_no_trace_in_the_next_one(tiny_model, ragged_batch, seeded):
    model, task = tiny_model("llama"), CausalLM()
    with Capture(model, tracked_layers(model), seeded) as capture:
        clean, _ = capture(task.example_loss, ragged_batch)

        def broken(model, batch):
            task.example_loss(model, batch)
            raise KeyError("mid-batch")

        with pytest.raises(KeyError):
            capture(broken, ragged_batch)
        again, _ = capture(task.example_loss, ragged_batch)
    assert torch.equal(clean, again)


def test_a_task_that_does_not_give_one_value_an_example_is_refused(tiny_model, ragged_batch, seeded):
    model = tiny_model("llama")
    with (
        Capture(model, tracked_layers(model), seeded) as capture,
        pytest.raises(TaskError, match=r"shape \[N\]; found \(\)"),
    ):
        capture(lambda model, batch: CausalLM().example_loss(model, batch).sum(), ragged_batch)


def test_capture_outside_its_context_is_refused(tiny_model, ragged_batch, seeded):
    model = tiny_model("llama")
    with pytest.raises(CaptureError, match="context manager"):
        Capture(model, tracked_layers(model), seeded)(CausalLM().example_loss, ragged_batch)
