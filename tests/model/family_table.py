"""Each of the tiny models held to one-example-at-a-time autograd: right, or refused by name.

`python -m tests.model.family_table` prints the table of docs/models.md.
"""

import sys
import warnings
from types import SimpleNamespace

import torch
import transformers

from influence.errors import InfluenceError
from influence.gradients.capture import Capture
from influence.gradients.capture_check import check_capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import LayerSettings, tracked_layers
from influence.task import CausalLM, SequenceClassification
from tests.model.families import ADAPTERS, CAUSAL, CLASSIFIERS, V
from tests.reference.microbatch import one_backward_per_example


def causal_model(name):
    """A language model of a family, of random weights in float64."""
    family, settings = CAUSAL[name]
    seq2seq = family in ("T5Config", "BartConfig")
    auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    return _built(auto, family, settings)


def classifier(name):
    """A classifier of three classes of a family."""
    family, settings = CLASSIFIERS[name]
    return _built(transformers.AutoModelForSequenceClassification, family, {**settings, "num_labels": 3})


def adapted(name):
    """A Llama with adapters of a kind, every trained number random."""
    import peft

    kind, settings = ADAPTERS[name]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(causal_model("Llama").float(), getattr(peft, kind)(**settings)).double().eval()
    _randomise([parameter for parameter in model.parameters() if parameter.requires_grad])
    return model


def batch(lengths=(9, 3, 6, 5)):
    """Texts of random tokens, right padded, each ending with the end-of-text token."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, V, (length,), generator=generator)
        ids[row, length - 1] = 2
        mask[row, :length] = 1
    return SimpleNamespace(
        input_ids=ids,
        attention_mask=mask,
        labels=ids.masked_fill(mask == 0, -100),
        label=torch.arange(len(lengths)) % 3,
    )


def examples(whole):
    """Each text of a batch alone, without padding."""
    for row, length in enumerate(whole.attention_mask.sum(dim=1).tolist()):
        yield SimpleNamespace(**{name: part[row : row + 1][..., :length] for name, part in vars(whole).items()})


def own_loss(model, one):
    """The loss of one text from the model's own logits."""
    # RWKV writes its cache in place, which has no backward pass.
    cache = {"use_cache": False} if model.config.model_type == "rwkv" else {}
    logits = model(input_ids=one.input_ids, attention_mask=one.attention_mask, **cache).logits
    if logits.ndim == 3:
        logits, targets = logits[0, :-1], one.labels[0, 1:]
    else:
        targets = one.label
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")[None]


def error_of(model):
    """Return the largest relative error of a row or a loss against autograd.

    Raises:
        InfluenceError: The model is refused.
    """
    whole, classifies = batch(), "Classification" in type(model).__name__
    task = SequenceClassification() if classifies else CausalLM()
    layers = tracked_layers(model)
    check_capture(model, layers, LayerSettings(), task.example_loss, whole)
    projection = Projection(ProjectionSettings(kind="none"))
    with Capture(model, layers, projection) as capture:
        rows, losses = capture(task.example_loss, whole)
    slow = one_backward_per_example(model, layers, projection, own_loss, list(examples(whole)))
    with torch.no_grad():
        expected = torch.cat([own_loss(model, one) for one in examples(whole)])
    of_rows = (rows - slow).norm(dim=1) / slow.norm(dim=1)
    return float(max(of_rows.max(), ((losses - expected) / expected).abs().max()))


def _built(auto, family, settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, family)(**settings)
        # The fused kernels have no float64.
        config._experts_implementation = "eager"
        model = auto.from_config(config).eval()
    _randomise(model.parameters())
    # Its mask can't be made in float64.
    return model if family == "XGLMConfig" else model.double()


def _randomise(parameters):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def table():
    """Yield a line of the table in docs/models.md for each model and kind of adapters."""
    for kind, names, build in (
        ("language model", CAUSAL, causal_model),
        ("classifier", CLASSIFIERS, classifier),
        ("adapters", ADAPTERS, adapted),
    ):
        for name in names:
            try:
                outcome = f"right ({error_of(build(name)):.0e})"
            except InfluenceError as error:
                outcome = f"refused: {error}"
            yield f"| {name} | {kind} | {outcome} |"


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    for line in table():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
