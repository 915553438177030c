"""How well answers to another question are found, beside the loss.

    nice python scripts/benchmarks/mismatched.py --cache /tmp/mismatched --seeds 0 1 --out mismatched.md mismatched.json

Of one row in fifty the answer (of a conversation the last) is another of these rows', and a small Llama is trained on
all rows from scratch; rows whose answer stays the same by chance count as right. `pair_sets.py` describes the sets;
`docstrings` are too hard for this model: it doesn't learn what prompts have to do with answers, and nothing is found.

Columns. AUROC of swapped against right rows: by the loss summed over the answer, by the loss a token, by
`outlier_score` and by `mismatched_score`. Then how many rows `mismatched` flags by its own threshold, the share of them
that are swapped (precision) and the share of the swapped that are among them (recall).

The check's parts and its threshold were chosen on seed 10.
"""

import argparse
import json
import platform
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from issues import auroc, flags
from pair_sets import SETS, train_on, write
from rich.console import Console
from transformers.utils import logging as transformers_logging

import influence
from influence.config import parse_config
from influence.demo.train import TrainSettings

SWAPPED = 0.02
ROWS = {"chats": 1000, "records": 1000, "facts": 1000, "docstrings": 1500}
EPOCHS = {"chats": 2, "records": 5, "facts": 5, "docstrings": 5}
"""Few: a model that knows its rows by heart knows the swapped ones, too."""
Found = dict[str, Any]


def swapped(kind: str, seed: int, folder: Path) -> tuple[influence.Run, np.ndarray]:
    """Plant swapped answers, train and build, or take what is there; return the run and which rows are swapped."""
    pairs = SETS[kind](seed, ROWS[kind])
    chosen = random.Random(seed + 1000).sample(range(len(pairs)), round(SWAPPED * len(pairs)))
    given = [(asked, list(answers)) for asked, answers in pairs]
    for row, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        given[row][1][-1] = pairs[other][1][-1]
    data = write(folder / "train.jsonl", kind, given)
    train_on(data, folder / "model", TrainSettings(seed=seed, epochs=EPOCHS[kind]))
    config = {
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"path": data.path, "max_tokens": data.max_tokens, "append_eos": data.append_eos},
        "recipe": {"name": "whitened", "projection": {"p": 16, "q": 16}, "exact": {"kind": "none"}},
        "store": {"codec": "float16"},
        "index": {"kind": "flat"},
        "cluster": {"workers": 1, "device": "cpu"},
    }
    wrong = np.array([answers != before for (_, answers), (_, before) in zip(given, pairs, strict=True)])
    return influence.build(parse_config(config), out=folder / "run"), wrong


def judged(kind: str, seed: int, cache: Path) -> Found:
    """Return everything that is found of one set and seed."""
    run, wrong = swapped(kind, seed, cache / f"{kind}-{seed}")
    frame = run.issues(["outlier", "mismatched"])
    meta = run.store.meta(np.arange(run.rows), ("loss", "tokens"))
    loss, tokens = (np.array([line[name] for line in meta], dtype=np.float64) for name in ("loss", "tokens"))
    found: Found = {"set": kind, "seed": seed, "rows": run.rows, "swapped": int(wrong.sum())}
    found |= {"loss a token of all": float(loss.sum() / tokens.sum())}
    scores = {"loss": loss, "loss a token": loss / tokens}
    scores |= {name: frame[f"{name}_score"].fillna(-np.inf).to_numpy() for name in ("outlier", "mismatched")}
    found |= {name: auroc(values, wrong) for name, values in scores.items()}
    return found | flags(frame["is_mismatched"].to_numpy(), wrong)


COLUMNS: dict[str, Callable[[Found], str]] = {
    "set": lambda found: found["set"],
    "seed": lambda found: str(found["seed"]),
    "rows, swapped": lambda found: f"{found['rows']:,}, {found['swapped']}",
    "nats a token": lambda found: f"{found['loss a token of all']:.2f}",
    "AUROC loss": lambda found: f"{found['loss']:.3f}",
    "loss a token": lambda found: f"{found['loss a token']:.3f}",
    "outlier": lambda found: f"{found['outlier']:.3f}",
    "mismatched": lambda found: f"{found['mismatched']:.3f}",
    "flagged, precision, recall": lambda found: f"{found['flagged']} {found['precision']:.2f} {found['recall']:.2f}",
}


def save(path: Path, lines: list[Found]) -> None:
    """Write the table as JSON or as markdown, by the file's ending."""
    machine = f"{platform.machine()}, torch {torch.__version__}"
    if path.suffix == ".json":
        path.write_text(json.dumps({"machine": machine, "found": lines}, indent=2), encoding="utf-8")
        return
    table = [list(COLUMNS), ["---"] * len(COLUMNS), *([cell(found) for cell in COLUMNS.values()] for found in lines)]
    path.write_text("\n".join(f"| {' | '.join(line)} |" for line in table) + f"\n\n{machine}\n", encoding="utf-8")


def main() -> None:
    """Train, build, examine and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cache", type=Path, required=True, help="where models and runs are kept")
    options.add_argument("--sets", nargs="+", default=["chats", "records"], choices=list(SETS))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options.add_argument("--out", type=Path, nargs="*", default=[], help="files to write: .json, .md")
    given = options.parse_args()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    console, lines = Console(width=200), list[Found]()
    for kind in given.sets:
        for seed in given.seeds:
            lines.append(judged(kind, seed, given.cache))
            console.log("; ".join(f"{column} {cell(lines[-1])}" for column, cell in COLUMNS.items()))
            for path in given.out:
                save(path, lines)


if __name__ == "__main__":
    main()
