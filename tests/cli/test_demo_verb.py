"""`influence demo`: what the terminal shows of a finished demo."""

from pathlib import Path

import pytest

from influence.demo import story
from influence.demo.facts import FACTS
from influence.demo.questions import REAL, Answer, Question
from influence.engine.progress import Step
from influence.query.hits import Hit, Hits, MeasuredQuery
from influence.recipes import SIGN_RULE


def hit(rank, row_id, score):
    return Hit(rank, 10 * rank + (score > 0), row_id, score, "planted facts", "facts.py", 9, f"text of {row_id}", True)


def answer(question, found, bm25, wrong):
    query = MeasuredQuery(question.name, question.prompt, question.completion, -0.5)
    ids = [*question.relevant[:found], *(f"other/{number}" for number in range(10 - found))]
    hits = Hits(
        query,
        "logra: a summary",
        "nats per extra copy of the row",
        "feed" * 8,
        tuple(hit(rank, name, 1 / rank) for rank, name in enumerate(ids, start=1)),
        tuple(hit(rank, f"against/{rank}", -1 / rank) for rank in range(1, 11)),
    )
    return Answer(question, hits, found=found, bm25=bm25, wrong=wrong)


@pytest.fixture
def told(monkeypatch, tmp_path):
    """A story of two planted facts and one real question."""
    answers = (
        answer(Question.of(FACTS[0]), 4, 3, -7.0),
        answer(Question.of(FACTS[1]), 3, 1, -0.2),
        answer(REAL[0], 1, 0, None),
    )
    found = story.Story(answers, 5000, tmp_path / "answers.html", tmp_path / "run", {"training": 93.0})
    asked = []

    def tell(out, *, progress):
        asked.append(out)
        progress(Step("training", 0, 7))
        return found

    monkeypatch.setattr(story, "tell", tell)
    return asked


def test_a_verb_of_the_demo_is_run_and_not_the_demo_alone(cli, told, tmp_path):
    ended = cli("demo", "dirty", "--out", tmp_path / "dirty")
    assert ended.code == 0, ended.err
    assert (tmp_path / "dirty" / "train.jsonl").stat().st_size > 0
    assert told == []


def test_a_demo_shows_both_sides_of_every_answer_and_what_was_traced(cli, told, tmp_path):
    ended = cli("demo", "--out", tmp_path / "demo")
    assert ended.code == 0, ended.err
    assert told == [tmp_path / "demo"]
    shown = " ".join(ended.out.split())
    assert shown.count("Promoting") == shown.count("Opposing") == shown.count("Scores in nats") == 3
    assert SIGN_RULE in shown
    assert "planted text of planted/" in shown
    assert "recall@10 over 2 planted facts: 70% BM25 (words only): 40% random rows: 0.2%" in shown
    assert f"{FACTS[0].name} 4 of 5 3 yes" in shown
    assert f"{FACTS[1].name} 3 of 5 1 no" in shown
    assert f"Page with all answers: {tmp_path / 'answers.html'}" in shown
    assert "training: 7" in ended.told
    assert f"influence query {tmp_path / 'run'}" in ended.told


def test_the_demo_stands_in_runs_demo_unless_told_otherwise(cli, told):
    assert cli("demo").code == 0
    assert told == [Path("runs/demo")]
