"""The demo from first to last: corpus, training, build, questions, and the page that tells what was traced.

    <out>/corpus.jsonl    the rows
    <out>/model/          the checkpoint folder
    <out>/run/            the run directory: `influence query <out>/run --prompt …` asks it more
    <out>/answers.html    the page

A rerun reuses what stands: the corpus is compared by its digest, the model by what it was trained on, and the build
resumes by itself. A folder becomes the demo's by a file `demo.json`; what has changed since is replaced there, and
nowhere else.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from influence.api import Run, build
from influence.artifacts.lock import lock_folder
from influence.artifacts.partial import disk_errors, write_whole
from influence.baselines import bm25
from influence.config import RunConfig, parse_config
from influence.data.example import Example
from influence.demo.corpus import CorpusRow, corpus, standard_library, write_corpus
from influence.demo.facts import FACTS
from influence.demo.page import write_page
from influence.demo.questions import DEPTH, REAL, Answer, Question
from influence.demo.train import TrainSettings, train, trained_on
from influence.engine.progress import Progress, Report, Step
from influence.errors import ConfigError, FingerprintMismatch, Incomplete

log = logging.getLogger(__name__)

CORPUS, MODEL, RUN, PAGE = "corpus.jsonl", "model", "run", "answers.html"
MARKER = "demo.json"


@dataclass(frozen=True)
class Story:
    """What the demo found.

    Attributes:
        answers: Planted facts first, then real text.
        rows: Rows of the corpus.
        page: The HTML page.
        run: The run directory, to ask more.
        seconds: What each part took: corpus, training, build, questions. Little for what stood already.
    """

    answers: tuple[Answer, ...]
    rows: int
    page: Path
    run: Path
    seconds: Mapping[str, float]

    @property
    def planted(self) -> tuple[Answer, ...]:
        """The answers about planted facts."""
        return tuple(answer for answer in self.answers if answer.planted)

    @property
    def recall(self) -> float:
        """recall@10: the mean, over the planted facts, of the share of a fact's rows among the first promoting ones."""
        return _mean([answer.found / answer.relevant for answer in self.planted])

    @property
    def bm25(self) -> float:
        """BM25's recall@10."""
        return _mean([answer.bm25 / answer.relevant for answer in self.planted])

    @property
    def random(self) -> float:
        """The recall@10 that rows drawn at random have on average."""
        return min(1.0, DEPTH / self.rows)


def tell(
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    training: TrainSettings | None = None,
    most_rows: int | None = None,
    progress: Report | None = None,
) -> Story:
    """Run the demo, or what is missing of it.

    Args:
        out: A folder; made where it is missing.
        overrides: `key=value` each, as `--set` takes them, over the demo's run file.
        training: The size of the model and of its training.
        most_rows: Keep this many docstrings, for a shorter demo.
        progress: Called with every `Step` of the stages corpus, training, capture, curvature, index, questions.

    Raises:
        ConfigError: An override can't be used, or `out` holds something of somebody else's under the demo's names.
        RunLocked: Another demo is at work in `out`.
        Incomplete: Interrupted. The same call goes on from there.
        InfluenceError: Anything that the build itself refuses.
    """
    out = Path(out).expanduser().resolve()
    config = demo_config(out, overrides)
    seconds: dict[str, float] = {}
    _claim(out)
    try:
        with lock_folder(out):
            with _timed(seconds, "corpus"):
                rows, digest = _write_rows(out / CORPUS, most_rows, progress)
            with _timed(seconds, "training"):
                _train(config, digest, training or TrainSettings(), progress)
            with _timed(seconds, "build"):
                run = _build(config, out / RUN, progress)
            with _timed(seconds, "questions"), run:
                answers = ask(run, rows, questions(rows), progress)
            story = Story(tuple(answers), len(rows), out / PAGE, out / RUN, seconds)
            write_page(story, out / PAGE)
            return story
    except KeyboardInterrupt:
        raise Incomplete(f"Interrupted. Run the same demo again: what stands in {out} is used.") from None


def demo_config(out: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the demo's run file, with its two paths inside `out`."""
    source = files("influence.demo") / "demo.yaml"
    found: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    found["model"]["path"] = str(out / MODEL)
    found["data"]["path"] = str(out / CORPUS)
    return parse_config(found, overrides, folder=out, origin="the demo's run file")


def questions(rows: Sequence[CorpusRow]) -> list[Question]:
    """Return what is asked: every planted fact, and the real questions whose docstring is in the corpus."""
    there = {row.id for row in rows}
    return [*(Question.of(fact) for fact in FACTS), *(asked for asked in REAL if there.issuperset(asked.relevant))]


def ask(run: Run, rows: Sequence[CorpusRow], asked: Sequence[Question], progress: Report | None = None) -> list[Answer]:
    """Put every question to the run and to BM25."""
    stage = Progress("questions", 2, progress)
    k = min(DEPTH, len(rows))
    queries = [Example.query(question.prompt, question.completion, id=question.name) for question in asked]
    found = run.query_many(queries, k=k, progress=progress)
    doubted = [question for question in asked if question.wrong is not None]
    wrong = run.capture([Example.query(q.prompt, q.wrong or "", id=q.name) for q in doubted]).measured
    unlikely = {question.name: float(value) for question, value in zip(doubted, wrong, strict=True)}
    stage.finished()
    words = bm25.fit(row.text for row in rows)
    answers = []
    for question, hits in zip(asked, found, strict=True):
        relevant = set(question.relevant)
        by_words = [rows[row].id for row in words.top(question.prompt + question.completion, k)]
        answers.append(
            Answer(
                question,
                hits,
                found=len(relevant.intersection(hit.id for hit in hits.promoting)),
                bm25=len(relevant.intersection(by_words)),
                wrong=unlikely.get(question.name),
            )
        )
    stage.finished()
    return answers


def _write_rows(path: Path, most_rows: int | None, progress: Report | None) -> tuple[list[CorpusRow], str]:
    began = time.monotonic()

    def notify(read: int, total: int) -> None:
        if progress:
            progress(Step("corpus", read, total, seconds=time.monotonic() - began))

    rows = corpus(standard_library(), most_rows=most_rows, notify=notify)
    return rows, write_corpus(rows, path)


def _train(config: RunConfig, digest: str, settings: TrainSettings, progress: Report | None) -> None:
    folder = Path(config.model.path)
    if trained_on(folder, config.data, digest, settings):
        log.info("%s was trained on this corpus with these settings already.", folder)
        return
    train(config.data, folder, settings, progress, digest=digest)


def _build(config: RunConfig, run_dir: Path, progress: Report | None) -> Run:
    """Build the run; one that stands there of another model, corpus or projection is removed first."""
    try:
        return build(config, run_dir, progress=progress)
    except FingerprintMismatch as error:
        log.info("The demo's run is built again: %s", error)
        shutil.rmtree(run_dir)
        return build(config, run_dir, progress=progress)


def _claim(out: Path) -> None:
    """Mark a folder as the demo's, so that a rerun may replace what is in it.

    Raises:
        ConfigError: There is something of somebody else's under a name that the demo would write to.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; the demo needs a folder to write its corpus, model and run into.")
    if (out / MARKER).exists():
        return
    taken = [name for name in (CORPUS, MODEL, RUN, PAGE) if (out / name).exists()]
    if taken:
        raise ConfigError(
            f"{out} holds {', '.join(taken)}, which no demo put there (there is no {MARKER}), and the demo would "
            "replace it. Give the demo a folder of its own with --out."
        )
    _write_marker(out)


def _write_marker(out: Path) -> None:
    """Write the file that says what the folder is."""
    with disk_errors(out, MARKER, 0):
        out.mkdir(parents=True, exist_ok=True)
    names = {"corpus": CORPUS, "model": MODEL, "run": RUN, "page": PAGE}
    write_whole(out / MARKER, (json.dumps({"written by": "influence demo", **names}, indent=2) + "\n").encode())


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[part] = time.monotonic() - began


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


__all__ = ["Story", "ask", "demo_config", "questions", "tell"]
