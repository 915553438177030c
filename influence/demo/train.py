"""The demo's model: a small Llama-style language model, trained from scratch on the corpus.

Its own byte-level BPE tokeniser and the loop of `demo.training`, on rows that are tokenised and cut by the functions
that the capture uses. The result is an ordinary checkpoint folder. Small batches and embeddings that begin at unit
scale are what makes it learn in a minute or two.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from influence.data.dataset import DataSettings, open_rows
from influence.data.tokenise import tokenise
from influence.demo.training import END_ID, PAD_ID, FitSettings, train_into, train_tokeniser, trained_on, training_of
from influence.engine.progress import Report

POSITIONS = 256
"""The longest text the model takes, whatever its rows were cut to: queries are never cut."""
HEAD = 32
"""Width of an attention head."""


class TrainSettings(FitSettings):
    """The size of the demo's model and of its training. Frozen; part of what a trained folder is known by."""

    vocabulary: Annotated[int, Field(ge=300)] = 4096
    layers: Annotated[int, Field(ge=1)] = 3
    hidden: Annotated[int, Field(ge=HEAD, multiple_of=HEAD)] = 128


def train(
    data: DataSettings,
    folder: Path,
    settings: TrainSettings,
    progress: Report | None = None,
    *,
    digest: str | None = None,
) -> None:
    """Train a tokeniser and a model on a data set and save both as one checkpoint folder.

    Args:
        data: The rows, as a run file names them; `max_tokens` cuts them.
        folder: Replaced when the training is done; see `train_into`.
        settings: Sizes and seed.
        progress: Called after every optimiser step with a `Step` of the stage `training`.
        digest: Of the data; left in the folder for `trained_on`.

    Raises:
        DataError: The data can't be read.
    """
    rows = open_rows(data)
    examples = list(rows.examples(0, len(rows)))
    tokeniser = train_tokeniser([example.text for example in examples], settings.vocabulary)
    parts = [part for part in tokenise(examples, tokeniser, data) if part.scored]
    positions = max(POSITIONS, data.max_tokens)
    train_into(
        folder,
        lambda: new_model(tokeniser, settings, positions),
        tokeniser,
        parts,
        settings,
        training_of(data, digest, settings),
        progress,
    )


def new_model(tokeniser: PreTrainedTokenizerFast, settings: TrainSettings, positions: int) -> LlamaForCausalLM:
    """Return an untrained model of the settings' size, float32; embeddings and unembedding share their weight."""
    config = LlamaConfig(
        vocab_size=len(tokeniser),
        hidden_size=settings.hidden,
        intermediate_size=settings.hidden * 8 // 3 // HEAD * HEAD,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden // HEAD,
        num_key_value_heads=settings.hidden // HEAD,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        use_cache=False,
        initializer_range=settings.hidden**-0.5,
    )
    return LlamaForCausalLM(config)


__all__ = ["PAD_ID", "TrainSettings", "new_model", "train", "train_tokeniser", "trained_on"]
