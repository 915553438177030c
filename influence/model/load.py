"""A trained model, loaded once a worker: frozen, in eval mode, every weight from its files and every weight finite.

transformers fills a weight that a checkpoint lacks with random numbers and only prints a table; gradients of such a
weight would be noise that looks like an answer. So nothing is filled in here: a checkpoint gives every weight of the
model asked for and nothing else, or it is a `ModelError`. No pickle is ever read, and no code of the checkpoint runs
unless asked for.
"""

import logging
from collections.abc import Set
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field

from influence.errors import ModelError
from influence.model import adapter, folder, placement
from influence.model.heads import unsupported_model
from influence.model.kernels import check_kernels
from influence.model.layers import LayerSettings
from influence.model.quiet import quiet
from influence.model.training_loss import report_router_loss
from influence.model.weights import check_complete, check_finite

log = logging.getLogger(__name__)

ModelKind = Literal["causal_lm", "sequence_classification"]


class ModelSettings(BaseModel):
    """Which model, and how it is loaded.

    Attributes:
        path: A folder (a checkpoint, or PEFT adapters), or a name on the model hub.
        kind: Which head the model was trained with.
        dtype: `auto` is bfloat16 where the device multiplies it in hardware, float32 elsewhere.
        tokeniser: A folder or hub name, where the tokeniser isn't beside the model.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Let Python files of the checkpoint run. Off unless set.
        attention: transformers' `attn_implementation`; where not set its own choice, but for bfloat16 on a CPU (see
            `influence.model.attention`).
        gradient_checkpointing: Recompute the blocks' activations in the backward pass: less memory, more time.
        device_map: Spread a model that is larger than one GPU over those of one machine: `auto`, `balanced` or
            `sequential`, transformers' rules, or {module: device}. One worker then has all of them.
        layers: Which layers are tracked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    kind: ModelKind = "causal_lm"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tokeniser: str | None = Field(default=None, min_length=1)
    revision: str | None = None
    trust_remote_code: bool = False
    attention: str | None = None
    gradient_checkpointing: bool = False
    device_map: placement.DeviceMap | None = None
    layers: LayerSettings = LayerSettings()


def resolve_dtype(settings: ModelSettings, device: torch.device | str) -> torch.dtype:
    """Return the dtype to load in; `auto` looks at the device, never at the checkpoint."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    return torch.bfloat16 if _multiplies_bfloat16(torch.device(device)) else torch.float32


def load_model(settings: ModelSettings, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Load the model onto a device: frozen, in eval mode, every weight from its files and every weight finite.

    With `gradient_checkpointing` its blocks (and nothing inside them) are in training mode, the only one in which
    transformers checkpoints; a later `model.eval()` turns it off.

    Returns:
        A `transformers.PreTrainedModel`, or a `peft.PeftModel` around one.

    Raises:
        ModelError: No such folder, no or damaged or pickled weights, weights missing or left over (another `kind`),
            weights that aren't finite, an attention implementation that isn't available, or weights that
            `device_map` found no place for.
        MissingExtra: The folder holds adapters and `peft` isn't installed.
    """
    device = torch.device(device)
    path = folder.locate(settings.path, settings.revision)
    adapted = folder.is_adapter(path)
    base = adapter.base_folder(path) if adapted else path
    folder.check_readable(folder.weight_files(path))
    supplied = adapter.supplied_weights(path) if adapted else set()
    labels = adapter.label_count(path) if adapted and settings.kind == "sequence_classification" else None
    with quiet():
        model = inner = _load_whole(settings, base, device, dtype, supplied, labels)
        if adapted:
            model = adapter.attach(inner, path, str(device))
        model.eval()
        if settings.gradient_checkpointing:
            # Transformers' modelling code, seconds of work, which most processes never need.
            from influence.model.recomputation import recompute_blocks

            recompute_blocks(inner)
    check_finite(model, path, dtype)
    _check_padding(model, settings, path)
    report_router_loss(model)
    model.requires_grad_(False)
    log.debug("Loaded %s from %s in %s on %s.", type(model).__name__, path, dtype, device)
    return model


def load_tokeniser(settings: ModelSettings) -> Any:
    """Load the tokeniser that is set, else the one beside the model, else (adapters) beside the model underneath.

    Returns:
        A `transformers.PreTrainedTokenizerBase`.

    Raises:
        ModelError: The folder has no tokeniser, or it can't be read.
    """
    path = _tokeniser_folder(settings)
    with quiet():
        try:
            tokeniser = transformers.AutoTokenizer.from_pretrained(
                path,
                trust_remote_code=settings.trust_remote_code,
                local_files_only=not settings.trust_remote_code,
            )
        except Exception as error:
            raise ModelError(
                f"The tokeniser in {path} can't be loaded: {folder.first_line(error)} Save it again with "
                "save_pretrained, or set model.tokeniser to a folder that has it."
            ) from error
    if len(tokeniser) <= len(tokeniser.all_special_ids):
        raise ModelError(
            f"The tokeniser in {path} has no vocabulary ({len(tokeniser)} tokens, all special): set model.tokeniser."
        )
    return tokeniser


def pad_id(model: Any, tokeniser: Any) -> int:
    """Return the token that fills short rows: the model's own, else the tokeniser's padding or end of text, else 0.

    The model's comes first because classifiers and RoBERTa find the end of a text by it.

    Raises:
        ModelError: The tokeniser's vocabulary, tokens added to it apart, has more tokens than the model embeddings.
    """
    rows, tokens = model.get_input_embeddings().weight.shape[0], tokeniser.vocab_size
    if tokens > rows:
        raise ModelError(
            f"The tokeniser has {tokens:,} tokens and the model embeddings for {rows:,}: it is another model's. Set "
            "model.tokeniser to the one that this model was trained with."
        )
    for token in (getattr(model.config, "pad_token_id", None), tokeniser.pad_token_id, tokeniser.eos_token_id):
        if token is not None and 0 <= token < rows:
            return token
    return 0


def model_digest(settings: ModelSettings) -> str:
    """Return a sha256 over the configuration and the weights, adapters included; of a hub model, its commit.

    Where the model may run Python files of its folder, they are part of it. Reads every file once; takes about a second
    a gigabyte.
    """
    path = folder.locate(settings.path, settings.revision)
    if not folder.is_adapter(path):
        return _digest(path, folder.CONFIG, settings)
    own, base = _digest(path, folder.ADAPTER_CONFIG, settings), adapter.base_folder(path)
    return f"{own}+{_digest(base, folder.CONFIG, settings)}"


def weight_count(settings: ModelSettings) -> int:
    """Return how many numbers a model's weights are, adapters included. Reads the files' headers alone."""
    path = folder.locate(settings.path, settings.revision)
    beneath = (adapter.base_folder(path),) if folder.is_adapter(path) else ()
    return sum(folder.count_weights(file) for place in (path, *beneath) for file in folder.weight_files(place))


def tokeniser_digest(settings: ModelSettings) -> str:
    """Return a sha256 over the tokeniser's files, which decide the rows as much as the weights do."""
    place = _tokeniser_folder(settings)
    return folder.digest((*folder.tokeniser_files(place), *_code(place, settings)))


def _digest(path: Path, config: str, settings: ModelSettings) -> str:
    """Return the digest of one folder: of its configuration, its weights, and the code that they may run."""
    files = (path / config, *folder.weight_files(path), *_code(path, settings))
    commit = folder.hub_commit(path)
    if commit is None:
        return folder.digest(files)
    folder.check_blobs(files)
    return commit


def _code(path: Path, settings: ModelSettings) -> tuple[Path, ...]:
    """Return the Python files that a folder's model or tokeniser may run."""
    return tuple(sorted(path.glob("*.py"))) if settings.trust_remote_code else ()


def _load_whole(
    settings: ModelSettings,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    supplied: Set[str],
    labels: int | None,
) -> Any:
    """Load a checkpoint folder; `supplied` weights it may lack because adapters bring them, with `labels` classes."""
    folder.check_readable(folder.weight_files(path))
    if not settings.trust_remote_code:
        check_kernels(path, settings.attention)
    auto = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "sequence_classification": transformers.AutoModelForSequenceClassification,
    }[settings.kind]
    options = {"attn_implementation": settings.attention, "num_labels": labels}
    _check_kind(settings, path, labels)
    try:
        model, report = auto.from_pretrained(
            path,
            dtype=dtype,
            device_map=placement.resolve_device_map(settings.device_map, device),
            use_safetensors=True,
            local_files_only=not settings.trust_remote_code,
            trust_remote_code=settings.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **{name: value for name, value in options.items() if value},
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(
            f"{path} in {dtype} doesn't fit into the memory of {device}. Set model.dtype to bfloat16 or float16, or "
            "use a larger device."
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{path} needs Python code of its own to run. Read the *.py files there; if you trust them, set "
                "model.trust_remote_code to true."
            ) from error
        raise ModelError(f"{path} can't be loaded as a {settings.kind} model: {folder.first_line(error)}") from error
    check_complete(model, report, path, settings.kind, supplied)
    placement.check_placed(model, settings.device_map, device, path)
    used = getattr(model.config, "_attn_implementation", settings.attention)
    if settings.attention and used != settings.attention:
        raise ModelError(
            f"model.attention requires {settings.attention!r} and transformers would use {used!r} instead: install "
            f"what {settings.attention!r} needs, or set model.attention to {used!r}."
        )
    if settings.attention is None:
        from influence.model.attention import use_default_attention

        use_default_attention(model, device, dtype)
    return model


def _check_kind(settings: ModelSettings, path: Path, labels: int | None) -> None:
    """Refuse a model of another kind by its configuration, before transformers fills a head that it doesn't have."""
    try:
        config = transformers.AutoConfig.from_pretrained(
            path, trust_remote_code=settings.trust_remote_code, local_files_only=not settings.trust_remote_code
        )
    except Exception:  # Loading the model says what is wrong with it.
        return
    refusal = unsupported_model(config, settings.kind, labels)
    if refusal:
        raise ModelError(f"{path} can't be used as a {settings.kind} model. {refusal}")


def _check_padding(model: Any, settings: ModelSettings, path: Path) -> None:
    """A decoder's classifier reads its last token that isn't padding, so it must know which token padding is."""
    reads_last_token = settings.kind == "sequence_classification" and any(
        name.rpartition(".")[2] == "score" for name, _ in model.named_modules()
    )
    if reads_last_token and getattr(model.config, "pad_token_id", None) is None:
        raise ModelError(
            f"{type(model).__name__} in {path} pools the last token that isn't padding, and its {folder.CONFIG} sets "
            "no pad_token_id: add the one it was trained with."
        )


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # torch has had these probes under private names since 2.6; the public get_capabilities() came later.
    return any(
        bool(getattr(torch.cpu, probe, bool)()) for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def _tokeniser_folder(settings: ModelSettings) -> Path:
    if settings.tokeniser is not None:
        path = folder.locate(settings.tokeniser, None, "model.tokeniser")
        searched = [path]
    else:
        path = folder.locate(settings.path, settings.revision)
        searched = [path, adapter.base_folder(path)] if folder.is_adapter(path) else [path]
    for path in searched:
        if folder.tokeniser_files(path):
            return path
    raise ModelError(
        f"{' and '.join(map(str, searched))} {'holds' if len(searched) == 1 else 'hold'} no tokeniser (no "
        "tokenizer.json, tokenizer.model or vocabulary). Save it there with tokenizer.save_pretrained(…), or set "
        "model.tokeniser to its folder or hub name."
    )
