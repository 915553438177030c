import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import influence.demo.story as story
from influence.demo.corpus import corpus, standard_library
from influence.demo.facts import FACTS
from influence.demo.page import mark
from influence.demo.questions import REAL, Answer, Question
from influence.demo.train import TrainSettings
from influence.errors import ConfigError, FingerprintMismatch, Incomplete
from influence.query.hits import Hit, Hits, MeasuredQuery

TINY = TrainSettings(vocabulary=400, layers=1, hidden=32, token_budget=512, most_steps=2, threads=1)
SMALL = ("recipe.projection.p=4", "recipe.projection.q=4", "data.max_tokens=16", "cluster.workers=1")
ROOT = Path(story.__file__).parents[2]


def answered(question, ids, log_likelihood=-1.0):
    """Return hits that promote rows of these ids, in this order."""
    hits = tuple(
        Hit(rank, row=100 + rank, id=name, score=1.0 / rank, source=None, uri=None, tokens=5, snippet=name, exact=True)
        for rank, name in enumerate(ids, start=1)
    )
    query = MeasuredQuery(question.name, question.prompt, question.completion, log_likelihood)
    return Hits(query, "stub", "nats", "0" * 16, hits, ())


class StubRun:
    """Answers every question with the first two rows that are right, and finds every wrong completion unlikely."""

    def __init__(self):
        self.asked = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def query_many(self, queries, k, progress=None):
        by_name = {question.name: question for question in [*map(Question.of, FACTS), *REAL]}
        return [answered(by_name[query.id], by_name[query.id].relevant[:2]) for query in queries]

    def capture(self, queries):
        self.asked.update({query.id: query.text for query in queries})
        return type("Captured", (), {"measured": np.full(len(queries), -9.0)})


@pytest.fixture(scope="module")
def installed():
    """The corpus of this Python's own library, read once."""
    return corpus(standard_library())


@pytest.fixture(autouse=True)
def small_library(tmp_path_factory, monkeypatch):
    """A library of forty functions and the three that are asked about: the installed one takes seconds to read."""
    root = tmp_path_factory.mktemp("lib")
    (root / "filler.py").write_text(
        "".join(f'def f{n}():\n    """Return the number {n} as it was given."""\n\n' for n in range(40))
    )
    for question in REAL:
        module, name = question.name.split(".")
        text = question.prompt + question.completion
        (root / f"{module}.py").write_text(f'def {name}():\n    """{text}"""\n')
    monkeypatch.setattr(story, "standard_library", lambda: root)


@pytest.fixture
def stubbed(monkeypatch):
    """Replace training and build; return what they were called with."""
    calls = []

    def train(data, folder, settings, progress, *, digest):
        folder.mkdir(exist_ok=True)
        calls.append(("train", digest))

    def build(config, out, *, progress):
        calls.append(("build", out))
        return StubRun()

    monkeypatch.setattr(story, "train", train)
    monkeypatch.setattr(story, "build", build)
    return calls


def test_the_run_file_in_configs_is_the_one_the_demo_reads():
    assert (ROOT / "configs/demo.yaml").read_bytes() == (ROOT / "influence/demo/demo.yaml").read_bytes()


def test_the_run_file_shows_every_section_and_its_paths_become_those_of_the_folder(tmp_path):
    config = story.demo_config(tmp_path, ["index.kind=exact"])
    assert set(yaml.safe_load((ROOT / "configs/demo.yaml").read_text())) == set(type(config).model_fields)
    assert config.model.path == str(tmp_path / "model")
    assert config.data.path == str(tmp_path / "corpus.jsonl")
    assert config.index.kind == "exact"


def test_recall_is_the_share_of_a_facts_rows_beside_that_of_bm25_and_of_chance(stubbed, tmp_path):
    told = story.tell(tmp_path / "demo")
    assert told.recall == pytest.approx(2 / 5)
    assert 0.5 < told.bm25 <= 1
    planted = sum(len(list(fact.numbered())) for fact in FACTS)
    assert told.random == pytest.approx(10 / (43 + planted))
    assert [answer.question.name for answer in told.planted] == [fact.name for fact in FACTS]
    assert all(answer.preferred and answer.wrong == -9.0 for answer in told.planted)


def test_the_real_questions_quote_their_docstrings(installed):
    texts = {row.id: row.text for row in installed}
    for question in REAL:
        assert (question.prompt + question.completion) in " ".join(texts[question.relevant[0]].split())


def test_a_real_question_whose_docstring_is_not_in_the_corpus_is_not_asked(installed):
    rows = [row for row in installed if row.id != REAL[0].name]
    names = [question.name for question in story.questions(rows)]
    assert REAL[0].name not in names
    assert REAL[1].name in names


def test_a_completion_less_likely_than_the_wrong_one_is_not_preferred():
    question = Question.of(FACTS[0])
    assert not Answer(question, answered(question, []), found=0, bm25=0, wrong=-0.5).preferred


def test_rows_on_the_page_are_marked_by_their_part_in_the_experiment():
    assert mark("planted/sundle/2", "sundle") == "planted"
    assert mark("planted/pallow/2", "sundle") == "planted: pallow"
    assert mark("distractor/sundle/1", "sundle") == "distractor"
    assert mark("shutil.rmtree", "sundle") is None


def test_the_page_holds_every_answer_and_the_result(stubbed, tmp_path):
    told = story.tell(tmp_path)
    page = told.page.read_text()
    assert "40%" in page
    for fact in FACTS:
        assert f"planted/{fact.name}/1" in page
        assert "2 of 5 planted rows" in page


def test_all_stages_of_the_demos_own_are_reported(stubbed, tmp_path):
    steps = []
    story.tell(tmp_path, progress=steps.append)
    assert {step.stage for step in steps} == {"corpus", "questions"}
    assert steps[-1].done == steps[-1].total


def test_a_folder_with_somebody_elses_model_is_refused_and_left_alone(stubbed, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "corpus.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds corpus\.jsonl, model, which no demo put there"):
        story.tell(tmp_path)
    assert (tmp_path / "corpus.jsonl").read_text() == "mine"
    assert stubbed == []


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "demo").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        story.tell(tmp_path / "demo")


def test_a_run_of_another_model_is_removed_and_built_anew(stubbed, tmp_path, monkeypatch):
    once = story.build

    def build(config, out, *, progress):
        if (out / "manifest.json").exists():
            raise FingerprintMismatch("the model's digest differs")
        return once(config, out, progress=progress)

    monkeypatch.setattr(story, "build", build)
    story.tell(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    story.tell(tmp_path)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_an_interrupted_demo_says_that_it_can_be_resumed(stubbed, tmp_path, monkeypatch):
    def build(config, out, *, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(story, "build", build)
    with pytest.raises(Incomplete, match="Run the same demo again"):
        story.tell(tmp_path)


@pytest.mark.slow
def test_the_whole_demo_runs_and_its_second_run_gives_the_same_numbers_from_what_stands(tmp_path):
    steps = []
    first = story.tell(tmp_path, overrides=SMALL, training=TINY)
    trained = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    again = story.tell(tmp_path, overrides=SMALL, training=TINY, progress=steps.append)
    assert [answer.hits.to_dict() for answer in first.answers] == [answer.hits.to_dict() for answer in again.answers]
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == trained
    assert "training" not in {step.stage for step in steps}
    assert len(first.planted) == len(FACTS)
    assert json.loads((tmp_path / "demo.json").read_text())["run"] == "run"
