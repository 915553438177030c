"""The hooks: each use of a layer handed over once, and no trace left in the model or the next batch."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from influence.errors import CaptureError, TaskError
from influence.gradients.hooks import Hooks
from influence.model.layers import LayerSettings, tracked_layers
from influence.task import CausalLM
from tests.gradients.conftest import examples
from tests.reference.kronecker import seen_by
from tests.reference.toys import Pictures, PictureTask, network, pictures, plain_loss


@dataclass
class Recorder:
    """A sink that writes down what it is handed."""

    kept: list = field(default_factory=list)
    taken: list = field(default_factory=list)
    last: list = field(default_factory=list)

    def keep(self, module, inputs, output):
        self.kept.append(inputs)
        return inputs

    def take(self, grads, kept, *, last):
        self.taken.append((kept, grads))
        self.last.append(last)


def recorded(model, measure, batch, settings=LayerSettings(), begin=None):
    layers = tracked_layers(model, settings)
    sinks = [Recorder() for _ in layers]
    with Hooks(model, layers, sinks) as hooks:
        values = hooks.run(measure, batch, begin)
    return {layer.name: sink for layer, sink in zip(layers, sinks, strict=True)}, values


def checkpointed(model, reentrant):
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    for block in model.model.layers:
        block.training = True
    return model


@pytest.mark.parametrize("how", ["plain", "checkpointed", "reentrant"])
def test_every_use_is_taken_once_with_its_input_and_its_output_gradient(tiny_model, ragged_batch, how):
    model, task = tiny_model("llama"), CausalLM()
    layers = tracked_layers(model)
    slow = seen_by(model, layers, plain_loss, examples(ragged_batch))
    with torch.no_grad():
        task.example_loss(model, ragged_batch)
    if how != "plain":
        checkpointed(model, reentrant=how == "reentrant")
    sinks, _ = recorded(model, task.example_loss, ragged_batch)
    real = ragged_batch.attention_mask.bool()
    for layer, held in zip(layers, slow, strict=True):
        ((inputs, grads),) = sinks[layer.name].taken
        assert sinks[layer.name].last == [True]
        torch.testing.assert_close(inputs[real], held.inputs, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(grads[real], held.grads, rtol=1e-9, atol=1e-12)
        assert (grads[~real] == 0).all()


def test_a_layer_used_twice_is_taken_twice_and_only_the_second_is_the_last():
    sinks, _ = recorded(Pictures(), PictureTask().example_loss, pictures())
    assert sinks["twice"].last == [False, True]
    assert all(sink.last == [True] for name, sink in sinks.items() if name != "twice")


class Aside(nn.Module):
    """A layer whose second use doesn't reach the output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        self.aside = self.layer(2 * x)
        return self.layer(x)


def summed(model, batch):
    return model(batch).sum(dim=1)


def test_a_use_that_does_not_reach_the_values_is_not_taken_and_none_is_called_the_last():
    sinks, _ = recorded(Aside(), summed, torch.ones(4, 3))
    assert len(sinks["layer"].kept) == 2
    assert sinks["layer"].last == [False]


def test_a_look_without_gradients_before_the_loss_is_no_use(tiny_model, ragged_batch):
    model = tiny_model("llama")
    # A fresh task runs the model under no_grad within its first loss.
    sinks, _ = recorded(model, CausalLM().example_loss, ragged_batch)
    assert all(sink.last == [True] for sink in sinks.values())
    assert all(len(sink.kept) == 1 for sink in sinks.values())


def test_every_batch_begins_anew():
    model, sink = Aside(), Recorder()
    with Hooks(model, tracked_layers(model), [sink]) as hooks:
        hooks.run(summed, torch.ones(4, 3))

        def broken(model, batch):
            model(batch)
            raise KeyError("mid-batch")

        with pytest.raises(KeyError):
            hooks.run(broken, torch.ones(4, 3))
        sink.last.clear()
        hooks.run(lambda model, batch: model.layer(batch).sum(dim=1), torch.ones(4, 3))
    assert sink.last == [True]


def test_begin_is_told_the_values_between_the_passes():
    seen = []
    model, x = network(3, 4, 2), torch.ones(5, 3, dtype=torch.float64)
    layers, sinks = tracked_layers(model), [Recorder(), Recorder()]
    with Hooks(model, layers, sinks) as hooks:

        def begin(values):
            seen.append((values.detach().clone(), [len(sink.kept) for sink in sinks], [len(s.taken) for s in sinks]))

        values = hooks.run(summed, x, begin)
    assert not values.requires_grad
    ((told, kept, taken),) = seen
    assert torch.equal(told, values)
    assert (kept, taken) == ([1, 1], [0, 0])


def test_no_weight_gradient_is_computed_and_the_model_is_left_as_it_was_found():
    model, x = network(3, 4, 2), torch.ones(5, 3, dtype=torch.float64)
    model[2].weight.requires_grad_(False)
    layers = tracked_layers(model, LayerSettings(include=("*", "2")))
    with Hooks(model, layers, [Recorder(), Recorder()]) as hooks:
        assert not any(parameter.requires_grad for parameter in model.parameters())
        hooks.run(summed, x)
        assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(KeyError), Hooks(model, layers, [Recorder(), Recorder()]):
        raise KeyError("inside")
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]
    assert not any(module._forward_hooks for module in model.modules())


def test_values_that_depend_on_no_tracked_layer_are_refused_with_its_name():
    model = network(3, 4, 2)
    with pytest.raises(CaptureError, match=r"don't depend on any tracked layer \(0, 2, …\)"):
        recorded(model, lambda model, batch: batch.sum(dim=1), torch.ones(5, 3))
    with pytest.raises(CaptureError, match="no_grad"):
        recorded(model, torch.no_grad()(summed), torch.ones(5, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("measure", "found"),
    [
        (lambda model, batch: model(batch), r"\(5, 2\)"),
        (lambda model, batch: model(batch).sum(), r"\(\)"),
        (lambda model, batch: 3.0, "float"),
    ],
)
def test_anything_but_one_value_an_example_is_refused(measure, found):
    with pytest.raises(TaskError, match=f"one value an example.*found {found}"):
        recorded(network(3, 4, 2), measure, torch.ones(5, 3, dtype=torch.float64))


def test_a_layer_that_only_ran_without_gradients_is_refused_by_name():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            with torch.no_grad():
                hidden = self.first(x)
            return self.second(hidden)

    with pytest.raises(CaptureError, match="first ran under no_grad"):
        recorded(Hidden(), summed, torch.ones(4, 3))


def test_hooks_that_are_removed_while_a_batch_runs_are_an_error_and_no_zeros():
    model, x = network(3, 4, 2), torch.ones(5, 3, dtype=torch.float64)
    layers = tracked_layers(model, LayerSettings())
    with Hooks(model, layers, [Recorder() for _ in layers]) as hooks:

        def measure(model, batch):
            values = summed(model, batch)
            hooks.__exit__(None, None, None)
            return values

        with pytest.raises(CaptureError, match="removed while a batch ran"):
            hooks.run(measure, x)


def test_batches_of_two_threads_through_one_model_take_turns():
    model, x = network(3, 4, 2), torch.randn(5, 3, dtype=torch.float64)
    layers = tracked_layers(model, LayerSettings())
    inside, others = threading.Event(), threading.Event()
    mine, theirs = ([Recorder() for _ in layers] for _ in range(2))

    def measure(model, batch):
        inside.set()
        # Given time to come between, were it let.
        assert not others.wait(0.2)
        return summed(model, batch)

    def other():
        inside.wait(10)
        with Hooks(model, layers, theirs) as hooks:
            others.set()
            return hooks.run(summed, 2 * x)

    with ThreadPoolExecutor(1) as pool:
        with Hooks(model, layers, mine) as hooks:
            future = pool.submit(other)
            hooks.run(measure, x)
        assert torch.equal(future.result(timeout=10), summed(model, 2 * x))
    assert torch.equal(mine[0].taken[0][0], x)
    assert torch.equal(theirs[0].taken[0][0], 2 * x)
    assert [len(sink.taken) for sink in (*mine, *theirs)] == [1] * 4


def test_a_layer_called_with_something_else_than_a_tensor_is_refused_by_name():
    class Odd(nn.Linear):
        def forward(self, pair):
            return super().forward(pair[0])

    with pytest.raises(CaptureError, match="0 was not called with one tensor"):
        recorded(nn.Sequential(Odd(3, 2)), lambda model, batch: model((batch, 1)).sum(dim=1), torch.ones(4, 3))


def test_a_checkpointed_block_of_ones_own_without_reentrancy_is_taken_once():
    model, x = network(3, 4, 2, activation=nn.Tanh), torch.randn(5, 3, dtype=torch.float64)
    plain, _ = recorded(model, summed, x)
    sinks, _ = recorded(
        model, lambda model, batch: checkpoint(model, batch.clone().requires_grad_(), use_reentrant=False).sum(dim=1), x
    )
    for name, sink in sinks.items():
        assert sink.last == [True]
        for found, expected in zip(sink.taken[0], plain[name].taken[0], strict=True):
            torch.testing.assert_close(found, expected)


class InPlace(nn.Module):
    """A linear layer on [N, S, I], whose output is a view, and an activation that changes it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x):
        hidden = self.activation(self.first(x))
        hidden = self.second(hidden.contiguous())
        hidden /= 2
        return self.third(self.activation(hidden)).sum(dim=2)


def test_an_activation_in_place_does_not_lose_the_gradient_of_an_output_that_is_a_view():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = InPlace().double().eval(), torch.randn(4, 3, 3, dtype=torch.float64)
    sinks, _ = recorded(model, summed, x)
    summed(model, x).sum().backward()
    for name, sink in sinks.items():
        ((inputs, grads),) = sink.taken
        found = torch.einsum("nso,nsi->oi", grads, inputs)
        torch.testing.assert_close(found, model.get_submodule(name).weight.grad, rtol=1e-9, atol=1e-12)
        assert found.any()
