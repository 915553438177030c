"""Kinds of layers and weights whose gradient the hooks might not see: each is right, left out by name, or refused."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import influence.recipes as recipes
from influence.errors import ModelError
from influence.gradients.projection import Projection, ProjectionSettings
from influence.gradients.weight_gradients import weight_gradients
from influence.model.layers import LayerSettings, tracked_layers
from influence.query.pairwise import pairwise
from influence.task import CausalLM
from tests.gradients.conftest import examples
from tests.reference.microbatch import one_backward_per_example
from tests.reference.toys import Pictures, PictureTask, pictures

WHOLE = recipes.recipe("graddot", projection={"kind": "none"})


class Network(nn.Module):
    """Tokens [N, S] to scores [N, 3]; what is between the table and the head is of one kind."""

    def __init__(self, middle, forward=None, **table):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = nn.Embedding(11, 4, **table)
            self.middle = middle()
            self.out = nn.Linear(4, 3)
        self._forward = forward or (lambda middle, x: middle(x))
        self.double().eval()

    def forward(self, tokens):
        return self.out(torch.tanh(self._forward(self.middle, self.table(tokens))).mean(dim=1))


class Scores:
    def example_loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch.input_ids), batch.label, reduction="none")


def batch(examples=4, positions=5):
    found = torch.randint(11, (examples, positions), generator=torch.Generator().manual_seed(1))
    return SimpleNamespace(input_ids=found, label=torch.arange(examples) % 3)


def single(batch):
    return [
        SimpleNamespace(input_ids=batch.input_ids[n : n + 1], label=batch.label[n : n + 1])
        for n in range(len(batch.label))
    ]


def scored(model, settings=LayerSettings()):
    return pairwise(model, Scores(), [batch()], [batch()], WHOLE, settings)


def expected(model, settings=LayerSettings()):
    layers, projection = tracked_layers(model, settings), Projection(ProjectionSettings(kind="none"))
    rows = one_backward_per_example(model, layers, projection, Scores().example_loss, single(batch()))
    return rows @ rows.T


class Custom(nn.Linear):
    """A subclass that computes something else than its type says."""

    def forward(self, x):
        return nn.functional.linear(x, 2 * self.weight, self.bias)


class Shared(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


def past(middle, x):
    return nn.functional.linear(x, middle.weight, middle.bias)


REFUSED = {
    "its weight is read past it": (lambda: nn.Linear(4, 4), past, {}, "reads the weight of middle without calling it"),
    "called once and read past it once": (
        lambda: nn.Linear(4, 4),
        lambda middle, x: middle(torch.tanh(past(middle, x))),
        {},
        "middle differs by",
    ),
    "a subclass with a forward pass of its own": (lambda: Custom(4, 4), None, {}, r"middle differs by 0\.5"),
    "two layers share a weight": (Shared, None, {}, r"middle\.one shares its weight with middle\.two"),
    "an embedding scaled by frequency": (
        nn.Identity,
        None,
        {"scale_grad_by_freq": True},
        "table is an embedding with scale_grad_by_freq",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_layer_whose_weight_gradient_is_not_that_of_its_calls_is_refused_by_name(kind):
    middle, forward, table, reason = REFUSED[kind]
    model = Network(middle, forward, **table)
    settings = LayerSettings(include=("*", "table") if table else ("*",))
    with pytest.raises(
        ModelError, match=rf"(?s){reason}.*(model\.layers\.exclude: \['middle|add 'table' to model\.layers\.exclude)"
    ):
        scored(model, settings)
    # What is left out by name isn't looked at.
    scored(model, LayerSettings(exclude=("middle", "middle.*", "table")))


RIGHT = {
    "linear": (lambda: nn.Linear(4, 4), None, {}),
    "used twice": (lambda: nn.Linear(4, 4), lambda middle, x: middle(torch.tanh(middle(x))), {}),
    "an embedding": (nn.Identity, None, {}),
    "an embedding with padding_idx": (nn.Identity, None, {"padding_idx": 3}),
    "an embedding with a negative padding_idx": (nn.Identity, None, {"padding_idx": -4}),
}


@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.parametrize("bias", [False, True])
def test_scores_are_autograds(kind, bias):
    middle, forward, table = RIGHT[kind]
    model, settings = Network(middle, forward, **table), LayerSettings(include=("*", "table"), bias=bias)
    torch.testing.assert_close(scored(model, settings), expected(model, settings), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["none", "kronecker"])
@pytest.mark.parametrize("bias", [False, True])
def test_what_the_hooks_see_of_right_layers_is_autograds_to_the_last_digits(tiny_model, ragged_batch, kind, bias):
    projection = Projection(ProjectionSettings(kind=kind) if kind == "none" else ProjectionSettings(p=5, q=3))
    settings = LayerSettings(bias=bias)
    for family in ("gpt2", "qwen2", "lora"):
        model = tiny_model(family)
        flags = [parameter.requires_grad for parameter in model.parameters()]
        layers = tracked_layers(model, settings)
        found = weight_gradients(model, layers, CausalLM().example_loss, ragged_batch, projection=projection)
        assert len(found.errors) == len(layers)
        assert max(found.errors.values()) < 1e-12
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert all(parameter.grad is None for parameter in model.parameters())
    model = Pictures()
    layers = tracked_layers(model, settings)
    found = weight_gradients(model, layers, PictureTask().example_loss, pictures(), projection=projection)
    assert max(found.errors.values()) < 1e-12


@pytest.mark.parametrize("include", [("*", "lm_head"), ("*", "model.embed_tokens"), ("*", "lm_head", "*embed_tokens")])
def test_one_side_of_a_tied_matrix_and_both_are_refused_with_the_other_named(tiny_model, ragged_batch, include):
    model = tiny_model("qwen2")
    with pytest.raises(ModelError, match=r"(lm_head shares its weight with model\.embed_tokens|embed_tokens shares)"):
        pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], "graddot", LayerSettings(include=include))
    pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], "graddot")


def test_a_tied_matrix_of_which_only_one_side_is_used_is_right(tiny_model, ragged_batch):
    model = tiny_model("qwen2")

    class Body:
        def example_loss(self, model, batch):
            hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
            return (hidden * batch.attention_mask.unsqueeze(2)).square().sum(dim=(1, 2))

    settings = LayerSettings(include=("*embed_tokens",), allow_partial=True)
    found = pairwise(model, Body(), [ragged_batch], [ragged_batch], WHOLE, settings)
    layers, projection = tracked_layers(model, settings), Projection(ProjectionSettings(kind="none"))
    rows = one_backward_per_example(model, layers, projection, Body().example_loss, examples(ragged_batch))
    torch.testing.assert_close(found, rows @ rows.T, rtol=1e-9, atol=1e-12)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells = kind(4, 4, batch_first=True)

    def forward(self, x):
        return self.cells(x)[0]


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x):
        return torch.einsum("nsi,eio->nso", x, self.experts)


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.filter(x.transpose(1, 2)).transpose(1, 2)


PARTIAL = {
    "attention in one matrix": (Attention, r"middle\.attention\.in_proj_weight \(1 parameter, 48 weights\)"),
    "an LSTM": (lambda: Recurrent(nn.LSTM), r"middle\.cells\.weight_ih_l0"),
    "a GRU": (lambda: Recurrent(nn.GRU), r"middle\.cells\.weight_hh_l0"),
    "experts in one tensor": (Experts, r"middle\.experts \(1 parameter, 32 weights\)"),
    "a one-dimensional convolution": (Convolved, r"middle\.filter\.weight"),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        r"middle\.parametrizations\.weight\.original1",
    ),
    "spectral norm": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        r"middle\.parametrizations\.weight\.original",
    ),
    "old weight norm": (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), r"middle\.weight_v"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("kind", PARTIAL)
def test_a_model_of_which_most_cannot_be_tracked_is_refused_with_what_is_missing(kind, caplog):
    middle, missing = PARTIAL[kind]
    model = Network(middle)
    with pytest.raises(ModelError, match=rf"Only .* of the body .*Not tracked: .*{missing}.*allow_partial: true"):
        scored(model)
    with caplog.at_level(logging.WARNING):
        partial = scored(model, LayerSettings(allow_partial=True))
    assert "Scores leave it out" in caplog.text
    torch.testing.assert_close(partial, expected(model), rtol=1e-9, atol=1e-12)


def test_training_mode_is_left_for_the_call_and_a_warning_says_so(caplog):
    model = Network(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)))
    plain = scored(model)
    model.train()
    model.middle[0].eval()
    with caplog.at_level(logging.WARNING):
        again = scored(model)
    assert torch.equal(again, plain)
    assert "is in training mode" in caplog.text
    assert [model.training, model.middle[0].training, model.middle[1].training] == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", ["a scaled subclass", "a second use past it"])
def test_a_small_part_that_the_calls_do_not_show_is_refused_in_every_dtype(dtype, share):
    missing = {torch.float32: 0.01, torch.bfloat16: 0.2, torch.float16: 0.05}[dtype]

    class Scaled(nn.Linear):
        def forward(self, x):
            return (1 + missing) * super().forward(x)

    if share == "a scaled subclass":
        model = Network(lambda: Scaled(4, 4))
    else:
        model = Network(lambda: nn.Linear(4, 4), lambda middle, x: middle(x) + missing * past(middle, x))
    with pytest.raises(ModelError, match="middle differs by"):
        scored(model.to(dtype))
    scored(Network(lambda: nn.Linear(4, 4)).to(dtype))


def test_what_another_forward_hook_makes_of_a_layers_output_is_part_of_the_model():
    model = Network(lambda: nn.Linear(4, 4))
    model.middle.register_forward_hook(lambda module, args, output: 3 * output)
    torch.testing.assert_close(scored(model), expected(model), rtol=1e-9, atol=1e-12)


def test_a_task_or_forward_pass_that_changed_since_the_last_call_is_looked_at_again():
    model = Network(lambda: nn.Linear(4, 4))
    scored(model)
    model._forward = past
    with pytest.raises(ModelError, match="reads the weight of middle without calling it"):
        scored(model)


def test_a_measurement_of_queries_that_reads_a_weight_past_its_layer_is_refused():
    class Past(Scores):
        def measurement(self, model, batch):
            called, model._forward = model._forward, past
            try:
                return -self.example_loss(model, batch)
            finally:
                model._forward = called

    with pytest.raises(ModelError, match="reads the weight of middle without calling it"):
        pairwise(Network(lambda: nn.Linear(4, 4)), Past(), [batch()], iter([batch()]), WHOLE)


class InTraining(Scores):
    def example_loss(self, model, batch):
        model.train()
        return super().example_loss(model, batch)


RANDOM = {
    "a dropout that nothing switches off": (lambda middle, x: nn.functional.dropout(middle(x), 0.5), Scores),
    "noise": (lambda middle, x: middle(x) + 0.1 * torch.randn_like(x), Scores),
    "a task that trains": (lambda middle, x: nn.functional.dropout(middle(x), training=middle.training), InTraining),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_a_model_or_task_that_is_random_in_evaluation_mode_is_refused(kind):
    forward, task = RANDOM[kind]
    with pytest.raises(ModelError, match="is random in evaluation mode: two passes over the same batch gave"):
        pairwise(Network(lambda: nn.Linear(4, 4), forward), task(), [batch()], [batch()], WHOLE)


class ByBatch(nn.Module):
    """A norm of the whole batch before the layers, where no gradient of a layer's output shows it."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.norm(x.flatten(0, 1)).view_as(x))


def compiled():
    model = Network(lambda: nn.Linear(4, 4))
    model.compile(backend="eager")
    return model


UNHOOKED = {
    "compiled": (lambda: torch.compile(Network(lambda: nn.Linear(4, 4)), backend="eager"), r"model\._orig_mod"),
    "compiled in place": (compiled, "is compiled"),
    "traced": (lambda: torch.jit.trace(Network(lambda: nn.Linear(4, 4)), batch().input_ids), "is TorchScript"),
    "without weights yet": (lambda: Network(lambda: nn.LazyLinear(4)), r"middle \(LazyLinear\) is lazy"),
    "normalised by the batch": (lambda: Network(ByBatch), r"middle\.norm \(BatchNorm1d\) has no running statistics"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNHOOKED)
def test_a_model_on_which_hooks_would_see_nothing_or_another_batch_is_refused(kind):
    build, reason = UNHOOKED[kind]
    with pytest.raises(ModelError, match=reason):
        scored(build())


def test_frozen_layers_beside_trained_ones_are_tracked_only_where_a_glob_names_them():
    model = Network(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model.middle[0].requires_grad_(False)
    trained = LayerSettings(include=("middle.1", "out"))
    torch.testing.assert_close(scored(model), scored(model, trained), rtol=0, atol=0)
    both = LayerSettings(include=("*", "middle.0"))
    torch.testing.assert_close(scored(model, both), expected(model, both), rtol=1e-9, atol=1e-12)
    model.requires_grad_(False)
    model.table.requires_grad_(True)
    with pytest.raises(ModelError, match="Of its layers 3 are frozen and tracked only where a glob names them"):
        scored(model)
