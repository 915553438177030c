"""How fast rows are captured, beside the same model's training step and forward pass, interleaved in one run.

    python scripts/benchmarks/capture.py --data paragraphs.jsonl
    python scripts/benchmarks/capture.py --device cuda --models llama-160m llama-1b --dtypes bfloat16 --budget 65536

A training step is forward and backward with weight gradients, on the same batch in the same dtype, without an
optimiser. Every round times each variant once on every batch, so that a slow moment of the machine falls on all of
them; ratios are medians over the rounds, with the smallest and largest round beside them. Without `--data` the texts
are random tokens.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from influence.data.batch import Batch, collate, cut_batches
from influence.data.tokenise import Part
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.attention import stands_in, use_default_attention
from influence.model.layers import tracked_layers
from influence.task import CausalLM

# name: (family, hidden, layers, heads, intermediate, vocabulary)
MODELS = {
    "neox-7m": ("gptneox", 256, 6, 8, 1024, 4096),
    "neox-14m": ("gptneox", 128, 6, 4, 512, 50304),
    "neox-160m": ("gptneox", 768, 12, 12, 3072, 50304),
    "neox-1b": ("gptneox", 2048, 16, 8, 8192, 50304),
    "neox-7b": ("gptneox", 4096, 32, 32, 16384, 50432),
    "llama-160m": ("llama", 768, 12, 12, 2048, 32000),
    "llama-1b": ("llama", 2048, 22, 32, 5632, 32000),
    "llama-7b": ("llama", 4096, 32, 32, 11008, 32000),
}


def build_model(name: str, dtype: torch.dtype, device: torch.device, positions: int) -> Any:
    """Return a random model of that shape, in eval mode."""
    family, hidden, layers, heads, intermediate, vocabulary = MODELS[name]
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
    }
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(**sizes) if family == "gptneox" else transformers.LlamaConfig(**sizes)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def read_parts(data: Path | None, vocabulary: int, max_tokens: int, rows: int) -> list[Part]:
    """Return tokenised texts: the file's, with a byte-level BPE trained on it, or random tokens of ragged lengths."""
    generator = torch.Generator().manual_seed(0)
    if data is None:
        lengths = torch.randint(max_tokens // 4, max_tokens + 1, (rows,), generator=generator).tolist()
        found = [torch.randint(0, vocabulary, (length,), generator=generator).numpy() for length in lengths]
    else:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        texts = [json.loads(line)["text"] for line in data.read_text(encoding="utf-8").splitlines()]
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel()  # type: ignore[assignment]
        size = min(vocabulary, 4096)
        bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False))
        order = torch.randperm(len(texts), generator=generator).tolist()[:rows]
        found = [torch.tensor(bpe.encode(texts[row]).ids[:max_tokens]).numpy() for row in order]
    parts = []
    for position, ids in enumerate(tokens.astype("int32") for tokens in found if len(tokens) > 1):
        labels = ids.copy()
        labels[0] = -100
        parts.append(Part(position, ids, labels))
    return parts


def variants(
    model: Any, ours: Any, projections: list[int]
) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any, Batch], Any]]]:
    """Yield (name, open, step): `step(opened, batch)` inside `with open() as opened`.

    Training step and forward run the model as transformers made it; a capture runs it as `influence` loads it.
    """
    task = CausalLM()

    def train(_: Any, batch: Batch) -> None:
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def forward(_: Any, batch: Batch) -> None:
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    yield "training step", _Nothing, train
    yield "forward", _Nothing, forward
    for width in projections:
        projection = Projection(ProjectionSettings(p=width, q=width))
        opened = Capture(ours, tracked_layers(ours), projection)
        yield f"capture {width}×{width}", lambda opened=opened: opened, lambda c, batch: c(task.example_loss, batch)


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        return None


def measure(model: Any, ours: Any, batches: list[Batch], projections: list[int], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every round of every variant, after one warm-up round."""
    cuda = batches[0].input_ids.device.type == "cuda"
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, open_variant, step in variants(model, ours, projections):
            with open_variant() as opened:
                if cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                for batch in batches:
                    step(opened, batch)
                if cuda:
                    torch.cuda.synchronize()
                if turn:
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
    return seconds


def score_correlation(rows: dict[str, torch.Tensor]) -> float:
    """Return the mean, over queries, of the correlation of their scores between the two dtypes."""
    a, b = (found @ found.T for found in rows.values())
    return float(torch.stack([torch.corrcoef(torch.stack([x, y]))[0, 1] for x, y in zip(a, b, strict=True)]).mean())


def main() -> None:
    """Measure and print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, help="jsonl with a `text` column")
    options.add_argument("--models", nargs="+", default=["neox-7m"], choices=list(MODELS))
    options.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options.add_argument("--projections", nargs="+", type=int, default=[16, 64])
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--budget", type=int, default=2048, help="padded tokens a batch")
    options.add_argument("--max-tokens", type=int, default=512)
    options.add_argument("--rows", type=int, default=256)
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    device, console = torch.device(given.device), Console(width=120)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    console.print(
        f"{where}, {given.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    for name in given.models:
        table = Table("variant", "dtype", "tokens/s", "÷ training step", "÷ float32", title=name)
        parts = read_parts(given.data, MODELS[name][5], given.max_tokens, given.rows)
        chosen = cut_batches([len(part.input_ids) for part in parts], given.budget)
        batches = [collate([parts[index] for index in batch], 0).to(device) for batch in chosen]
        tokens = sum(batch.tokens for batch in batches)
        rows: dict[str, torch.Tensor] = {}
        medians: dict[tuple[str, str], list[float]] = {}
        for dtype in given.dtypes:
            model = ours = build_model(name, getattr(torch, dtype), device, given.max_tokens)
            if stands_in(model, device, getattr(torch, dtype)):
                ours = build_model(name, getattr(torch, dtype), device, given.max_tokens)
                use_default_attention(ours, device, getattr(torch, dtype))
            seconds = measure(model, ours, batches, given.projections, given.rounds)
            for variant, times in seconds.items():
                medians[variant, dtype] = times
                ratio = sorted(a / b for a, b in zip(seconds["training step"], times, strict=True))
                wide = medians.get((variant, "float32"))
                gain = f"{statistics.median(wide) / statistics.median(times):.2f}" if wide else ""
                spread = f"{statistics.median(ratio):.2f} ({ratio[0]:.2f}–{ratio[-1]:.2f})"
                table.add_row(variant, dtype, f"{tokens / statistics.median(times):,.0f}", spread, gain)
            projection = Projection(ProjectionSettings(p=given.projections[0], q=given.projections[0]))
            with Capture(ours, tracked_layers(ours), projection) as capture:
                rows[dtype] = torch.cat([capture(CausalLM().example_loss, batch)[0].cpu() for batch in batches[:8]])
            del model, ours
        console.print(table)
        console.print(f"{len(parts)} rows, {tokens:,} tokens in {len(batches)} batches; {given.rounds} rounds")
        if len(rows) == 2:
            console.print(f"mean correlation of scores between {' and '.join(rows)}: {score_correlation(rows):.4f}")


if __name__ == "__main__":
    main()
