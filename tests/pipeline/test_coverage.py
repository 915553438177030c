"""What a run's probe says of the layers: which share of the trained weights is tracked, and what it refuses."""

import json
import logging

import pytest
import torch
import transformers

from influence.capture.probe import probe
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.data.batch import collate
from influence.data.example import place_of
from influence.errors import ModelError
from influence.gradients.projection import Projection
from tests.reference.microbatch import one_backward_per_example

BASE = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def randomised(model):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def opened(configured, tokenizer, model_folder, tmp_path):
    """`opened(model or peft configuration, override, …)`: a session of a run of that model, to be probed."""
    sessions = []

    def open_session(given, *overrides):
        folder = tmp_path / "model"
        if not isinstance(given, torch.nn.Module):
            peft = pytest.importorskip("peft")
            base = transformers.AutoModelForCausalLM.from_pretrained(model_folder("llama"))
            given = peft.get_peft_model(base, given)
            randomised(given).save_pretrained(folder, save_embedding_layers=False)
            path = folder / "adapter_config.json"
            settings = json.loads(path.read_text())
            path.write_text(json.dumps({**settings, "base_model_name_or_path": str(model_folder("llama"))}))
        else:
            given.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = configured(f"model.path={folder}", "recipe={name: graddot, projection: {kind: none}}", *overrides)
        sessions.append(Session(CaptureSpec.of(config)))
        return sessions[-1]

    yield open_session
    for session in sessions:
        session.close()


def adapters(kind="LoraConfig", **settings):
    peft = pytest.importorskip("peft")
    return getattr(peft, kind)(task_type="CAUSAL_LM", **settings)


def mamba():
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **BASE)
    )


def bloom():
    slow = {"slow_but_exact": True, "pretraining_tp": 2}
    return transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, **slow, **BASE))


def mixtral():
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 1, "intermediate_size": 24}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **experts, **BASE))


def opt():
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=128, **BASE)
    )


REFUSED = {
    "mamba": (mamba, r"reads the weight of backbone\.layers\.0\.mixer\.dt_proj without calling it"),
    "bloom's slow path": (bloom, r"reads the weight of transformer\.h\.0\.self_attention\.dense without calling it"),
    "fused experts": (mixtral, r"Only .*mlp\.experts\.gate_up_proj \(1 parameter, .*allow_partial: true"),
    "target_parameters": (
        lambda: adapters(r=2, target_modules=["q_proj"], target_parameters=["mlp.up_proj.weight"]),
        r"reads the weight of \S*up_proj\.lora_A\.default without calling it \(and 1 alike\)",
    ),
    "a trained embedding beside DoRA": (
        lambda: adapters(r=2, target_modules=["q_proj"], use_dora=True, modules_to_save=["embed_tokens"]),
        r"Only .*embed_tokens\.modules_to_save\.default\.weight .*lora_magnitude_vector\.default\.weight",
    ),
    "LoRA on the embedding": (
        lambda: adapters(r=2, target_modules=["embed_tokens", "q_proj"]),
        r"Only .*embed_tokens\.lora_embedding_A\.default",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_run_is_refused_before_a_row_is_kept(opened, kind):
    model, reason = REFUSED[kind]
    with pytest.raises(ModelError, match=reason):
        probe(opened(model()))


def test_what_was_refused_is_built_once_it_is_excluded_or_accepted(opened, caplog):
    probe(opened(mamba(), "model.layers.exclude=['*.dt_proj']"))
    with caplog.at_level(logging.WARNING):
        found = probe(opened(mixtral(), "model.layers.allow_partial=true")).coverage
    assert found.body_share < 0.5
    assert "mlp.experts.gate_up_proj" in caplog.text
    caplog.clear()
    # A glob over what can't be tracked is a choice, too.
    assert probe(opened(mixtral(), "model.layers.exclude=['*.experts']")).coverage.body_share > 0.85


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
@pytest.mark.parametrize("recipe", ["graddot", "repsim"])
def test_adapters_that_learn_a_prompt_are_refused_by_their_kind_whatever_the_recipe(opened, kind, recipe):
    settings = {"num_virtual_tokens": 2} | ({"encoder_hidden_size": 4} if kind == "PromptEncoderConfig" else {})
    with pytest.raises(ModelError, match=r"holds (prompt tuning|prefix tuning|p-tuning) \("):
        opened(adapters(kind, **settings), f"recipe={{name: {recipe}}}")


RIGHT = {
    "OPT, whose layers see flat positions": opt,
    "LoRA": lambda: adapters(r=2, target_modules=["q_proj", "down_proj"]),
    "DoRA": lambda: adapters(r=4, target_modules=["q_proj"], use_dora=True),
    "a trained embedding beside LoRA": lambda: adapters(
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]
    ),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_rows_of_a_run_are_autograds(opened, kind):
    globs = ["*", "*.modules_to_save.default"] if "embedding" in kind else ["*"]
    session = opened(RIGHT[kind](), f"model.layers.include={globs}")
    coverage = probe(session).coverage
    assert coverage.body_share > 0.85
    examples = [session.rows.example(row) for row in range(6)]
    parts = session.contributing(session.tokenise(examples))
    pieces = list(session.losses(parts, [place_of(example) for example in examples]))
    order = [part.position for piece in pieces for part in piece.parts]
    rows = torch.cat([piece.rows for piece in pieces])
    session.close()
    single = [collate([parts[position]], session.pad) for position in order]
    loss = session.task.example_loss
    slow = one_backward_per_example(session.model, session.layers, Projection(session.spec.projection), loss, single)
    torch.testing.assert_close(rows, slow, rtol=1e-4, atol=1e-5 * float(slow.abs().max()))
