"""Structure decides how log-likelihoods are computed, and is looked at again where weights change; other losses are
refused."""

import copy

import pytest
import torch
import transformers

from influence.errors import ModelError, TaskError
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.forward_path import forward_path
from influence.model.layers import tracked_layers
from influence.model.load import ModelSettings, load_model
from influence.query.pairwise import pairwise
from influence.recipes import recipe
from influence.task import CausalLM, SequenceClassification
from tests.conftest import VOCABULARY
from tests.gradients.conftest import examples
from tests.reference.microbatch import one_backward_per_example

SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
GROUPED = {**SIZES, **TOKENS, "num_key_value_heads": 1}
CHECKPOINTS = [{"path": "early", "weight": 1}, {"path": "late", "weight": 0.5}]
WHOLE = Projection(ProjectionSettings(kind="none"))


def built(kind, config, scale=0.3):
    """A model of random weights in float64, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, scale)
    return model


def gemma2(scale, **settings):
    """A model that caps its logits at 3."""
    config = transformers.Gemma2Config(**GROUPED, head_dim=12, final_logit_softcapping=3.0, **settings)
    return built(transformers.Gemma2ForCausalLM, config, scale)


class CappedLlama(transformers.LlamaForCausalLM):
    """Caps its logits at 3, as Gemma 2 does, all in float64."""

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        output = super().forward(input_ids, attention_mask, use_cache=use_cache)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output


def capped(scale):
    return built(CappedLlama, transformers.LlamaConfig(**GROUPED), scale)


def own_loss(model, batch):
    """−log p of the model's own logits, one value an example."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    log_p = torch.log_softmax(logits, dim=-1)
    targets = batch.labels[:, 1:]
    return -(log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1) * (targets != -100)).sum(1)


def enlarge(model, by):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(by)


def test_a_capped_model_that_was_probed_near_initialisation_has_its_own_gradients_at_larger_weights(ragged_batch):
    task, model = CausalLM(), capped(0.002)
    with torch.no_grad():
        logits = model(input_ids=ragged_batch.input_ids).logits
        plain = model.lm_head(model.model(input_ids=ragged_batch.input_ids).last_hidden_state)
        assert (plain - logits).abs().max() < 1e-3 * logits.std(), "numbers alone don't tell the cap"
        task.example_loss(model, ragged_batch)
    enlarge(model, 100)
    layers = tracked_layers(model)
    with Capture(model, layers, WHOLE) as capture:
        rows, losses = capture(task.example_loss, ragged_batch)
    slow = one_backward_per_example(model, layers, WHOLE, own_loss, examples(ragged_batch))
    torch.testing.assert_close(rows, slow, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(losses, own_loss(model, ragged_batch).detach())


def test_tracin_over_two_checkpoints_of_a_capped_model_is_the_sum_of_autograds_products(ragged_batch):
    model, later = capped(0.002), capped(0.2)
    states = [copy.deepcopy(one.state_dict()) for one in (model, later)]
    chosen = recipe(
        "tracin", projection={"kind": "none"}, checkpoints=[{"path": "a", "weight": 1}, {"path": "b", "weight": 0.5}]
    )
    found = pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], chosen, checkpoints=states)
    expected = 0
    for weight, one in ((1.0, model), (0.5, later)):
        rows = one_backward_per_example(one, tracked_layers(one), WHOLE, own_loss, examples(ragged_batch))
        expected = expected + weight * rows @ rows.T
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_a_cap_that_the_configuration_gets_later_is_applied(ragged_batch):
    task, model = CausalLM(), gemma2(0.3)
    model.config.final_logit_softcapping = None
    with torch.no_grad():
        torch.testing.assert_close(task.example_loss(model, ragged_batch), own_loss(model, ragged_batch))
        model.config.final_logit_softcapping = 2.0
        torch.testing.assert_close(task.example_loss(model, ragged_batch), own_loss(model, ragged_batch))


@pytest.mark.parametrize(
    ("kind", "config", "plain"),
    [
        ("LlamaForCausalLM", transformers.LlamaConfig(**GROUPED), True),
        ("CohereForCausalLM", transformers.CohereConfig(**GROUPED, logit_scale=0.5), False),
        ("GraniteForCausalLM", transformers.GraniteConfig(**GROUPED, logits_scaling=4.0), False),
        ("BertLMHeadModel", transformers.BertConfig(**SIZES, **TOKENS, is_decoder=True), False),
        ("OPTForCausalLM", transformers.OPTConfig(**TOKENS, hidden_size=24, ffn_dim=32, num_hidden_layers=1), True),
    ],
)
def test_logits_are_the_unembeddings_alone_only_where_nothing_stands_around_it(kind, config, plain, ragged_batch):
    model = built(getattr(transformers, kind), config)
    assert (forward_path(model).head is not None) == plain
    with torch.no_grad():
        torch.testing.assert_close(CausalLM().example_loss(model, ragged_batch), own_loss(model, ragged_batch))


def test_a_bidirectional_model_near_initialisation_keeps_its_mask(ragged_batch):
    config = transformers.BertConfig(**SIZES, **TOKENS, is_decoder=False)
    model = built(transformers.BertLMHeadModel, config, 0.003)
    assert not forward_path(model).causal
    enlarge(model, 100)
    with torch.no_grad():
        torch.testing.assert_close(CausalLM().example_loss(model, ragged_batch), own_loss(model, ragged_batch))


def test_a_model_in_training_mode_is_looked_at_without_dropout_and_left_in_it(ragged_batch):
    config = transformers.GPT2Config(**TOKENS, n_embd=24, n_layer=1, n_head=2, resid_pdrop=0.5)
    model = built(transformers.GPT2LMHeadModel, config).train()
    model.transformer.h[0].mlp.eval()
    assert forward_path(model).head is model.lm_head
    assert model.transformer.drop.training
    assert not model.transformer.h[0].mlp.training


def test_a_language_model_with_another_loss_is_refused(ragged_batch):
    config = transformers.XLNetConfig(vocab_size=VOCABULARY, d_model=24, n_layer=1, n_head=2, pad_token_id=1)
    model = built(transformers.XLNetLMHeadModel, config)
    with pytest.raises(TaskError, match="XLNetLMHeadModel was trained with another loss"):
        CausalLM().example_loss(model, ragged_batch)


def t5():
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=24, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def bart():
    sizes = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "forced_eos_token_id": None}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**TOKENS, **sizes, **heads))


@pytest.mark.parametrize("family", [t5, bart])
def test_an_encoder_decoder_is_refused_as_a_language_model_in_memory_and_from_a_folder(family, ragged_batch, tmp_path):
    model = family().eval()
    with pytest.raises(TaskError, match="is an encoder-decoder"):
        CausalLM().example_loss(model, ragged_batch)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"causal_lm model\. Encoder-decoder models aren't supported"):
        load_model(ModelSettings(path=str(tmp_path)), "cpu", torch.float32)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "problem_type 'multi_label_classification'"),
        ({"num_labels": 3, "problem_type": "regression"}, "problem_type 'regression' isn't supported"),
        (
            {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 2, "fair": 1, "good": 0}},
            "names the classes in two orders: id2label has 0 'bad', and label2id has 2 'bad'",
        ),
        ({"num_labels": 1}, r"A regression head \(num_labels 1\) isn't supported"),
    ],
)
def test_a_classifier_with_another_loss_is_refused_in_memory_and_from_a_folder(settings, said, ragged_batch, tmp_path):
    config = transformers.BertConfig(**SIZES, **TOKENS, **settings)
    model = built(transformers.BertForSequenceClassification, config)
    with pytest.raises(TaskError, match=said):
        SequenceClassification().example_loss(model, ragged_batch)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=said):
        load_model(ModelSettings(path=str(tmp_path), kind="sequence_classification"), "cpu", torch.float32)


def test_comparing_the_losses_leaves_the_configuration_as_it_was(ragged_batch):
    model = built(transformers.BertForSequenceClassification, transformers.BertConfig(**SIZES, **TOKENS, num_labels=3))
    SequenceClassification().example_loss(model, ragged_batch)
    assert model.config.problem_type is None


def test_the_loss_of_a_router_is_said_to_be_left_out(ragged_batch, tmp_path, caplog):
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": True}
    model = built(transformers.MixtralForCausalLM, transformers.MixtralConfig(**GROUPED, **experts)).float()
    with torch.no_grad():
        torch.testing.assert_close(CausalLM().example_loss(model, ragged_batch), own_loss(model, ragged_batch))
    model.save_pretrained(tmp_path)
    load_model(ModelSettings(path=str(tmp_path)), "cpu", torch.float32)
    assert "an auxiliary loss of its router (router_aux_loss_coef 0.001)" in caplog.text
