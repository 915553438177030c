"""How well wrong labels are found, beside the loss and cleanlab, which see the same model.

    nice python scripts/benchmarks/issues.py --cache /tmp/issues --out issues.md issues.json
    nice python scripts/benchmarks/issues.py --cache /tmp/issues --sets articles --data paragraphs.jsonl

A tenth of the training rows is given another label, any other with the same chance, and the demo's classifier (one
layer, the mean of all positions) is trained on them from scratch. Sets: `docstrings`, topics of the standard library
(that of `influence demo dirty`, without its other faults); `articles`, which of the articles with most paragraphs a
sentence is from (`--data`: a file with text and source, a paragraph a line). Development rows are clean, and of no row
in training.

Columns. Test: accuracy on clean rows. AUROC of wrong against right labels, by the row's training loss, by cleanlab's
self-confidence (the same ranking as the loss), and by `mislabelled_score`, without and with an evaluation set; flagged:
how many rows, the share of them that are wrong (precision), the share of the wrong that are among them (recall), of
cleanlab's `find_label_issues` and of the check. Relabelled: rows that are suggested a label, and the share of them
whose right label it is. Harmful: AUROC by `harmful_score` and by minus the mean influence itself, and rows flagged.

The classifier and its training were chosen on seeds 10 and 11 of the docstrings, by accuracy on clean rows and with the
wrong labels in view, and nothing by seeds 0 to 2.
"""

import argparse
import json
import platform
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_self_confidence_for_each_label
from rich.console import Console
from scipy.stats import rankdata
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

import influence
from influence.config import parse_config
from influence.data.batch import collate, cut_batches
from influence.data.dataset import open_rows
from influence.data.tokenise import tokenise
from influence.demo.classifier import ClassifierSettings, accuracy, classifier_data, train_classifier
from influence.demo.dirty import DirtSettings, dirty_set
from influence.query.evaluation import read_evaluation

TRAIN, DEV, TEST = "train.jsonl", "dev.jsonl", "test.jsonl"
KIND = "sequence_classification"
WRONG = 0.1
ARTICLES = 12
FEWEST_WORDS = 6
"""Of a sentence."""
Row = tuple[str, str, str]
"""Text, label, id."""
Found = dict[str, Any]


@dataclass(frozen=True)
class Labelled:
    """A set with wrong labels: rows of each file, and the right labels of the training rows."""

    train: Sequence[Row]
    right: Sequence[str]
    dev: Sequence[Row]
    test: Sequence[Row]


def docstrings(seed: int, data: Path | None) -> Labelled:
    """Return the demo's dirty set with wrong labels and no other fault."""
    made = dirty_set(DirtSettings(wrong_labels=WRONG, copies=0, poison=0, leak=0, seed=seed))
    dev, test = ([(row.text, row.label, row.id) for row in rows] for rows in (made.dev, made.test))
    train = [(planted.row.text, planted.row.label, planted.row.id) for planted in made.train]
    return Labelled(train, [planted.label for planted in made.train], dev, test)


def articles(seed: int, data: Path | None) -> Labelled:
    """Return sentences of the articles with most paragraphs, 15 % of them for development and 15 % for the test."""
    if data is None:
        raise SystemExit("The set articles needs --data, a file of paragraphs with text and source.")
    paragraphs = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    counts = Counter(paragraph["source"] for paragraph in paragraphs)
    # WikiText writes <unk> for rare words; a title of nothing else is that of several articles.
    named = [source for source, _ in counts.most_common() if source.replace("<unk>", "").strip()][:ARTICLES]
    rows = [
        (sentence, paragraph["source"], f"{paragraph['id']}/{number}")
        for paragraph in paragraphs
        if paragraph["source"] in named
        for number, sentence in enumerate(re.split(r"(?<=[.!?]) +(?=[A-Z])", paragraph["text"]))
        if len(sentence.split()) >= FEWEST_WORDS
    ]
    chance = random.Random(seed)
    chance.shuffle(rows)
    held = round(0.15 * len(rows))
    dev, test, train = rows[:held], rows[held : 2 * held], rows[2 * held :]
    wrong = set(chance.sample(range(len(train)), round(WRONG * len(train))))
    given = [
        (text, chance.choice([name for name in named if name != label]) if number in wrong else label, name)
        for number, (text, label, name) in enumerate(train)
    ]
    return Labelled(given, [label for _, label, _ in train], dev, test)


SETS: dict[str, Callable[[int, Path | None], Labelled]] = {"docstrings": docstrings, "articles": articles}


def prepared(folder: Path, made: Labelled, settings: ClassifierSettings, options: argparse.Namespace) -> influence.Run:
    """Write the files, train, and build a run, or take those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ((TRAIN, made.train), (DEV, made.dev), (TEST, made.test)):
        lines = [json.dumps({"text": text, "label": label, "id": key}) + "\n" for text, label, key in rows]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    train_classifier(classifier_data(folder / TRAIN), folder / "model", settings)
    config = {
        "model": {"path": str(folder / "model"), "kind": KIND, "dtype": "float32"},
        "data": {"path": str(folder / TRAIN), "max_tokens": classifier_data("").max_tokens},
        "recipe": {"name": options.recipe, "projection": {"p": options.width, "q": options.width}},
        "index": {"kind": "exact"},
        "cluster": {"workers": 1, "token_budget": 4096, "device": "cpu"},
    }
    if options.recipe == "whitened":
        config["recipe"]["exact"] = {"kind": "none"}
    out = folder / f"run-{options.recipe}-{options.width}-{settings.epochs}-{settings.dropout:g}"
    return influence.build(parse_config(config), out=out)


def probabilities(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return what the model makes of its training rows, [rows, classes], and the numbers of their labels."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokeniser, data = AutoTokenizer.from_pretrained(folder / "model"), classifier_data(folder / TRAIN)
    parts = tokenise(list(open_rows(data).examples()), tokeniser, data, KIND, model.config.label2id)
    found = np.zeros((len(parts), model.config.num_labels))
    with torch.no_grad():
        for group in cut_batches([len(part.input_ids) for part in parts], 8192):
            batch = collate([parts[place] for place in group], tokeniser.pad_token_id)
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            found[group] = logits.double().softmax(-1).numpy()
    return found, np.array([part.label for part in parts])


def auroc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Return the chance that a wrong row scores above a right one; ties count half."""
    ranks, count = rankdata(scores), int(wrong.sum())
    return float((ranks[wrong].sum() - count * (count + 1) / 2) / (count * (len(wrong) - count)))


def flags(flagged: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Return how many rows are flagged, precision and recall."""
    hits = int((flagged & wrong).sum())
    return {"flagged": int(flagged.sum()), "precision": hits / max(1, flagged.sum()), "recall": hits / wrong.sum()}


def judged(name: str, seed: int, options: argparse.Namespace) -> Found:
    """Return everything that is found of one set and seed."""
    made = SETS[name](seed, options.data)
    folder = options.cache / f"{name}-{seed}-{options.epochs}-{options.dropout:g}"
    settings = ClassifierSettings(epochs=options.epochs, dropout=options.dropout, seed=seed)
    run = prepared(folder, made, settings, options)
    right = np.array(made.right)
    wrong = np.array([label for _, label, _ in made.train]) != right
    trained = classifier_data(folder / TRAIN)
    (tested,) = accuracy(folder / "model", [classifier_data(folder / TEST)], trained)
    chances, labels = probabilities(folder)
    confidence = get_self_confidence_for_each_label(labels, chances)
    found: Found = {"set": name, "seed": seed, "rows": len(wrong), "wrong": int(wrong.sum()), "test": tested.share}
    loss = np.array([meta["loss"] for meta in run.store.meta(np.arange(run.rows), ("loss",))])
    found |= {"loss": {"auroc": auroc(loss, wrong)}}
    issues = find_label_issues(labels, chances, n_jobs=1)
    found |= {"cleanlab": {"auroc": auroc(-confidence, wrong), **flags(np.asarray(issues), wrong)}}
    for key, evaluation in (("alone", None), ("with evaluation", folder / DEV)):
        checks = ["mislabelled"] if evaluation is None else ["mislabelled", "harmful"]
        frame = run.issues(checks, evaluation=evaluation)
        found[key] = checked(frame, "mislabelled", wrong)
        relabelled = frame.is_mislabelled.to_numpy() & frame.suggested_label.notna().to_numpy()
        restored = frame.suggested_label.to_numpy() == right
        found[key] |= {"relabelled": int(relabelled.sum()), "restored": float(restored[relabelled].mean())}
    found["harmful"] = checked(frame, "harmful", wrong) | {"mean_auroc": auroc(-mean_influence(run, folder), wrong)}
    return found


def checked(frame: Any, issue: str, wrong: np.ndarray) -> dict[str, float]:
    """Return what a check's columns are worth."""
    scores = frame[f"{issue}_score"].to_numpy()
    return {"auroc": auroc(scores, wrong), **flags(frame[f"is_{issue}"].to_numpy(), wrong)}


def mean_influence(run: influence.Run, folder: Path) -> np.ndarray:
    """Return each row's mean score over the development rows, as they are."""
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "means.parquet"
        run.score_to(read_evaluation(run.run_dir, folder / DEV).examples, out, keep="rows", cut=True)
        return pq.read_table(out).column("mean").to_numpy()


def told(part: dict[str, float]) -> str:
    """Return flagged rows, precision and recall in short."""
    return f"{part['flagged']} {part['precision']:.2f} / {part['recall']:.2f}"


COLUMNS: dict[str, Callable[[Found], str]] = {
    "set": lambda found: found["set"],
    "seed": lambda found: str(found["seed"]),
    "rows": lambda found: f"{found['rows']:,}",
    "test": lambda found: f"{found['test']:.3f}",
    "AUROC loss": lambda found: f"{found['loss']['auroc']:.3f}",
    "cleanlab": lambda found: f"{found['cleanlab']['auroc']:.3f}",
    "mislabelled": lambda found: f"{found['alone']['auroc']:.3f}",
    "+ eval": lambda found: f"{found['with evaluation']['auroc']:.3f}",
    "flagged cleanlab": lambda found: told(found["cleanlab"]),
    "mislabelled flags": lambda found: told(found["alone"]),
    "+ eval flags": lambda found: told(found["with evaluation"]),
    "relabelled": lambda found: f"{found['alone']['relabelled']} {found['alone']['restored']:.2f}",
    "+ eval relabelled": lambda found: (
        f"{found['with evaluation']['relabelled']} {found['with evaluation']['restored']:.2f}"
    ),
    "harmful, mean": lambda found: f"{found['harmful']['auroc']:.3f}, {found['harmful']['mean_auroc']:.3f}",
    "harmful flags": lambda found: told(found["harmful"]),
}


def write(path: Path, about: dict[str, Any], lines: list[Found]) -> None:
    """Write the table as JSON or as markdown, by the file's ending."""
    if path.suffix == ".json":
        path.write_text(json.dumps({**about, "found": lines}, indent=2), encoding="utf-8")
        return
    table = [list(COLUMNS), ["---"] * len(COLUMNS), *([cell(found) for cell in COLUMNS.values()] for found in lines)]
    facts = "; ".join(f"{key}: {value}" for key, value in about.items())
    path.write_text("\n".join(f"| {' | '.join(line)} |" for line in table) + f"\n\n{facts}\n", encoding="utf-8")


def main() -> None:
    """Train, build, examine and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cache", type=Path, required=True, help="where models and runs are kept")
    options.add_argument("--sets", nargs="+", default=["docstrings"], choices=list(SETS))
    options.add_argument("--data", type=Path, help="paragraphs with text and source, for articles")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--epochs", type=int, default=ClassifierSettings().epochs)
    options.add_argument("--dropout", type=float, default=ClassifierSettings().dropout)
    options.add_argument("--recipe", default="whitened")
    options.add_argument("--width", type=int, default=32, help="of the projection, either side")
    options.add_argument("--out", type=Path, nargs="*", default=[], help="files to write: .json, .md")
    given = options.parse_args()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    about = {"wrong labels": WRONG, "epochs": given.epochs, "dropout": given.dropout, "recipe": given.recipe}
    about |= {"width": given.width, "machine": f"{platform.machine()}, torch {torch.__version__}"}
    console, lines = Console(width=200), list[Found]()
    for name in given.sets:
        for seed in given.seeds:
            lines.append(judged(name, seed, given))
            console.log("; ".join(f"{column} {cell(lines[-1])}" for column, cell in COLUMNS.items()))
            for path in given.out:
                write(path, about, lines)


if __name__ == "__main__":
    main()
