"""A selection: the best rows by the paper's score, capped and without copies as asked, in the data's own numbers."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import spearmanr

import influence.api as runs
from influence.baselines import bm25
from influence.config import parse_config
from influence.errors import DataError, Incomplete, QueryError
from influence.groups.figure import render
from influence.select import less as less_module
from influence.select.plot import selection_plot
from influence.select.selection import amount, chosen_rows, scored
from influence.store.columns import Categories

TEXTS = (
    "The river was named after a cartographer who never saw the sea.",
    "In winter the harbour freezes and all the ferries wait.",
    "Sort the list in place by the key that is given.",
)


@pytest.fixture(scope="module")
def run(model_folder, corpus_file, tmp_path_factory, client):
    """Forty rows of three shelves, rows 7 and 8 of none; row 20 repeats row 3 but for its case."""
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    records = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    records[20]["text"] = records[3]["text"].upper()
    records[7]["source"] = records[8]["source"] = None
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 64},
        "recipe": {"name": "logra", "projection": {"p": 2, "q": 3}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), tmp_path_factory.mktemp("runs") / "x")


@pytest.fixture
def dev(tmp_path):
    path = tmp_path / "dev.jsonl"
    records = [{"text": text, "task": task} for text, task in zip(TEXTS, ("sea", "sea", "code"), strict=True)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_rows_with_the_largest_mean_score_are_written_with_their_own_numbers_and_texts(run, dev, tmp_path):
    out = tmp_path / "chosen.jsonl"
    found = run.select(dev, "20%", out)
    mean = run.score([{"text": text} for text in TEXTS]).mean(0)
    best = np.argsort(-mean, kind="stable")[:8]
    np.testing.assert_array_equal(found.chosen, best)
    written = lines(out)
    assert [line["row"] for line in written] == sorted(best.tolist())
    data = lines(Path(run.config.data.path))
    for line in written:
        original = data[line["row"]]
        assert (line["text"], line["id"], line["source"], line["uri"]) == (
            original["text"],
            original["id"],
            original["source"],
            original["uri"],
        )
        assert line["score"] == pytest.approx(float(mean[line["row"]]), rel=1e-4)
        assert found.chosen[line["rank"] - 1] == line["row"]
    assert not (tmp_path / "chosen.jsonl.parts").exists()
    assert found.unit == "nats per extra copy of the row"
    assert found.queries == run.score([{"text": text} for text in TEXTS]).magnitudes


def test_of_several_sets_the_largest_mean_counts_and_is_named(run, dev, tmp_path):
    found = run.select(dev, 10, tmp_path / "chosen.jsonl", sets="task")
    scores = run.score([{"text": text} for text in TEXTS])
    tasks = np.stack([scores[:2].mean(0), scores[2]])
    np.testing.assert_array_equal(found.chosen, np.argsort(-tasks.max(0), kind="stable")[:10])
    for line in lines(tmp_path / "chosen.jsonl"):
        assert line["set"] == ("sea", "code")[int(tasks[:, line["row"]].argmax())]
    assert sum(found.sets.values()) == 10


def test_scores_of_blocks_are_those_of_the_whole():
    chance = np.random.default_rng(0)
    scores = chance.standard_normal((50, 7)).astype(np.float32)
    sets = Categories(np.array([0, 1, 0, -1, 1, 0, -1], np.int32), ("a", "b"))
    found = scored(((first, scores[first : first + 9]) for first in range(0, 50, 9)), 50, sets)
    parted = np.stack([scores[:, sets.codes == code].mean(1) for code in (0, 1, -1)])
    np.testing.assert_allclose(found.best, parted.max(0), rtol=1e-6)
    np.testing.assert_array_equal(found.sets, parted.argmax(0))


def test_no_group_has_more_than_its_cap_and_the_best_of_each_are_taken(run, dev, tmp_path):
    found = run.select(dev, 10, tmp_path / "chosen.jsonl", per_group_cap="30%")
    assert all(taken <= 3 for taken, _ in found.groups.values())
    expected, counts = [], {}
    for row in np.argsort(-found.scores, kind="stable"):
        source = run.meta([int(row)])[0]["source"]
        if counts.get(source, 0) < 3 and len(expected) < 10:
            counts[source] = counts.get(source, 0) + 1
            expected.append(int(row))
    assert found.chosen.tolist() == expected


def test_a_cap_that_leaves_too_few_rows_says_how_many_there_are(run, dev, tmp_path):
    with pytest.raises(QueryError, match=r"at most 2 rows of each of the 4 groups there are 8 rows, not 20.*raise"):
        run.select(dev, 20, tmp_path / "chosen.jsonl", per_group_cap="10%")
    assert list(tmp_path.glob("chosen*")) == []


def test_a_cap_and_copies_that_leave_too_few_rows_together_keep_the_scores_for_another_try(run, dev, tmp_path):
    out = tmp_path / "chosen.jsonl"
    with pytest.raises(QueryError, match=r"at most 13 rows of each .* and no copies .*or leave --dedup out"):
        run.select(dev, 20, out, per_group_cap=13, dedup=True)
    assert list((tmp_path / "chosen.jsonl.parts").glob("scores-*.parquet"))
    assert len(run.select(dev, 9, out, per_group_cap=13, dedup=True).chosen) == 9


def test_of_copies_the_better_row_is_kept_and_the_next_one_takes_its_place(run):
    scores = np.linspace(1, 0, 40, dtype=np.float32)
    scores[20] = 2
    single = chosen_rows(run, scores, 6, None, None, dedup=True)
    assert 20 in single
    assert 3 not in single
    assert len(set(single.tolist())) == 6
    assert {3, 20} <= set(chosen_rows(run, scores, 6, None, None, dedup=False).tolist())
    with pytest.raises(QueryError, match=r"no copies \(\d+ are left out\).*not 40: lower --top, or leave --dedup out"):
        chosen_rows(run, scores, 40, None, None, dedup=True)


def test_the_summary_compares_with_random_rows_bm25_and_length(run, dev, tmp_path):
    found = run.select(dev, 12, tmp_path / "chosen.jsonl")
    assert found.expected == pytest.approx(0.3)
    assert 0 <= found.random <= 1
    words = bm25.fit(run.store.texts())
    by_words = np.mean([words.scores(text) for text in TEXTS], axis=0)
    best = np.argsort(-by_words, kind="stable")[:12]
    assert found.words == pytest.approx(np.isin(best, found.chosen).mean())
    tokens = [line["tokens"] for line in run.meta(range(40))]
    assert found.length == pytest.approx(spearmanr(found.scores, tokens).statistic)
    drawn = render(selection_plot(found))
    root = ElementTree.fromstring(drawn)
    dots = {name: root.findall(f".//{{*}}g[@id='{name}-rows']//{{*}}use") for name in ("chosen", "other")}
    assert (len(dots["chosen"]), len(dots["other"])) == (12, 28)
    assert "Rank correlation of score and length (scored tokens)" in drawn
    assert run.select(dev, 12, tmp_path / "again.jsonl", words=False).words is None


def test_a_target_that_is_in_the_training_data_or_called_a_test_set_is_warned_of(run, tmp_path):
    unlike = tmp_path / "latest.jsonl"
    unlike.write_text(json.dumps({"text": "Bread is baked before dawn, and sold while it is warm."}) + "\n")
    assert run.select(unlike, 3, tmp_path / "a.jsonl").warnings == ()
    target = tmp_path / "my_test.jsonl"
    text = run.meta([3])[0]["text"]
    target.write_text(json.dumps({"text": text.lower()}) + "\n")
    found = run.select(target, 40, tmp_path / "b.jsonl")
    assert found.leaked[0] >= 2
    assert found.leaked[1] == found.leaked[0]
    assert "looks like a test set by its name" in found.warnings[0]
    assert "near-copies of target examples" in found.warnings[1]


def test_all_rows_may_be_chosen(run, dev, tmp_path):
    found = run.select(dev, "100%", tmp_path / "all.jsonl")
    assert [line["row"] for line in lines(tmp_path / "all.jsonl")] == list(range(40))
    assert found.random == found.words == 1


@pytest.mark.parametrize(
    ("text", "found"), [("5%", 10), ("0.4%", 1), ("100 %", 200), ("200", 200), ("1", 1), (" 12.5% ", 25)]
)
def test_amounts_are_shares_or_counts(text, found):
    assert amount(text, 200, "--top") == found


@pytest.mark.parametrize("text", ["0", "0%", "200%", "201", "-3", "five", "", "5%%", "1.5", "²"])
def test_amounts_that_cannot_be_are_refused_with_what_is_expected(text):
    with pytest.raises(QueryError, match=r"--top .*expected"):
        amount(text, 200, "--top")


def test_files_that_must_not_be_written_to_are_refused(run, dev, tmp_path):
    out = tmp_path / "chosen.jsonl"
    out.write_text("mine")
    with pytest.raises(QueryError, match=r"exists already"):
        run.select(dev, 3, out)
    assert out.read_text() == "mine"
    link = tmp_path / "link.jsonl"
    link.symlink_to(run.config.data.path)
    with pytest.raises(QueryError, match=r"is what is read here"):
        run.select(dev, 3, link, overwrite=True)
    with pytest.raises(QueryError, match=r"is what is read here"):
        run.select(dev, 3, dev, overwrite=True)
    with pytest.raises(QueryError, match=r"must end in \.jsonl"):
        run.select(dev, 3, tmp_path / "chosen.csv")
    with pytest.raises(QueryError, match=r"doesn't exist"):
        run.select(dev, 3, tmp_path / "no" / "chosen.jsonl")


def test_data_that_have_changed_since_the_build_are_refused(run, dev, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "run")
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({**line, "text": line["text"] + "!"}) + "\n" for line in lines(Path(run.config.data.path)))
    )
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(run.config.data.path), str(data)))
    with pytest.raises(DataError, match="has changed since"):
        runs.open(copy).select(dev, 3, tmp_path / "chosen.jsonl")
    assert not (tmp_path / "chosen.jsonl").exists()


def test_a_selection_interrupted_while_it_writes_goes_on_from_its_scores(run, dev, tmp_path, monkeypatch):
    out = tmp_path / "chosen.jsonl"

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(less_module, "write_chosen", interrupted)
        with pytest.raises(Incomplete, match=r"chosen\.jsonl\.parts"):
            run.select(dev, 3, out)
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(type(run), "score_to", interrupted)
        run.select(dev, 3, out)
    assert len(lines(out)) == 3


def test_prompts_and_conversations_keep_their_columns(model_folder, tmp_path, client):
    data = tmp_path / "rows.jsonl"
    records = [{"prompt": f"How many are {n} and one? ", "completion": f"They are {n + 1}."} for n in range(9)]
    data.write_text("".join(json.dumps(record) + "\n" for record in (*records, records[0])))
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 64},
        "recipe": {"name": "logra", "projection": {"p": 2, "q": 3}},
        "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
    }
    made = runs.build(parse_config(settings, ()), tmp_path / "run")
    found = made.select([{"prompt": "How many? ", "completion": "Two."}], "100%", tmp_path / "chosen.jsonl")
    written = lines(tmp_path / "chosen.jsonl")
    assert [(line["prompt"], line["completion"]) for line in written[:9]] == [tuple(r.values()) for r in records]
    assert "text" not in written[0]
    assert written[0]["id"] == written[9]["id"]
    assert "1 chosen rows have the id of another" in found.warnings[0]
