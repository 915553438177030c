"""An optimiser's second moments, read from what training leaves behind and matched to parameters by name."""

import re

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from influence.errors import OptimiserMismatch
from influence.gradients.adam import denominators
from influence.gradients.optimiser import read_second_moments, state_digest
from influence.model.layers import tracked_layers
from tests.gradients.test_adam import NAME, random_moments


@pytest.fixture(scope="module", params=["gpt2", "lora"])
def trained(request, tiny_model, ragged_batch, tmp_path_factory):
    """A model after three steps of transformers' Trainer, its optimiser, and the checkpoint folder it left."""
    folder = tmp_path_factory.mktemp(f"trained-{request.param}")
    model = tiny_model(request.param, torch.float32)
    columns = {"input_ids": ragged_batch.input_ids, "labels": ragged_batch.labels}
    rows = [{name: column[row] for name, column in columns.items()} for row in range(4)]
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        save_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        weight_decay=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=rows)
    trainer.train()
    model.eval()
    return model, trainer.optimizer, folder / "checkpoint-3"


def test_the_trainers_second_moments_come_back_under_their_parameters_names(trained):
    model, optimiser, folder = trained
    frozen = {parameter: parameter.requires_grad for parameter in model.parameters()}
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for flags in (frozen, dict.fromkeys(frozen, False)):
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        found = read_second_moments(folder, model)
        assert set(found) == set(named)
        for name, parameter in named.items():
            torch.testing.assert_close(
                found[name], optimiser.state[parameter]["exp_avg_sq"] / (1 - 0.999**3), rtol=1e-6, atol=0
            )
    for parameter, flag in frozen.items():
        parameter.requires_grad_(flag)
    assert set(denominators(model, tracked_layers(model), found, 1e-8)) == {n.name for n in tracked_layers(model)}


def state_of(trained):
    return torch.load(trained[2] / "optimizer.pt", weights_only=True)


def swapped(state):
    numbers = state["param_groups"][0]["params"]
    numbers[0], numbers[1] = numbers[1], numbers[0]


def missing(state):
    del state["state"][state["param_groups"][0]["params"].pop()]


def extra(state):
    state["param_groups"][0]["params"].append(999)
    state["state"][999] = state["state"][0]


def regrouped(state):
    """What an older transformers would do: the first decaying parameter among those that don't decay."""
    first, second = state["param_groups"]
    second["params"].insert(0, first["params"].pop(0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swapped, r"from number 0 on \(.*, …; the model has {sizes}, there {first}"),
        (missing, r"The file has {fewer} parameters, from number .* on .*; the model has {sizes}"),
        (extra, r"The file has {more} parameters, from number .* on .*; the model has {sizes}"),
        (regrouped, r"the model has {sizes}"),
    ],
)
def test_numbered_parameters_that_are_not_the_models_are_refused_with_both_sides(trained, tmp_path, spoil, message):
    model, _, _ = trained
    state = state_of(trained)
    (decaying, others) = (len(group["params"]) for group in state["param_groups"])
    spoil(state)
    torch.save(state, tmp_path / "optimizer.pt")
    first = next(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    expected = message.format(
        sizes=rf"{decaying} \+ {others}",
        fewer=rf"{decaying - 1} \+ {others}",
        more=rf"{decaying + 1} \+ {others}",
        first=re.escape(first),
    )
    with pytest.raises(OptimiserMismatch, match=expected):
        read_second_moments(tmp_path, model)


@pytest.mark.parametrize("named", [False, True])
def test_an_optimiser_of_one_group_is_read_in_the_models_order_or_by_its_own_names(tiny_model, tmp_path, named):
    model = tiny_model("gpt2", torch.float32)
    given = list(model.named_parameters())
    given = given[::-1] if named else [parameter for _, parameter in given]
    optimiser = torch.optim.Adam(given, betas=(0.9, 0.9), amsgrad=True)
    for step in (2.0, 1.0):
        for parameter in model.parameters():
            parameter.grad = step * parameter.detach()
        optimiser.step()
    torch.save(optimiser.state_dict(), tmp_path / "optimizer.pt")
    found = read_second_moments(tmp_path / "optimizer.pt", model)
    largest = optimiser.state[model.transformer.wte.weight]["max_exp_avg_sq"]
    torch.testing.assert_close(found["transformer.wte.weight"], largest / (1 - 0.9**2))
    assert set(found) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adagrad])
def test_the_state_of_another_optimiser_is_refused_with_what_it_holds(tiny_model, tmp_path, optimiser):
    model = tiny_model("gpt2", torch.float32)
    made = optimiser(model.parameters(), lr=0.1, **({"momentum": 0.9} if optimiser is torch.optim.SGD else {}))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    torch.save(made.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(OptimiserMismatch, match=r"holds .* for transformer.wte.weight; expected Adam's step"):
        read_second_moments(tmp_path, model)


class Payload:
    def __reduce__(self):
        return (print, ("this would have been any code",))


def test_a_state_that_would_run_code_is_refused_unread(tiny_model, tmp_path, capfd):
    torch.save({"state": Payload(), "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(OptimiserMismatch, match=r"optimizer\.pt can't be read as an optimiser's state"):
        read_second_moments(tmp_path, tiny_model("gpt2"))
    assert "any code" not in capfd.readouterr().out


def write(path, moments, **metadata):
    named = {f"exp_avg_sq.{name}": moment for name, moment in moments.items()}
    save_file(named, path, {key: str(value) for key, value in metadata.items()})
    return path


def test_safetensors_are_read_by_name_and_corrected_where_they_say_how(tiny_model, tmp_path):
    model = tiny_model("llama")
    moments = random_moments(model)
    plain = read_second_moments(write(tmp_path / "plain.safetensors", moments), model)
    corrected = read_second_moments(write(tmp_path / "v.safetensors", moments, beta2=0.95, step=20), model)
    assert set(plain) == set(corrected) == set(moments)
    torch.testing.assert_close(plain[NAME], moments[NAME])
    torch.testing.assert_close(corrected[NAME], moments[NAME] / (1 - 0.95**20))
    assert state_digest(tmp_path / "plain.safetensors") != state_digest(tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        ({"model.other.weight": torch.ones(2, 3)}, {}, r"model.other.weight \(2, 3\). The model has model.embed_tok"),
        ({NAME: torch.ones(24, 32)}, {}, r"up_proj.weight \(24, 32\). The model has .*up_proj.weight \(32, 24\)"),
        ({}, {"beta2": 0.95}, "only one of beta2 and step"),
        ({}, {"beta2": 0.95, "step": 0}, "step 0 and β₂ = 0.95"),
    ],
)
def test_safetensors_of_another_model_or_half_described_are_refused(tiny_model, tmp_path, change, metadata, message):
    model = tiny_model("llama")
    moments = {NAME: random_moments(model)[NAME], **change}
    with pytest.raises(OptimiserMismatch, match=message):
        read_second_moments(write(tmp_path / "adam.safetensors", moments, **metadata), model)


def test_a_path_without_an_optimisers_state_says_what_is_there(tiny_model, tmp_path):
    model = nn.Linear(2, 2)
    with pytest.raises(OptimiserMismatch, match="there is no such file or folder"):
        read_second_moments(tmp_path / "none", model)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(OptimiserMismatch, match=r"holds no optimizer\.pt; it holds model\.safetensors"):
        read_second_moments(tmp_path, model)
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(OptimiserMismatch, match=r"holds weight; expected tensors exp_avg_sq\.<parameter name>"):
        read_second_moments(tmp_path / "other.safetensors", model)
