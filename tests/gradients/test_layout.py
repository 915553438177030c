"""How examples lie in a layer's output: right for every order of the axes, refused where a layer mixes them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import influence.recipes as recipes
from influence.errors import ModelError
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import LayerSettings, tracked_layers
from influence.query.pairwise import pairwise
from tests.reference.microbatch import one_backward_per_example

WHOLE = Projection(ProjectionSettings(kind="none"))


class Encoder(nn.Module):
    """Tokens [N, S] to scores [N, 3], by layers that see them in a certain order of the axes."""

    def __init__(self, order):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = nn.Embedding(11, 4)
            self.first, self.second, self.out = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.order = order
        self.double().eval()

    def forward(self, tokens):
        x = self.order[0](self.table(tokens))
        x = self.order[1](torch.tanh(self.second(torch.tanh(self.first(x)))), tokens)
        return self.out(x.mean(dim=1))


ORDERS = {
    "batch first": (lambda x: x, lambda y, _: y),
    "sequence first": (lambda x: x.transpose(0, 1), lambda y, _: y.transpose(0, 1)),
    "flat": (lambda x: x.reshape(-1, x.shape[2]), lambda y, t: y.view(*t.shape, -1)),
    "flat, sequence first": (
        lambda x: x.transpose(0, 1).reshape(-1, x.shape[2]),
        lambda y, t: y.view(*t.T.shape, -1).transpose(0, 1),
    ),
    "sequence first, several axes": (lambda x: x.unsqueeze(1), lambda y, _: y.squeeze(1)),
}


class Scores:
    def example_loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch.input_ids), batch.label, reduction="none")


def tokens(examples, positions):
    generator = torch.Generator().manual_seed(examples)
    found = torch.randint(11, (examples, positions), generator=generator)
    return SimpleNamespace(input_ids=found, label=torch.arange(examples) % 3, attention_mask=torch.ones_like(found))


def single(batch):
    return [
        SimpleNamespace(input_ids=batch.input_ids[n : n + 1], label=batch.label[n : n + 1])
        for n in range(len(batch.label))
    ]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("examples", [1, 2, 5])
def test_rows_are_those_of_one_backward_per_example_whatever_the_order_of_the_axes(order, examples):
    model = Encoder(ORDERS[order])
    batch, settings = tokens(examples, 5), LayerSettings(include=("*", "table"), bias=True)
    layers = tracked_layers(model, settings)
    with Capture(model, layers, WHOLE) as capture:
        # Another batch of another length comes first: a layout is no property of one batch.
        capture(Scores().example_loss, tokens(3, 4))
        found, _ = capture(Scores().example_loss, batch)
    slow = one_backward_per_example(model, layers, WHOLE, Scores().example_loss, single(batch))
    torch.testing.assert_close(found, slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["kfac", "ekfac", "whitened", "logra"])
@pytest.mark.parametrize("order", ["sequence first", "flat", "flat, sequence first"])
def test_scores_do_not_depend_on_the_order_of_the_axes(order, name):
    recipe = recipes.recipe(name) if name == "logra" else recipes.recipe(name, factors={"labels": "empirical"})
    batch = tokens(5, 5)
    batch.attention_mask[1, 3:] = 0
    expected = pairwise(Encoder(ORDERS["batch first"]), Scores(), [batch], [batch], recipe)
    found = pairwise(Encoder(ORDERS[order]), Scores(), [batch], [batch], recipe)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


def test_a_transformer_encoder_that_takes_the_sequence_first_is_right_with_as_many_tokens_as_examples():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.table = nn.Embedding(11, 8)
                self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), 2)
                self.out = nn.Linear(8, 3)
            self.double().eval()

        def forward(self, tokens):
            return self.out(self.encoder(self.table(tokens.T)).mean(dim=0))

    model, batch = Sequences(), tokens(6, 6)
    layers = tracked_layers(model)
    with Capture(model, layers, WHOLE) as capture:
        found, _ = capture(Scores().example_loss, batch)
    slow = one_backward_per_example(model, layers, WHOLE, Scores().example_loss, single(batch))
    torch.testing.assert_close(found, slow, rtol=1e-9, atol=1e-12)


class Routed(nn.Module):
    """Every second token goes through an expert, gathered from all examples."""

    def __init__(self):
        super().__init__()
        self.table, self.expert, self.other = nn.Embedding(11, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)
        self.double().eval()

    def forward(self, tokens):
        x = self.table(tokens)
        even = tokens % 2 == 0
        y = torch.zeros_like(x)
        y[even], y[~even] = self.expert(x[even]), self.other(x[~even])
        return self.out(y.mean(dim=1))


def test_layers_that_see_gathered_tokens_are_refused_together_with_globs_that_exclude_them():
    model = Routed()
    with (
        Capture(model, tracked_layers(model), WHOLE) as capture,
        pytest.raises(ModelError, match=r"2 tracked layers can't be split into the 4 examples.*\['expert', 'other'\]"),
    ):
        capture(Scores().example_loss, tokens(4, 5))


def test_gathered_tokens_that_could_be_all_of_them_by_number_are_refused_too():
    model = Routed()
    batch = tokens(2, 4)
    # Four tokens an expert: as many an example as there would be of two, one and three of them.
    batch.input_ids = torch.tensor([[2, 1, 3, 5], [2, 4, 6, 1]])
    batch_without_ids = SimpleNamespace(tokens=batch.input_ids, label=batch.label)

    class Plain(Scores):
        def example_loss(self, model, batch):
            return nn.functional.cross_entropy(model(batch.tokens), batch.label, reduction="none")

    with Capture(model, tracked_layers(model), WHOLE) as capture, pytest.raises(ModelError, match="'expert'"):
        capture(Plain().example_loss, batch_without_ids)


def test_a_loss_that_mixes_examples_is_refused_by_name_and_taken_one_at_a_time():
    class Mixing(Scores):
        def example_loss(self, model, batch):
            scores = model(batch.input_ids)
            return nn.functional.cross_entropy(scores - scores.mean(dim=0), batch.label, reduction="none")

    model = Encoder(ORDERS["batch first"])
    with Capture(model, tracked_layers(model), WHOLE) as capture:
        with pytest.raises(ModelError, match=r"mix examples.*cluster\.token_budget: 2"):
            capture(Mixing().example_loss, tokens(3, 4))
        capture(Mixing().example_loss, tokens(1, 4))


def test_a_layer_without_gradients_is_no_obstacle():
    model = Encoder(ORDERS["batch first"])
    with torch.no_grad():
        model.second.weight.zero_()
    with Capture(model, tracked_layers(model), WHOLE) as capture:
        for _ in range(3):
            found, _ = capture(Scores().example_loss, tokens(4, 5))
    assert (found[:, : 4 * 5] == 0).all()
    assert (found[:, 4 * 5 :] != 0).any()


def together(model, batches):
    """Scores over several batches, and those of one backward pass an example."""
    settings = LayerSettings(exclude=("table",))
    found = pairwise(
        model, Scores(), batches, batches, recipes.recipe("graddot", projection={"kind": "none"}), settings
    )
    alone = [
        SimpleNamespace(input_ids=one.input_ids[n : n + 1], label=one.label[n : n + 1])
        for one in batches
        for n in range(len(one.label))
    ]
    layers = tracked_layers(model, settings)
    rows = one_backward_per_example(model, layers, WHOLE, Scores().example_loss, alone)
    return found, rows @ rows.T


@pytest.mark.parametrize("order", ["flat", "flat, sequence first"])
@pytest.mark.parametrize("sizes", [[(4, 5), (3, 1), (2, 2)], [(4, 1), (3, 5), (1, 7)]])
def test_flat_layers_of_one_position_an_example_are_right(order, sizes):
    found, expected = together(Encoder(ORDERS[order]), [tokens(*size) for size in sizes])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", [[(6, 5), (6, 6), (6, 5), (6, 6)], [(6, 6), (6, 5), (3, 6)]])
def test_a_model_that_moves_the_axis_of_its_examples_by_the_length_is_right(sizes):
    def turned(x):
        return x.transpose(0, 1) if 6 in x.shape[1:2] else x

    moving = (turned, lambda y, t: y.transpose(0, 1) if t.shape[1] == 6 else y)
    found, expected = together(Encoder(moving), [tokens(*size) for size in sizes])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
