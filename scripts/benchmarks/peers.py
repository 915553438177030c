"""EK-FAC of a causal language model, ours beside kronfluence's: time, peak memory, and whether the scores agree.

    python scripts/benchmarks/peers.py --data paragraphs.jsonl

Each side runs in a process of its own, one after the other, on the same random-weight model, rows, queries, dtype and
threads: it fits EK-FAC (empirical Fisher, damping a tenth of each module's mean eigenvalue) to all rows and scores
every query against every row. Both get the rows sorted by length and padded within a batch. Peak memory is the
process's largest resident set; what it was before the rows were touched is beside it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from capture import read_parts
from rich.console import Console
from rich.table import Table

from influence.data.batch import Batch, collate, cut_batches
from influence.data.tokenise import Part
from influence.model.layers import tracked_layers
from influence.query.pairwise import pairwise
from influence.recipes import recipe
from influence.task import CausalLM

VOCABULARY = 4096


def build_model(hidden: int, layers: int, positions: int, dtype: torch.dtype) -> Any:
    """Return a random Llama, all of whose block layers are `nn.Linear`."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        vocab_size=VOCABULARY,
        max_position_embeddings=positions,
        initializer_range=0.05,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def ours(model: Any, rows: list[Part], queries: list[Part], settings: argparse.Namespace) -> np.ndarray:
    """Return EK-FAC scores by this package, [queries, rows]."""
    chosen = recipe("ekfac", damping=0.1, factors={"labels": "empirical", "rows": None})
    batches, order = _batches(rows, settings.budget)
    asked, back = _batches(queries, settings.budget)
    scores = pairwise(model, CausalLM(), batches, asked, chosen).numpy()
    return scores[np.argsort(back)][:, np.argsort(order)]


def kronfluence(model: Any, rows: list[Part], queries: list[Part], settings: argparse.Namespace) -> np.ndarray:
    """Return EK-FAC scores by kronfluence, [queries, rows], per row as its authors scale them."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    names = [layer.name for layer in tracked_layers(model)]

    class LanguageModel(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
            logits = model(**inputs, use_cache=False).logits
            flat = logits[:, :-1].reshape(-1, logits.shape[-1])
            labels = batch["labels"][:, 1:].reshape(-1)
            return torch.nn.functional.cross_entropy(flat, labels, ignore_index=-100, reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Any) -> torch.Tensor:
            return batch["attention_mask"]

    def padded(parts: list[Part]) -> dict[str, torch.Tensor]:
        batch = collate(parts, 0)
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}

    task = LanguageModel()
    loading = DataLoaderKwargs(collate_fn=padded)
    order, back = (sorted(range(len(parts)), key=lambda i: -len(parts[i].input_ids)) for parts in (rows, queries))
    train, asked = [rows[i] for i in order], [queries[i] for i in back]
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "peers", prepare_model(model, task), task, cpu=True, disable_tqdm=True, output_dir=folder, log_level=40
        )
        analyzer.fit_all_factors(
            "ekfac",
            train,  # type: ignore[arg-type]
            per_device_batch_size=settings.batch,
            dataloader_kwargs=loading,
            factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=True),
        )
        analyzer.compute_pairwise_scores(
            "scores",
            "ekfac",
            query_dataset=asked,  # type: ignore[arg-type]
            train_dataset=train,  # type: ignore[arg-type]
            per_device_query_batch_size=settings.query_batch,
            per_device_train_batch_size=settings.batch,
            dataloader_kwargs=loading,
            score_args=ScoreArguments(damping_factor=None),
        )
        loaded: Any = analyzer.load_pairwise_scores("scores")
        scores = loaded["all_modules"].float().numpy()
    return scores[np.argsort(back)][:, np.argsort(order)]


SIDES = {"influence": ours, "kronfluence": kronfluence}


def _batches(parts: list[Part], budget: int) -> tuple[list[Batch], list[int]]:
    groups = cut_batches([len(part.input_ids) for part in parts], budget)
    return [collate([parts[i] for i in group], 0) for group in groups], [i for group in groups for i in group]


def run_side(settings: argparse.Namespace) -> None:
    """Run one side in this process and leave its scores and figures in `settings.out`."""
    torch.set_num_threads(settings.threads)
    parts = read_parts(settings.data, VOCABULARY, settings.max_tokens, settings.rows + settings.queries)
    rows, queries = parts[: settings.rows], parts[settings.rows :]
    model = build_model(settings.hidden, settings.layers, settings.max_tokens, getattr(torch, settings.dtype))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    scores = SIDES[settings.side](model, rows, queries, settings)
    figures = {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before": before / 1024,
        "tokens": sum(len(part.input_ids) for part in rows),
        "weights": sum(layer.inputs * layer.outputs for layer in tracked_layers(model)),
    }
    np.save(settings.out / f"{settings.side}.npy", scores)
    (settings.out / f"{settings.side}.json").write_text(json.dumps(figures))


def main() -> None:
    """Run both sides, `--repeats` times in turn, and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="jsonl with a text column; random tokens without it")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=int, default=2048, help="padded tokens a batch of ours")
    parser.add_argument("--batch", type=int, default=32, help="rows a batch of kronfluence's")
    parser.add_argument("--query-batch", type=int, default=100, help="queries a batch of kronfluence's")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.side:
        run_side(settings)
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(settings.repeats):
            for side in SIDES:
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side, "--out", folder], check=True)
                found[side].append(json.loads((Path(folder) / f"{side}.json").read_text()))
        scores = [np.load(Path(folder) / f"{side}.npy").ravel() for side in SIDES]
    table = Table("side", "seconds", "÷ kronfluence", "peak MiB", "before MiB", "÷ kronfluence")
    base = {key: float(np.median([run[key] for run in found["kronfluence"]])) for key in ("seconds", "peak")}
    for side, runs in found.items():
        seconds, peak, before = (float(np.median([run[key] for run in runs])) for key in ("seconds", "peak", "before"))
        ratios = f"{seconds / base['seconds']:.2f}", f"{peak / base['peak']:.2f}"
        table.add_row(side, f"{seconds:.1f}", ratios[0], f"{peak:,.0f}", f"{before:,.0f}", ratios[1])
    first = found["influence"][0]
    console = Console()
    console.print(f"{first['weights']:,} tracked weights, {first['tokens']:,} tokens in {settings.rows:,} rows")
    console.print(table)
    console.print(f"correlation of all {len(scores[0]):,} scores: {np.corrcoef(*scores)[0, 1]:.6f}")


if __name__ == "__main__":
    main()
