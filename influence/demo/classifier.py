"""A small sequence classifier, trained from scratch on a file of texts and labels, and how often it is right.

A ModernBERT of one layer that reads the class from the mean of all positions, under much dropout: of a thousand short
texts a bag of words is most of what can be learnt, and a model that could learn wrong labels by heart would hide them.
On two seeds of `demo.dirty` a BERT of two layers was right about .81 to .86 of test rows and took four times as long,
this one about .85; some fourteen settings were tried there. Its own byte-level BPE tokeniser reads capitals as small
letters. The loop is that of `demo.training`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from influence.data.batch import collate, cut_batches
from influence.data.dataset import DataSettings, open_rows
from influence.data.example import Example
from influence.data.tokenise import tokenise
from influence.demo.training import (
    END,
    END_ID,
    PAD_ID,
    FitSettings,
    quiet,
    train_into,
    train_tokeniser,
    trained_on,
    training_of,
)
from influence.engine.progress import Report
from influence.errors import DataError

HEAD = 32
"""Width of an attention head."""
KIND = "sequence_classification"
MAX_TOKENS = 64
"""Tokens of a text that are read."""
TOKEN_BUDGET = 8192
"""Padded tokens of a batch that is only looked at."""


class ClassifierSettings(FitSettings):
    """The size of the classifier and of its training. Frozen; part of what a trained folder is known by."""

    vocabulary: Annotated[int, Field(ge=300)] = 4096
    layers: Annotated[int, Field(ge=1)] = 1
    hidden: Annotated[int, Field(ge=HEAD, multiple_of=HEAD)] = 64
    epochs: Annotated[int, Field(ge=1)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.6


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often a classifier gives the texts of a file the labels that the file has.

    Attributes:
        rows: Rows of the file.
        right: How many are given their label.
        trained: Rows whose text is, to the letter, in the data it was trained on.
        trained_right: How many of these are given their label.
    """

    rows: int
    right: int
    trained: int
    trained_right: int

    @property
    def share(self) -> float:
        """Of all rows, those given their label."""
        return self.right / self.rows

    @property
    def unseen_share(self) -> float | None:
        """The same of the rows that it wasn't trained on; None where there are none."""
        rows = self.rows - self.trained
        return (self.right - self.trained_right) / rows if rows else None


def classifier_data(path: str | Path) -> DataSettings:
    """Return how a file of texts and labels is read."""
    return DataSettings(path=str(path), max_tokens=MAX_TOKENS)


def train_classifier(
    data: DataSettings, folder: Path, settings: ClassifierSettings | None = None, progress: Report | None = None
) -> bool:
    """Train a classifier on texts and labels and save it, with its tokeniser, as a checkpoint folder.

    Args:
        data: The rows, as a run file names them; `max_tokens` cuts them.
        folder: Replaced when the training is done. Left alone where it holds what this training would give.
        settings: Sizes and seed.
        progress: Called after every optimiser step with a `Step` of the stage `training`.

    Returns:
        Whether anything was trained.

    Raises:
        DataError: The data can't be read, or have no labels, or one class only.
    """
    settings = settings or ClassifierSettings()
    rows = open_rows(data)
    rows.check(KIND)
    digest = rows.digest()
    if trained_on(folder, data, digest, settings):
        return False
    examples = list(rows.examples())
    names = sorted({str(example.label) for example in examples})
    if len(names) < 2:
        raise DataError(f"{data.path} has rows of one class only, {names[0]!r}. A classifier needs two or more.")
    numbers = {name: number for number, name in enumerate(names)}
    tokeniser = _tokeniser([example.text for example in examples], settings.vocabulary)
    parts = tokenise(examples, tokeniser, data, KIND, numbers)
    train_into(
        folder,
        lambda: _new_model(tokeniser, numbers, settings, data.max_tokens),
        tokeniser,
        parts,
        settings,
        training_of(data, digest, settings),
        progress,
    )
    return True


def accuracy(folder: Path, files: Sequence[DataSettings], trained: DataSettings) -> list[Accuracy]:
    """Return how often a classifier is right about each of some files.

    Args:
        folder: What `train_classifier` made.
        files: Texts and the labels that are expected.
        trained: What it was trained on, to tell its texts apart.

    Raises:
        DataError: A file can't be read, or has a label that the classifier doesn't know.
    """
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokeniser = AutoTokenizer.from_pretrained(folder)
    seen = {example.text for example in open_rows(trained).examples()}
    found = []
    for file in files:
        rows = open_rows(file)
        rows.check(KIND)
        examples = list(rows.examples())
        right = _right(model, tokeniser, examples, file)
        known = [example.text in seen for example in examples]
        both = sum(one and other for one, other in zip(right, known, strict=True))
        found.append(Accuracy(len(examples), sum(right), sum(known), both))
    return found


@torch.no_grad()
def _right(model: Any, tokeniser: Any, examples: Sequence[Example], data: DataSettings) -> list[bool]:
    """Return which examples are given their label."""
    parts = tokenise(examples, tokeniser, data, KIND, model.config.label2id)
    found = [False] * len(examples)
    for group in cut_batches([len(part.input_ids) for part in parts], TOKEN_BUDGET):
        batch = collate([parts[index] for index in group], PAD_ID)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        assert batch.label is not None
        for index, same in zip(group, (logits.argmax(-1) == batch.label).tolist(), strict=True):
            found[index] = same
    return found


def _tokeniser(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokeniser = train_tokeniser(texts, vocabulary, folded=True)
    tokeniser.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, END_ID)]
    )
    return tokeniser


def _new_model(
    tokeniser: PreTrainedTokenizerFast, numbers: dict[str, int], settings: ClassifierSettings, positions: int
) -> ModernBertForSequenceClassification:
    """Return an untrained model of the settings' size, float32."""
    config = ModernBertConfig(
        vocab_size=len(tokeniser),
        hidden_size=settings.hidden,
        intermediate_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden // HEAD,
        layer_types=["full_attention"] * settings.layers,
        max_position_embeddings=positions,
        classifier_pooling="mean",
        embedding_dropout=settings.dropout,
        attention_dropout=settings.dropout,
        mlp_dropout=settings.dropout,
        classifier_dropout=settings.dropout,
        pad_token_id=PAD_ID,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        cls_token_id=END_ID,
        sep_token_id=END_ID,
        label2id=numbers,
        id2label={number: name for name, number in numbers.items()},
    )
    return ModernBertForSequenceClassification(config)


__all__ = ["Accuracy", "ClassifierSettings", "accuracy", "classifier_data", "train_classifier"]
