"""Labels drawn from the model: the right distribution, the data's own prefixes, and gradients that make the Fisher."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from influence.errors import TaskError
from influence.gradients.capture import Capture
from influence.model.layers import LayerSettings, tracked_layers
from influence.model.token_likelihood import inverse_cdf
from influence.query.pairwise import pairwise
from influence.recipes import recipe
from influence.task import CausalLM, SequenceClassification, TaskSettings, fisher_loss
from tests.curvature.conftest import WHOLE
from tests.reference.toys import Pictures, PictureTask, pictures

VOCABULARY = 7


def small_llama():
    """A language model of seven tokens with a distribution far from uniform."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCABULARY, **sizes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.8)
    return model


def texts(rows, scored=None):
    """Rows of tokens as a batch; `scored` are the positions that are."""
    ids = torch.tensor(rows)
    labels = ids.clone()
    labels[:, 0] = -100
    if scored is not None:
        labels[:, [place for place in range(ids.shape[1]) if place not in scored]] = -100
    return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, label=None)


def copies(row, count, scored=None):
    return texts([row] * count, scored)


def log_p(model, batch):
    """log p of every token after the data's own prefix, [N, S−1, V]."""
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=batch.input_ids).logits[:, :-1], dim=-1)


def at_seed(task, model, batch, seed=5):
    return task.sampled_loss(model, batch, torch.Generator().manual_seed(seed))


def frozen(model, task):
    model.requires_grad_(False)


def tracked(model, task):
    model.lm_head.weight.requires_grad_(True)


class OwnLinear(torch.nn.Linear):
    """A layer that may compute anything, so logits are read from the model."""


def whole_logits(model, task):
    model.lm_head.__class__ = OwnLinear


ROUTES = [frozen, tracked, whole_logits]


@pytest.mark.parametrize("route", ROUTES)
def test_tokens_are_drawn_as_often_as_the_model_says(route):
    model, task, count = small_llama(), CausalLM(), 6000
    route(model, task)
    batch = copies([1, 2, 3, 4], count, scored=[3])
    with torch.no_grad():
        losses = at_seed(task, model, batch)
    given = log_p(model, batch)[0, 2]
    assert given.exp().max() > 0.25
    apart = (losses[:, None] + given[None]).abs()
    assert float(apart.min(dim=1).values.max()) < 1e-9
    seen = torch.bincount(apart.argmin(dim=1), minlength=VOCABULARY)
    expected = count * given.exp()
    # Chi-square of six degrees of freedom: above 27 once in ten thousand seeds, and this is one seed.
    assert float(((seen - expected).square() / expected).sum()) < 27


def test_a_token_that_cannot_be_is_not_drawn_where_the_distribution_stands_still():
    p = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).expand(3, 5)
    assert inverse_cdf(p, torch.tensor([0.0, 0.5, 0.9999])).tolist() == [1, 3, 3]


@pytest.mark.parametrize("route", ROUTES)
def test_each_token_is_drawn_after_the_datas_own_prefix_and_unscored_ones_count_nothing(route):
    model, task = small_llama(), CausalLM()
    route(model, task)
    batch = texts([[1, 2, 3, 4, 5], [3, 3, 0, 6, 2], [6, 5, 4, 3, 2]])
    batch.labels[1, 2] = -100
    batch.labels[2, 3:] = -100
    uniforms = torch.rand(3, 4, generator=torch.Generator().manual_seed(5))
    given = log_p(model, batch)
    expected = torch.zeros(3, dtype=torch.float64)
    for row in range(3):
        for place in range(4):
            if batch.labels[row, place + 1] == -100:
                continue
            total, token = 0.0, 0
            for token in range(VOCABULARY):
                total += float(given[row, place, token].exp())
                if total > float(uniforms[row, place]):
                    break
            expected[row] -= given[row, place, token]
    torch.testing.assert_close(at_seed(task, model, batch).detach(), expected, rtol=1e-9, atol=1e-9)


def test_a_row_without_scored_tokens_has_no_sampled_loss_and_no_gradient():
    model, task = small_llama(), CausalLM()
    batch = copies([1, 2, 3, 4], 2)
    batch.labels[1] = -100
    with Capture(model, tracked_layers(model), WHOLE) as capture:
        rows, losses = capture(at_seed_of(task), batch)
    assert losses[1] == 0
    assert (rows[1] == 0).all()
    assert (rows[0] != 0).any()


def at_seed_of(task, seed=5):
    return lambda model, batch: at_seed(task, model, batch, seed)


def test_padding_draws_nothing(tiny_model, ragged_batch):
    model, task = tiny_model("llama"), CausalLM()
    changed = ragged_batch.input_ids.clone()
    changed[ragged_batch.attention_mask == 0] = 7
    with torch.no_grad():
        plain = at_seed(task, model, ragged_batch)
        other = at_seed(task, model, replace(ragged_batch, input_ids=changed))
    torch.testing.assert_close(plain, other, rtol=1e-12, atol=0)


def test_the_same_seed_draws_the_same_labels_and_leaves_the_global_generator_alone(tiny_model, ragged_batch):
    model, task = tiny_model("llama"), CausalLM()
    with torch.no_grad():
        task.example_loss(model, ragged_batch)
        before = torch.get_rng_state()
        first, second = (fisher_loss(task, "sampled", model, ragged_batch, 11) for _ in range(2))
        other = fisher_loss(task, "sampled", model, ragged_batch, 12)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        assert torch.equal(
            fisher_loss(task, "empirical", model, ragged_batch, 11), task.example_loss(model, ragged_batch)
        )


def test_a_mean_loss_draws_the_same_labels_and_divides_by_the_scored_tokens(tiny_model, ragged_batch):
    model, mean = tiny_model("llama"), CausalLM(TaskSettings(reduction="mean"))
    with torch.no_grad():
        total, divided = at_seed(CausalLM(), model, ragged_batch), at_seed(mean, model, ragged_batch)
    torch.testing.assert_close(divided, total / (ragged_batch.labels[:, 1:] != -100).sum(1))


def assert_mean_is(samples, expected):
    """The mean of samples [n, ...] is the expected one within five of its standard errors, entry by entry."""
    error = samples.std(dim=0) / len(samples) ** 0.5
    assert float(((samples.mean(0) - expected).abs() / error.clamp(min=1e-12)).max()) < 5


def test_sampled_gradients_have_mean_zero_and_the_gauss_newton_as_second_moment():
    class Softmax(nn.Module):
        """Softmax regression: its Gauss-Newton is (diag p − p pᵀ) ⊗ x xᵀ."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3, bias=False)
            self.double()

        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=self.layer(input_ids))

    model, count = Softmax(), 8000
    x = torch.tensor([0.8, -1.3], dtype=torch.float64)
    batch = SimpleNamespace(input_ids=x.expand(count, 2), attention_mask=None, label=None)
    with Capture(model, tracked_layers(model), WHOLE) as capture:
        rows, _ = capture(at_seed_of(SequenceClassification()), batch)
    p = torch.softmax(model.layer(x).detach(), dim=0)
    newton = torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(x, x))
    assert_mean_is(rows, torch.zeros(6, dtype=torch.float64))
    assert_mean_is(rows[:, :, None] * rows[:, None, :], newton)


def test_over_a_text_the_gauss_newtons_of_its_tokens_add_up():
    model, count = small_llama(), 6000
    layers = tracked_layers(model, LayerSettings(include=("lm_head",)))
    batch = copies([1, 2, 3, 4], count)
    with Capture(model, layers, WHOLE) as capture:
        rows, _ = capture(at_seed_of(CausalLM()), batch)
    with torch.no_grad():
        hidden = model.model(input_ids=batch.input_ids[:1]).last_hidden_state[0, :-1]
    newton = torch.zeros(8 * VOCABULARY, 8 * VOCABULARY, dtype=torch.float64)
    for state, p in zip(hidden, log_p(model, batch)[0].exp(), strict=True):
        newton += torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(state, state))
    assert_mean_is(rows, torch.zeros(8 * VOCABULARY, dtype=torch.float64))
    chosen = torch.randperm(8 * VOCABULARY)[:20]
    some = rows[:, chosen]
    assert_mean_is(some[:, :, None] * some[:, None, :], newton[chosen][:, chosen])


@pytest.mark.parametrize("name", ["kfac", "ekfac", "whitened"])
def test_a_task_that_cannot_draw_labels_is_refused_with_the_remedy(name):
    with pytest.raises(TaskError, match=r"PictureTask has no sampled_loss.*recipe\.factors\.labels: empirical"):
        pairwise(Pictures(), PictureTask(), [pictures()], [pictures()], recipe(name))
    found = pairwise(
        Pictures(), PictureTask(), [pictures()], [pictures()], recipe(name, factors={"labels": "empirical"})
    )
    assert torch.isfinite(found).all()


def test_the_seed_of_the_factors_decides_the_labels_and_so_the_scores(tiny_model, ragged_batch):
    model = tiny_model("llama")
    found = [
        pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], recipe("ekfac", factors={"seed": seed}))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
