"""What training the demos' models has in common: the tokeniser, the loop, and a folder that is whole or isn't there.

transformers' `Trainer`, AdamW with a linear schedule, batches of rows of one length under a token budget. Everything is
seeded and runs on the CPU in float32 with a fixed number of threads: the same rows give the same weights on the same
machine. The random generators and torch's thread count are put back afterwards.
"""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from index.strict_json import read_json
from influence.data.batch import Batch, collate, cut_batches
from influence.data.dataset import DataSettings
from influence.data.tokenise import Part
from influence.engine.progress import Report, Step, silent
from influence.errors import ConfigError

TRAINING = "demo_training.json"
"""The file, in the checkpoint folder, that says what the model was trained on."""
END, PAD = "<|end|>", "<|pad|>"
END_ID, PAD_ID = 0, 1  # the trainer numbers special tokens first


class FitSettings(BaseModel):
    """How long and how fast a model is trained. Frozen; part of what a trained folder is known by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Annotated[int, Field(ge=1)] = 5
    token_budget: Annotated[int, Field(ge=2)] = 512
    """Padded tokens a training batch holds."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    most_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many steps, whatever the epochs."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Fixed, because the order of float additions depends on it. One: batches this small hardly gain from a second."""
    seed: Annotated[int, Field(ge=0)] = 0


def train_into(
    folder: Path,
    new_model: Callable[[], PreTrainedModel],
    tokeniser: PreTrainedTokenizerFast,
    parts: list[Part],
    settings: FitSettings,
    about: dict[str, Any],
    progress: Report | None = None,
) -> None:
    """Train a new model on tokenised rows and save it, with its tokeniser, as a checkpoint folder.

    Args:
        folder: Replaced when the training is done; an interrupted training leaves what was there. Nothing else may
            train into it meanwhile.
        new_model: Makes the untrained model, from torch's generator.
        tokeniser: The one that made the parts.
        parts: Rows with something to learn; put into another order.
        settings: Of the loop.
        about: What `trained_on` asks about; see `training_of`.
        progress: Called after every optimiser step with a `Step` of the stage `training`.

    Raises:
        ConfigError: `folder` holds something else.
    """
    # Rows of one length are batched in the order they come: shuffled, or a batch would be one module's docstrings.
    random.Random(settings.seed).shuffle(parts)
    groups = cut_batches([len(part.input_ids) for part in parts], settings.token_budget)
    batches = [collate([parts[index] for index in group], PAD_ID) for group in groups]
    _check_replaceable(folder)
    with _scratch(folder) as scratch, _seeded(settings), quiet():
        model = new_model()
        _fit(model, batches, settings, scratch, progress or silent)
        made = scratch / "checkpoint"
        model.save_pretrained(made)
        tokeniser.save_pretrained(made)
        (made / TRAINING).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)


def trained_on(folder: Path, data: DataSettings, digest: str, settings: FitSettings) -> bool:
    """Return whether a folder holds a finished model that was trained on this data with these settings."""
    try:
        found = read_json(folder / TRAINING)
    except (OSError, ValueError):
        return False
    return found == training_of(data, digest, settings)


def training_of(data: DataSettings, digest: str | None, settings: FitSettings) -> dict[str, Any]:
    """Return what a training is known by: how the data were read, their digest, and every setting."""
    read = data.model_dump(mode="json", exclude={"path"})
    return {"data": {**read, "digest": digest}, "settings": settings.model_dump(mode="json")}


def train_tokeniser(texts: Sequence[str], vocabulary: int, *, folded: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokeniser learnt from texts, with an end-of-text and a padding token.

    Args:
        texts: What it learns from.
        vocabulary: Tokens, at most.
        folded: Read a word the same in upper and lower case and at the beginning of a text.
    """
    bpe = Tokenizer(models.BPE())
    if folded:
        bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=folded)
    bpe.decoder = decoders.ByteLevel()
    learner = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, learner)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)


def _check_replaceable(folder: Path) -> None:
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / TRAINING).is_file():
        raise ConfigError(
            f"{folder} exists and is no model that was trained here (it has no {TRAINING}), and the training would "
            "replace it. Name a folder that doesn't exist yet."
        )
    if not folder.parent.is_dir():
        raise ConfigError(f"The folder {folder.parent} doesn't exist; make it, or train into another.")


def _fit(
    model: PreTrainedModel, batches: Sequence[Batch], settings: FitSettings, scratch: Path, report: Report
) -> None:
    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_train_batch_size=1,  # an item is a whole batch
        num_train_epochs=settings.epochs,
        max_steps=settings.most_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=max(1, settings.epochs * len(batches) // 30),
        weight_decay=0.01,
        adam_beta2=0.95,
        seed=settings.seed,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model, arguments, train_dataset=_Batches(batches), data_collator=_only, callbacks=[_Progress(report)]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class _Batches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Ready batches, one an item; the Trainer shuffles their order anew every epoch."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = self.batches[index]
        labels = batch.labels if batch.label is None else batch.label
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}


def _only(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    (item,) = items
    return item


class _Progress(TrainerCallback):
    """Reports every optimiser step."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.began = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()
        self.report(Step("training", 0, state.max_steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = time.monotonic() - self.began
        self.report(Step("training", state.global_step, state.max_steps, seconds=seconds))


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Make an empty folder beside the one to be trained into, and remove it afterwards.

    Its name is always the same, so that what a training left that was killed goes when the next one begins.
    """
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _seeded(settings: FitSettings) -> Iterator[None]:
    """Seed every generator that transformers draws from and fix torch's threads; put all of it back afterwards."""
    python, numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        random.seed(settings.seed)
        np.random.seed(settings.seed)
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and notes off the terminal for a while."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


__all__ = ["FitSettings", "quiet", "train_into", "train_tokeniser", "trained_on", "training_of"]
