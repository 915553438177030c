"""The ground truth of `quality.py`: a small causal language model, trained again on random halves of its rows.

    nice -n 10 python scripts/benchmarks/truth.py --data paragraphs.jsonl --cache /tmp/quality

Rows are paragraphs, each cut at its own length: drawn log-uniformly, so that there are short and long ones alike.
Queries are whole paragraphs, cut at the longest a row may have. The model is the demo's, Llama-style, with a tokeniser
learnt from the rows; AdamW with a cosine schedule, float32, batches of rows of similar length under a token budget,
in which every token weighs the same. Retraining j has subset j and seed j: initial weights and order of the batches.

The cache is one folder; every training is one file in it, written whole or not at all, so the same command resumes:

    settings.json            the settings and a digest of every token; a folder of other settings is refused
    checkpoints/epoch-10/    the model of all rows after every epoch, with its tokeniser; beside it `adam.safetensors`,
                             the optimiser's second moments by parameter name, and `training.json`, its rate and steps
    full.npz                 `rows`, `queries`: the last one's losses, summed over tokens
    subset-000.npz           `queries`: losses under the model of half 0; `subset`, `rows`: what it was trained on
    subset-000-again.npz     the same half under another seed, for a few: what no prediction can beat
"""

import argparse
import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from influence.artifacts.partial import write_whole
from influence.data.batch import Batch, collate, cut_batches
from influence.data.tokenise import NOT_SCORED, Part
from influence.demo.train import PAD_ID, TrainSettings, new_model, train_tokeniser
from influence.errors import DataError, FingerprintMismatch
from influence.evaluate.subsets import half_subset
from influence.task import CausalLM

log = logging.getLogger("truth")

AGAIN = 10_000
"""Added to a subset's number for the seed of its second training."""
SUMMARY = "%s: %.1f s; loss a token: training %.3f, queries %.3f"


@dataclass(frozen=True)
class Settings:
    """Everything that a loss in the cache depends on, but for the data's own bytes."""

    rows: int = 1000
    queries: int = 60
    min_tokens: int = 20
    max_tokens: int = 256
    vocabulary: int = 2048
    layers: int = 3
    hidden: int = 96
    epochs: int = 10
    token_budget: int = 512
    learning_rate: float = 6e-3
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Corpus:
    """What is trained on and asked: parts as tokens, and the text those tokens spell."""

    tokeniser: PreTrainedTokenizerFast
    rows: list[Part]
    queries: list[Part]
    row_texts: list[str]
    query_texts: list[str]

    @property
    def digest(self) -> str:
        """SHA-256 over the tokens of rows and queries."""
        tokens = [part.input_ids for part in (*self.rows, *self.queries)]
        return hashlib.sha256(b"".join(len(ids).to_bytes(4, "little") + ids.tobytes() for ids in tokens)).hexdigest()


def read_corpus(data: Path, settings: Settings) -> Corpus:
    """Draw rows and queries from a jsonl file with a `text` column, and learn a tokeniser from the rows."""
    texts = [json.loads(line)["text"] for line in data.read_text(encoding="utf-8").splitlines()]
    generator = np.random.default_rng(settings.seed)
    order = generator.permutation(len(texts)).tolist()
    chosen = [texts[index] for index in order[: settings.rows]]
    tokeniser = train_tokeniser(chosen, settings.vocabulary)
    ids = tokeniser([texts[index] for index in order], verbose=False)["input_ids"]
    kept = [tokens for tokens in ids if len(tokens) >= settings.min_tokens]
    wanted = settings.rows + settings.queries
    if len(kept) < wanted:
        raise DataError(f"{data} has {len(kept)} texts of {settings.min_tokens} tokens or more; {wanted} are needed.")
    drawn = generator.uniform(np.log(settings.min_tokens), np.log(settings.max_tokens + 1), settings.rows)
    cuts = np.exp(drawn).astype(int).tolist() + [settings.max_tokens] * wanted
    cut = [tokens[:most] for tokens, most in zip(kept[:wanted], cuts, strict=False)]
    rows, queries = cut[: settings.rows], cut[settings.rows :]
    return Corpus(
        tokeniser, _parts(rows), _parts(queries), tokeniser.batch_decode(rows), tokeniser.batch_decode(queries)
    )


def _parts(rows: list[list[int]]) -> list[Part]:
    parts = []
    for position, tokens in enumerate(rows):
        labels = np.asarray(tokens, np.int32)
        labels[0] = NOT_SCORED
        parts.append(Part(position, np.asarray(tokens, np.int32), labels))
    return parts


AfterEpoch = Callable[[int, LlamaForCausalLM, torch.optim.Optimizer], None]


def train(
    corpus: Corpus, settings: Settings, rows: Sequence[int], seed: int, after_epoch: AfterEpoch | None = None
) -> LlamaForCausalLM:
    """Train a new model on some of the rows; a pure function of its arguments on one machine and one thread."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    size = TrainSettings(hidden=settings.hidden, layers=settings.layers, vocabulary=settings.vocabulary)
    model = new_model(corpus.tokeniser, size, settings.max_tokens).train()
    parts = [corpus.rows[row] for row in rows]
    epochs = [_shuffled(parts, settings.token_budget, generator) for _ in range(settings.epochs)]
    steps = sum(len(batches) for batches in epochs)
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    for epoch, batches in enumerate(epochs):
        for chosen in batches:
            loss = _summed_loss(model, collate([parts[index] for index in chosen], PAD_ID)) / settings.token_budget
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            schedule.step()
        if after_epoch is not None:
            after_epoch(epoch + 1, model, optimiser)
    return model.eval()


def _summed_loss(model: Any, batch: Batch) -> torch.Tensor:
    # Padding is on the right, where a causal model doesn't look: without a mask attention runs faster.
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1]
    scored = batch.labels[:, 1:] != NOT_SCORED
    return torch.nn.functional.cross_entropy(logits[scored].float(), batch.labels[:, 1:][scored], reduction="sum")


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / steps)))


def _shuffled(parts: Sequence[Part], budget: int, generator: np.random.Generator) -> list[list[int]]:
    """Cut an epoch into batches of rows of similar length, others every time, in random order."""
    lengths = np.array([len(part.input_ids) for part in parts])
    near = lengths * np.exp(0.05 * generator.standard_normal(len(parts)))
    batches: list[list[int]] = []
    longest = 0
    for index in np.argsort(-near, kind="stable").tolist():
        longest = max(longest, int(lengths[index]))
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = int(lengths[index])
        batches[-1].append(index)
    generator.shuffle(batches)  # type: ignore[arg-type]
    return batches


@torch.no_grad()
def losses(model: Any, parts: Sequence[Part]) -> np.ndarray:
    """Return the loss of each part, summed over its tokens, [parts], float64."""
    task, found = CausalLM(), np.zeros(len(parts))
    for group in cut_batches([len(part.input_ids) for part in parts], 8192):
        batch = collate([parts[index] for index in group], PAD_ID)
        found[group] = task.example_loss(model, batch).double().numpy()
    return found


def per_token(found: np.ndarray, parts: Sequence[Part]) -> float:
    """Return the mean loss of a token."""
    return float(found.sum() / sum(part.scored for part in parts))


def open_cache(cache: Path, data: Path, settings: Settings | None = None) -> tuple[Corpus, Settings]:
    """Make the folder, or check that it was made with this data and these settings (None: whichever it has)."""
    path = cache / "settings.json"
    if settings is None:
        if not path.exists():
            raise DataError(f"{path} is missing: run scripts/benchmarks/truth.py with this --cache first.")
        kept = json.loads(path.read_text())
        settings = Settings(**{key: value for key, value in kept.items() if key != "tokens_sha256"})
    corpus = read_corpus(data, settings)
    wanted = {**asdict(settings), "tokens_sha256": corpus.digest}
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(wanted, indent=2).encode())
    found = json.loads(path.read_text())
    if found != wanted:
        keys = {**found, **wanted}
        changed = ", ".join(f"{k} {found.get(k)} → {wanted.get(k)}" for k in keys if found.get(k) != wanted.get(k))
        raise FingerprintMismatch(
            f"{path} was made with other settings ({changed}). Losses of two settings can't be compared: give the "
            "settings it was made with, or another --cache."
        )
    return corpus, settings


def model_folder(cache: Path, epoch: int) -> Path:
    """Return where the model of all rows lies as it was after an epoch, counted from 1."""
    return cache / "checkpoints" / f"epoch-{epoch:02d}"


def train_full(cache: Path, corpus: Corpus, settings: Settings) -> None:
    """Train the model of all rows, unless the cache has it."""
    if (cache / "full.npz").exists():
        return
    half_made = cache / f"checkpoints.{os.getpid()}.partial"

    def keep(epoch: int, model: LlamaForCausalLM, optimiser: torch.optim.Optimizer) -> None:
        _save_checkpoint(half_made / model_folder(cache, epoch).name, corpus, model, optimiser)

    start = time.perf_counter()
    model = train(corpus, settings, range(settings.rows), settings.seed, keep)
    seconds = time.perf_counter() - start
    shutil.rmtree(cache / "checkpoints", ignore_errors=True)
    half_made.rename(cache / "checkpoints")
    _save_losses(cache / "full.npz", corpus, model, np.arange(settings.rows), seconds)


def _save_checkpoint(folder: Path, corpus: Corpus, model: LlamaForCausalLM, optimiser: torch.optim.Optimizer) -> None:
    model.save_pretrained(folder)
    corpus.tokeniser.save_pretrained(folder)
    states = {name: optimiser.state[parameter] for name, parameter in model.named_parameters()}
    save_file({name: state["exp_avg_sq"] for name, state in states.items()}, folder / "adam.safetensors")
    (group,) = optimiser.param_groups
    steps = int(max(float(state["step"]) for state in states.values()))
    training = {"next_learning_rate": group["lr"], "steps": steps, "betas": group["betas"], "eps": group["eps"]}
    (folder / "training.json").write_text(json.dumps(training))


def train_subset(cache: Path, corpus: Corpus, settings: Settings, number: int, again: bool = False) -> None:
    """Train the model of one half, unless the cache has its losses."""
    path = cache / f"subset-{number:03d}{'-again' if again else ''}.npz"
    if path.exists():
        return
    start = time.perf_counter()
    half = half_subset(settings.rows, number, settings.seed)
    model = train(corpus, settings, half.tolist(), 1 + number + (AGAIN if again else 0))
    seconds = time.perf_counter() - start
    _save_losses(path, corpus, model, half, seconds)


def _save_losses(path: Path, corpus: Corpus, model: LlamaForCausalLM, trained: np.ndarray, seconds: float) -> None:
    parts = [corpus.rows[row] for row in trained]
    rows, queries = losses(model, parts), losses(model, corpus.queries)
    packed = io.BytesIO()
    np.savez(packed, subset=trained, rows=rows, queries=queries, seconds=seconds)
    write_whole(path, packed.getvalue())
    log.info(SUMMARY, path.stem, seconds, per_token(rows, parts), per_token(queries, corpus.queries))


def main() -> None:
    """Train what the cache has not."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="jsonl with a `text` column")
    options.add_argument("--cache", type=Path, required=True)
    options.add_argument("--subsets", type=int, default=80)
    options.add_argument("--again", type=int, default=6, help="subsets trained a second time, under another seed")
    options.add_argument("--threads", type=int, default=1)
    for name, value in asdict(Settings()).items():
        options.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = options.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(given.threads)
    wanted = Settings(**{name: getattr(given, name) for name in asdict(Settings())})
    corpus, settings = open_cache(given.cache, given.data, wanted)
    log.info("%d rows, %d tokens", settings.rows, sum(len(part.input_ids) for part in corpus.rows))
    train_full(given.cache, corpus, settings)
    for number in range(given.subsets):
        train_subset(given.cache, corpus, settings, number)
        if number < given.again:
            train_subset(given.cache, corpus, settings, number, again=True)


if __name__ == "__main__":
    main()
