"""A whole build beside a peer's, and its memory as the data grows: everything included, each in processes of its own.

    python scripts/benchmarks/build.py --data paragraphs.jsonl --bergson /path/to/venv/bin/bergson
    python scripts/benchmarks/build.py --data paragraphs.jsonl --memory 1 4 16

Trains a 4,096-token BPE on the texts, saves a random 6.8M-parameter GPT-NeoX with it, and builds with a 16×16
projection on every block Linear. Commands alternate, `--repeats` times; tokens/s are of the whole command from start
to exit, the ratios between medians. Memory is the peak of anonymous resident memory (pages that belong to no file) over
the command and all its children, sampled from /proc every 50 ms.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import transformers
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


@dataclass(frozen=True)
class Took:
    """One command: wall seconds and peak anonymous resident bytes, all its processes together and the largest one."""

    seconds: float
    together: int
    largest: int


def prepare(data: Path, folder: Path, max_tokens: int) -> tuple[Path, int]:
    """Save tokeniser and model, and return their folder and the tokens that a build will capture."""
    texts = [json.loads(line)["text"] for line in data.read_text(encoding="utf-8").splitlines()]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=max_tokens
    )
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=1024,
        max_position_embeddings=max_tokens,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    where = folder / "model"
    transformers.GPTNeoXForCausalLM(config).save_pretrained(where)
    fast.save_pretrained(where)
    return where, sum(min(len(encoded.ids), max_tokens) for encoded in bpe.encode_batch(texts))


def run_file(folder: Path, model: Path, data: Path, dtype: str, max_tokens: int, budget: int) -> Path:
    """Write a run file and return its path."""
    path = folder / f"{dtype}.yaml"
    settings = {
        "model": {"path": str(model), "dtype": dtype},
        "data": {"path": str(data), "max_tokens": max_tokens, "columns": {"id": None}},
        "recipe": {"name": "gradcos", "projection": {"p": 16, "q": 16}},
        "store": {"codec": "float16"},
        "index": {"kind": "flat"},
        "cluster": {"token_budget": budget},
    }
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def time_command(command: list[str], log: Path) -> Took:
    """Run a command to its end; its output goes to a file, which is printed if it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(log.parent / "cache")}
    peaks = [0, 0]
    with log.open("wb") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        sampler = threading.Thread(target=_sample, args=(process, peaks))
        sampler.start()
        code = process.wait()
        seconds = time.perf_counter() - start
        sampler.join()
    if code:
        sys.exit(f"{' '.join(command)} failed with {code}:\n{log.read_text(errors='replace')[-3000:]}")
    return Took(seconds, peaks[0], peaks[1])


def _sample(process: subprocess.Popen[bytes], peaks: list[int]) -> None:
    while process.poll() is None:
        sizes = []
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.Error:
            break
        for member in family:
            try:
                status = Path(f"/proc/{member.pid}/status").read_text(encoding="ascii")
            except OSError:
                continue
            sizes += [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")]
        peaks[0], peaks[1] = max(peaks[0], sum(sizes)), max(peaks[1], max(sizes, default=0))
        time.sleep(0.05)


def compare(given: argparse.Namespace, folder: Path, console: Console) -> None:
    """Alternate our builds and the peer's, and print seconds, tokens/s and ratios."""
    model, tokens = prepare(given.data, folder, given.max_tokens)
    commands: dict[str, list[str]] = {}
    for dtype in given.dtypes:
        path = run_file(folder, model, given.data, dtype, given.max_tokens, given.budget)
        commands[f"influence build, {dtype}"] = [_own(), "build", "-c", str(path), "--out"]
    if given.bergson:
        dataset = folder / "peer.jsonl"
        lines = given.data.read_text(encoding="utf-8").splitlines()
        dataset.write_text("".join(json.dumps({"text": json.loads(line)["text"]}) + "\n" for line in lines))
        peer = [str(given.bergson), "build"]
        options = ["--model", str(model), "--dataset", str(dataset), "--truncation", "--projection_dim", "16"]
        options += ["--token_batch_size", str(given.budget), "--overwrite"]
        for dtype, precision in (("float32", "fp32"), ("bfloat16", "bf16")):
            if dtype in given.dtypes:
                commands[f"bergson build, {dtype}"] = [*peer, *options, "--precision", precision, "OUT"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(given.repeats):
        for name, command in commands.items():
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(folder / "cache", ignore_errors=True)
            full = [str(out) if word == "OUT" else word for word in command]
            full += [str(out)] if full[-1] == "--out" else []
            seconds[name].append(time_command(full, folder / "log").seconds)
            console.print(f"{name}: {seconds[name][-1]:.1f} s", highlight=False)
    table = Table("command", "seconds (each)", "tokens/s", "÷ bergson float32", title=f"{tokens:,} tokens")
    base = seconds.get("bergson build, float32")
    for name, times in seconds.items():
        ratio = f"{statistics.median(base) / statistics.median(times):.2f}" if base else ""
        each = ", ".join(f"{time:.1f}" for time in times)
        table.add_row(name, each, f"{tokens / statistics.median(times):,.0f}", ratio)
    console.print(table)


def grow(given: argparse.Namespace, folder: Path, console: Console) -> None:
    """Build the same data once, several times over, and print the peak memory of each."""
    model, tokens = prepare(given.data, folder, given.max_tokens)
    table = Table("rows", "tokens", "seconds", "all processes", "largest process", title="peak anonymous memory, MiB")
    text = given.data.read_bytes()
    rows = text.count(b"\n")
    for times in given.memory:
        data, out = folder / f"times-{times}.jsonl", folder / f"out-{times}"
        data.write_bytes(text * times)
        path = run_file(folder, model, data, given.dtypes[0], given.max_tokens, given.budget)
        command = [_own(), "build", "-c", str(path), "--set", "index.kind=exact", "--set", "store.rows_per_shard=64"]
        took = time_command([*command, "--out", str(out)], folder / "log")
        table.add_row(
            f"{rows * times:,}",
            f"{tokens * times:,}",
            f"{took.seconds:.0f}",
            f"{took.together / 2**20:,.0f}",
            f"{took.largest / 2**20:,.0f}",
        )
        shutil.rmtree(out)
    console.print(table)


def _own() -> str:
    return str(Path(sys.executable).with_name("influence"))


def main() -> None:
    """Measure and print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="jsonl with a `text` column")
    options.add_argument("--bergson", type=Path, help="the peer's executable, in an environment of its own")
    options.add_argument("--memory", nargs="+", type=int, help="measure memory at these multiples of the data instead")
    options.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options.add_argument("--budget", type=int, default=2048, help="padded tokens a batch")
    options.add_argument("--max-tokens", type=int, default=2048, help="where texts are cut, the same for both")
    options.add_argument("--repeats", type=int, default=3)
    given = options.parse_args()
    given.data = given.data.resolve()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        (grow if given.memory else compare)(given, Path(folder), console)


if __name__ == "__main__":
    main()
