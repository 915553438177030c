"""What decides the bytes of a run's rows, as flat named parts; two runs that differ can say in which setting."""

import hashlib
import json
import socket
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from influence.artifacts.digest import FORMAT_VERSION
from influence.axes import ModuleColumns
from influence.capture.cut import PLAN_VERSION
from influence.capture.drawn import PART as DRAWN
from influence.capture.drawn import drawn_parts
from influence.capture.spec import CaptureSpec, CheckpointFiles, checkpoint_files
from influence.config import RunConfig
from influence.coverage import Coverage
from influence.data.canonical import READING
from influence.data.dataset import Rows
from influence.errors import FingerprintMismatch
from influence.gradients.optimiser import state_digest
from influence.gradients.projection import PROJECTION_VERSION
from influence.model.load import ModelSettings, model_digest, tokeniser_digest
from influence.store.codecs import CALIBRATED, CODEC_VERSION
from influence.store.manifest import Part

PROBED = ("model.dtype", "cluster.device", "cluster.token_budget", "store.rows_per_shard", "modules", "dims")


class Probed(BaseModel):
    """What a worker found out about a run before it starts; small, and sent back to the coordinator.

    Attributes:
        modules: The tracked modules and their columns, of all checkpoints.
        dims: The columns of a row.
        dtype: What the model computes in.
        device: The kind of device.
        device_name: In words.
        token_budget: Padded tokens of a batch.
        model_bytes: Of the weights.
        tokens_per_row: Mean over the rows looked at, after truncation.
        tokens_per_second: Of one worker's capture at one checkpoint; None unless it was measured.
        drawn: What trak's projector drew for each checkpoint, where there is one.
        coverage: Which share of the trained weights is tracked; None where rows aren't gradients.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modules: tuple[ModuleColumns, ...]
    dims: int
    dtype: str
    device: str
    device_name: str
    token_budget: int
    model_bytes: int
    tokens_per_row: float
    tokens_per_second: float | None = None
    drawn: tuple[str, ...] = ()
    coverage: Coverage | None = None


def settled_parts(config: RunConfig, rows: Rows) -> dict[str, Part]:
    """Return the parts that are known before a model is loaded. Reads the data, the weights and the tokeniser once.

    Of `bm25` the parts that decide its texts: the tokeniser is among them where rows are given as tokens.

    `model.dtype`, `cluster.device`, `cluster.token_budget` and `store.rows_per_shard` are among them only where the
    configuration decides them.
    """
    if config.recipe.baseline == "bm25":
        given = {"tokeniser": tokeniser_digest(config.model)} if rows.shape == "input_ids" else {}
        return {**_data_parts(rows), **setting_parts(config), **given}
    digests = {part: digest for part, (_, digest) in digested(config).items()}
    return {**_data_parts(rows), **digests, **setting_parts(config)}


def setting_parts(config: RunConfig) -> dict[str, Part]:
    """Return the parts that the configuration decides alone, without a look at the data or the model."""
    model, data, recipe = config.model, config.data, config.recipe.stored
    parts: dict[str, Part] = {
        "data.split": data.split,
        "data.name": data.name,
    }
    if recipe.baseline is not None:
        parts["recipe.baseline"] = recipe.baseline
    if config.store.rows_per_shard is not None:
        parts["store.rows_per_shard"] = config.store.rows_per_shard
    if recipe.baseline == "bm25":
        return parts
    parts |= {
        "model.kind": model.kind,
        "model.attention": model.attention,
        "data.max_tokens": data.max_tokens,
        "data.long_rows": data.long_rows,
        "data.append_eos": data.append_eos,
        "task.reduction": config.task.reduction,
        "store.codec": config.store.codec,
        "cluster.threads_per_worker": config.cluster.threads_per_worker,
    }
    if config.store.rank is not None:
        parts["store.rank"] = config.store.rank
    if config.store.codec in CALIBRATED:
        parts["codec_version"] = CODEC_VERSION
    if recipe.baseline is None:
        projection = recipe.projection.model_dump(mode="json", exclude=None if recipe.projection.folds else {"damping"})
        parts |= {
            "model.layers": _json(model.layers, exclude={"allow_partial"}),
            "recipe.gradient": recipe.gradient.kind,
            "recipe.measurement": recipe.measurement,
            **{f"recipe.projection.{key}": value for key, value in projection.items()},
            "projection_version": PROJECTION_VERSION,
        }
    if recipe.gradient.kind == "adam":
        parts |= {"recipe.gradient.epsilon": recipe.gradient.epsilon, "recipe.gradient.sides": recipe.gradient.sides}
    if recipe.checkpoints and recipe.weighted:
        shares = {f"recipe.checkpoints.{n}.share": files.share for n, files in enumerate(checkpoint_files(recipe))}
        parts |= shares
    if recipe.projection.folds:
        factors = recipe.factors.model_dump(mode="json")
        parts |= {f"recipe.factors.{key}": value for key, value in factors.items()}
        if config.task.reduction == "mean":
            parts["recipe.factors.scale"] = "root of the tokens"
    if model.dtype != "auto":
        parts["model.dtype"] = model.dtype
    if config.cluster.token_budget is not None:
        parts["cluster.token_budget"] = config.cluster.token_budget
    if config.cluster.device != "auto":
        parts["cluster.device"] = config.cluster.device
    return parts


def _data_parts(rows: Rows) -> dict[str, Part]:
    """Return the parts that the data decide. Reads them once."""
    parts: dict[str, Part] = {
        "format_version": FORMAT_VERSION,
        "data": rows.digest(),
        "data.rows": len(rows),
        "data.columns": _json(rows.columns),
        "data.reading": READING,
        "plan_version": PLAN_VERSION,
    }
    if rows.chats:
        parts["data.chats"] = True
    return parts


def digested(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Return the parts that are digests of files which the rows and the queries are computed with: (whose, digest).

    Reads the weights, the tokeniser and the optimisers' states once.
    """
    found = _digests(config.model, checkpoint_files(config.recipe))
    return dict(zip(_digest_parts(config), found, strict=True))


def _digest_parts(config: RunConfig) -> list[str]:
    """Return the names of the parts that are digests of files, in the order of `_digests`."""
    several, names = bool(config.recipe.checkpoints), ["model", "tokeniser"]
    for number, checkpoint in enumerate(checkpoint_files(config.recipe)):
        part = f"recipe.checkpoints.{number}"
        names += [part] if checkpoint.path is not None else []
        names += [f"{part}.state" if several else "recipe.gradient.state"] if checkpoint.state is not None else []
    return names


def _digests(model: ModelSettings, checkpoints: Sequence[CheckpointFiles]) -> list[tuple[str, str]]:
    """Return what rows are computed with, file by file: (whose, digest)."""
    found = [
        (f"model of {model.path}", model_digest(model)),
        (f"tokeniser of {model.tokeniser or model.path}", tokeniser_digest(model)),
    ]
    for files in checkpoints:
        if files.path is not None:
            found.append((f"checkpoint {files.path}", model_digest(model.model_copy(update={"path": files.path}))))
        if files.state is not None:
            found.append((f"optimiser's state {files.state}", state_digest(files.state)))
    return found


def expected_digests(config: RunConfig, parts: Mapping[str, Part]) -> tuple[str, ...]:
    """Return what workers of other machines must find, for `CaptureSpec.digests`; nothing where all are this one's.

    Nothing of `bm25` either, whose rows are words: its manifest has no digest of a model.
    """
    if config.cluster.here or config.recipe.baseline == "bm25":
        return ()
    return tuple(str(parts[part]) for part in _digest_parts(config))


def check_digests(spec: CaptureSpec) -> None:
    """Refuse to compute rows of a run with other files than its coordinator has.

    Raises:
        FingerprintMismatch: This machine has another revision of the model, its tokeniser, or a checkpoint.
    """
    for (what, found), expected in zip(_digests(spec.model, spec.checkpoints), spec.digests, strict=True):
        if found != expected:
            raise FingerprintMismatch(
                f"The {what}, as {socket.gethostname()} has it, has the digest {found}; the run's coordinator found "
                f"{expected}. Give every worker the same files, then build again: nothing was computed with these."
            )


def all_parts(settled: dict[str, Part], probed: Probed, per_shard: int) -> dict[str, Part]:
    """Return every part, with what only a worker could tell."""
    modules = json.dumps([module.model_dump(mode="json") for module in probed.modules], sort_keys=True)
    return {
        **settled,
        "model.dtype": probed.dtype,
        "cluster.device": probed.device,
        "cluster.token_budget": probed.token_budget,
        "store.rows_per_shard": per_shard,
        "modules": hashlib.sha256(modules.encode()).hexdigest(),
        "dims": probed.dims,
        **drawn_parts(probed.drawn),
    }


def probed_parts(parts: dict[str, Part]) -> dict[str, Part]:
    """Return those of a run's parts that only a worker could tell."""
    return {name: value for name, value in parts.items() if name in PROBED or name.startswith(DRAWN)}


def _json(settings: BaseModel, exclude: set[str] | None = None) -> str:
    return json.dumps(settings.model_dump(mode="json", exclude=exclude), sort_keys=True, separators=(",", ":"))
