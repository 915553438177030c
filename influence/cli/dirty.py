"""`influence demo dirty` and `influence demo classifier`: the data of `docs/data-quality.md`.

A labelled data set with known faults, and a classifier that is trained on it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from influence.artifacts.place import check_local
from influence.cli.demo import Announced
from influence.cli.options import Form, FormOption
from influence.cli.streams import plain, put_text, show, tell, told

if TYPE_CHECKING:
    from rich.table import Table

    from influence.demo.classifier import Accuracy


def dirty(
    out: Annotated[Path, typer.Option("--out", help="Folder of the files. Existing files are replaced.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the faults.")] = 0,
) -> None:
    """Write a labelled data set with known faults: wrong labels, copies, poison, a leak. See docs/data-quality.md."""
    check_local(out, "the data set")
    from influence.demo.dirty import DirtSettings, dirty_set, write_dirty_set

    made = dirty_set(DirtSettings(seed=seed))
    write_dirty_set(made, out)
    named = {fault: "clean" if fault == "none" else fault.replace("_", " ") for fault in made.faults}
    faults = ", ".join(f"{count:,} {named[fault]}" for fault, count in made.faults.items())
    tell(f"{len(made.train):,} training rows: {faults}.")
    tell(f"{len(made.dev):,} clean rows for development, {len(made.test):,} to test. All files are in {out}")


def classifier(
    data: Annotated[Path, typer.Option("--data", help="Texts and labels to train on, for example dirty/train.jsonl.")],
    out: Annotated[
        Path, typer.Option("--out", help="The checkpoint folder. A checkpoint of the same data and settings is reused.")
    ],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option("--eval", metavar="FILE", help="Texts and labels to evaluate on. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data. Default: 4, before wrong labels are memorised.")
    ] = None,
    form: FormOption = Form.table,
) -> None:
    """Train a small classifier from scratch on texts and labels, and print its accuracy."""
    check_local(out, "the classifier")
    from influence.demo.classifier import ClassifierSettings, accuracy, classifier_data, train_classifier
    from influence.engine.progress import ProgressBar

    with ProgressBar(told()) as bar:
        settings = ClassifierSettings(seed=seed) if epochs is None else ClassifierSettings(seed=seed, epochs=epochs)
        trained = train_classifier(classifier_data(data), out, settings, Announced(bar))
    tell(f"The classifier: {out}" if trained else f"{out} already has the classifier of these data and settings.")
    files = [str(path) for path in evaluation or ()]
    found = accuracy(out, [classifier_data(path) for path in files], classifier_data(data)) if files else []
    if form is Form.json:
        lines = [{"file": path, **asdict(one), "accuracy": one.share} for path, one in zip(files, found, strict=True)]
        put_text((json.dumps(lines, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
    elif files:
        show(_table(dict(zip(files, found, strict=True))))


def _table(found: "Mapping[str, Accuracy]") -> "Table":
    """Return the classifier's accuracy on each file."""
    from influence.cli.tables import grid

    table = grid("file", "rows", "given their label", "also trained on", "given their label, without these")
    for file, one in found.items():
        unseen = "" if one.unseen_share is None else f"{one.unseen_share:.1%}"
        table.add_row(plain(file), f"{one.rows:,}", f"{one.share:.1%}", f"{one.trained:,}", unseen)
    return table
