"""Copies are found as comparing all pairs finds them, whatever the order, in sets that are stars."""

import json
import random
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

import influence.run as runs
from influence.config import parse_config
from influence.diagnose import minhash, near_pairs
from influence.diagnose.checks import IssueSettings, parse_settings
from influence.diagnose.duplicates import NearDuplicateSettings, near_duplicate_sets
from influence.diagnose.issues import examine
from influence.diagnose.minhash import SEED, SLOTS, Bands, band_keys, sign_texts
from influence.diagnose.near_pairs import Similar, cross_pairs, jaccard_of_sets
from influence.diagnose.near_pairs import near_pairs as find_pairs
from influence.diagnose.shingles import shingled
from influence.diagnose.star_sets import star_sets
from influence.errors import QueryError

WORDS = [f"{start}{end}" for start in ("ba", "ke", "li", "mo", "nu", "ra", "so", "ti") for end in ("bel", "dan", "kor")]
LONG = "the river was named after a cartographer who never saw it in his whole life"


def shingles_of(text):
    """Words, and pairs of words and of a word and the border, of a text in lower case without punctuation."""
    words = ["<", *text.split(), ">"] if text.split() else []
    return {*pairwise(words), *words[1:-1]}


def edited(text, place):
    """Return a text with another word at a place."""
    words = text.split()
    return " ".join([*words[:place], "other", *words[place + 1 :]])


def family(chance, size, length=14):
    """A text and edited copies of it."""
    original = [chance.choice(WORDS) for _ in range(length)]
    found = [" ".join(original)]
    for _ in range(size - 1):
        words = list(original)
        for _ in range(chance.randrange(4)):
            words[chance.randrange(length)] = chance.choice(WORDS)
        found.append(" ".join(words))
    return found


@pytest.fixture(scope="module")
def texts():
    """Two hundred texts: families of edited copies, texts of fewer than ten words, copies to the word, empty ones."""
    chance = random.Random(1)
    found = [text for size in (1, 2, 3, 5, 8) for _ in range(6) for text in family(chance, size)]
    found += [" ".join(chance.choices(WORDS[:3], k=chance.randrange(1, 9))) for _ in range(60)]
    found += ["", " \n", "", *found[:17]]
    chance.shuffle(found)
    return found


def all_pairs(texts, least=0.65, words=10):
    """Every two texts that are nearly the same and not the same, compared one by one."""
    sets, lengths = [shingles_of(text) for text in texts], [len(text.split()) for text in texts]
    found = {}
    for left in range(len(texts)):
        for right in range(left + 1, len(texts)):
            if sets[left] and sets[right] and texts[left].split() != texts[right].split():
                similarity = len(sets[left] & sets[right]) / len(sets[left] | sets[right])
                if similarity >= least and max(lengths[left], lengths[right]) >= words:
                    found[left, right] = similarity
    return found


def pairs_found(texts, folder, similar):
    with sign_texts(lambda start, stop: texts[start:stop], len(texts), similar.bands, folder, "x") as signed:
        found = find_pairs(signed, similar, folder, "x", None)
    return {
        (int(left), int(right)): float(jaccard)
        for left, right, jaccard in zip(found.left, found.right, found.jaccard, strict=True)
    }


@pytest.mark.parametrize("similar", [Similar(0.65, 10), Similar(0.8, 1), Similar(0.5, 12)])
def test_pairs_are_those_of_comparing_every_two_texts(texts, tmp_path, similar):
    expected = all_pairs(texts, similar.jaccard, similar.words)
    # Of equal texts the lowest row stands for all.
    first = {}
    lowest = [first.setdefault(" ".join(text.split()), row) for row, text in enumerate(texts)]
    expected = {pair: value for pair, value in expected.items() if all(lowest[row] == row for row in pair)}
    found = pairs_found(texts, tmp_path, similar)
    assert len(expected) > 20
    assert found.keys() <= expected.keys()
    assert len(found) >= 0.97 * len(expected)
    assert all(found[pair] == pytest.approx(expected[pair], abs=1e-6) for pair in found)


def test_parts_and_chunks_of_any_size_give_the_same_pairs(texts, tmp_path, monkeypatch):
    whole = pairs_found(texts, tmp_path / "whole", Similar(0.65, 10))
    monkeypatch.setattr(minhash, "PART_ROWS", 13)
    monkeypatch.setattr(minhash, "BLOCK", 5)
    monkeypatch.setattr(near_pairs, "HELD", 40)
    assert pairs_found(texts, tmp_path / "cut", Similar(0.65, 10)) == whole
    assert len(list((tmp_path / "cut").glob("texts-*.safetensors"))) == -(-len(texts) // 13)


def test_what_stands_of_a_search_is_not_computed_again(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(minhash, "PART_ROWS", 50)
    similar = Similar(0.65, 10)
    whole = pairs_found(texts, tmp_path / "whole", similar)
    read = []

    def reading(start, stop):
        read.append(start)
        if start == 100 and len(read) < 4:
            raise KeyboardInterrupt
        return texts[start:stop]

    with pytest.raises(KeyboardInterrupt):
        sign_texts(reading, len(texts), similar.bands, tmp_path / "x", "x")
    with sign_texts(reading, len(texts), similar.bands, tmp_path / "x", "x") as signed:
        assert read == [0, 50, 100, 100, 150]
        decided, made = near_pairs._decided, []

        def failing(*given):
            made.append(1)
            if len(made) == 20:
                raise KeyboardInterrupt
            return decided(*given)

        monkeypatch.setattr(near_pairs, "_decided", failing)
        with pytest.raises(KeyboardInterrupt):
            find_pairs(signed, similar, tmp_path / "x", "x", None)
        found = find_pairs(signed, similar, tmp_path / "x", "x", None)
    assert len(made) == 20 + similar.bands.count - 16
    assert set(zip(found.left.tolist(), found.right.tolist(), strict=True)) == set(whole)


def test_sets_do_not_depend_on_the_order_of_the_texts(texts):
    def members(representative, order):
        found = {}
        for row, kept in enumerate(representative.tolist()):
            found.setdefault(kept, set()).add(int(order[row]))
        return {frozenset(rows) for rows in found.values()}

    chance, rows = np.random.default_rng(0), np.arange(len(texts))
    sets = members(near_duplicate_sets(texts).representative, rows)
    assert len(sets) < len(texts) - 40
    for _ in range(3):
        order = chance.permutation(rows)
        assert members(near_duplicate_sets([texts[row] for row in order]).representative, order) == sets


def test_whoever_is_left_out_is_a_copy_of_who_is_kept_and_no_two_that_are_kept_are_copies(texts):
    sets, pairs = near_duplicate_sets(texts), all_pairs(texts)
    found = set(zip(sets.pairs.left.tolist(), sets.pairs.right.tolist(), strict=True))
    for row, kept in enumerate(sets.representative.tolist()):
        same = texts[row].split() == texts[kept].split()
        assert same or tuple(sorted((int(sets.lowest[row]), int(sets.lowest[kept])))) in found
        assert sets.representative[kept] == kept
        expected = 1 if same else pairs[tuple(sorted((row, kept)))]
        assert sets.similarity[row] == pytest.approx(expected, abs=1e-6)
    kept = set(sets.representative.tolist())
    assert not [pair for pair in found if set(pair) <= kept]
    empty = [row for row, text in enumerate(texts) if not text.strip()]
    assert len(empty) == 3
    assert all(sets.representative[row] == row for row in empty)


def test_a_chain_of_copies_does_not_join_unlike_texts():
    words = [f"w{number}" for number in range(40)]
    chain = [" ".join(words[step : step + 20]) for step in range(0, 20, 2)]
    sets = near_duplicate_sets(chain)
    ends = shingles_of(chain[0]) & shingles_of(chain[-1])
    assert len(ends) < 20
    assert len(set(sets.representative.tolist())) > 1
    for row, kept in enumerate(sets.representative):
        one, other = shingles_of(chain[row]), shingles_of(chain[kept])
        assert len(one & other) / len(one | other) >= 0.65


def test_the_one_with_the_most_copies_stands_for_its_set_then_the_longest_then_the_lowest_row():
    copies = [edited(edited(LONG, first), first + 2) for first in (1, 5, 9)]
    assert near_duplicate_sets([*copies, LONG]).representative.tolist() == [3, 3, 3, 3]
    assert near_duplicate_sets(copies).representative.tolist() == [0, 1, 2]
    assert near_duplicate_sets([LONG, f"{LONG} long"]).representative.tolist() == [1, 1]
    for place in range(12):
        assert near_duplicate_sets([LONG, edited(LONG, place)]).representative.tolist() == [0, 0]
        assert near_duplicate_sets([edited(LONG, place), LONG]).representative.tolist() == [0, 0]
    assert near_duplicate_sets(["b c", LONG, LONG.upper(), "b c!", LONG]).representative.tolist() == [0, 1, 1, 0, 1]


def test_a_preferred_text_stands_for_its_set():
    texts = [LONG, LONG, edited(LONG, 4), "x"]
    found = near_duplicate_sets(texts, preferred=np.array([0.0, 2.0, 3.0, 1.0]))
    assert found.representative.tolist() == [2, 2, 2, 3]
    found = near_duplicate_sets(texts, preferred=np.array([0.0, 3.0, 2.0, 1.0]))
    assert found.representative.tolist() == [1, 1, 1, 3]


def test_texts_with_different_labels_are_no_copies():
    copy = edited(LONG, 4)
    found = near_duplicate_sets([LONG, LONG, copy, LONG, copy], labels=np.array([0, 1, 1, 0, -1]))
    assert found.representative.tolist() == [0, 1, 1, 0, 4]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The  River,\nwas: named!", "the river was named", True),
        ("Ｆｕｌｌ ﬁle", "full file", True),
        ("naïve café", "NAÏVE CAFÉ", True),
        ("don't", "don t", True),
        ("what is 3 - 4", "what is 3 + 4", False),
        ("what is 3 − 4", "what is 3 - 4", True),
        ("3.5", "35", False),
        ("the cat sat", "cat the sat", False),
        ("return self", "return cls", False),
        ("你好世界", "你好,世界", True),
        ("你好世界", "你好世", False),
        ("!!!", "???", False),
        ("👍", " 👍\n", True),
        ("👍", "👎", False),
        ("नमस्ते दुनिया", "नमसत दनय", False),
    ],
)
def test_what_of_a_text_is_ignored_and_what_is_not(one, other, same):
    assert (near_duplicate_sets([one, other]).representative[1] == 0) == same


def test_a_short_text_is_a_copy_only_to_the_word_and_one_that_can_be_edited_is_not():
    nine, ten = LONG.split()[:9], LONG.split()[:10]
    for words, found in ((nine, [0, 1]), (ten, [0, 0])):
        changed = [*words[:4], "other", *words[5:]]
        sets = near_duplicate_sets([" ".join(words), " ".join(changed)])
        assert (len(set(sets.representative.tolist())) == 1) == (found == [0, 0])


def test_words_of_scripts_without_spaces_are_letters():
    text = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"
    assert len(set(near_duplicate_sets([text, text.replace("月", "星"), text[::-1]]).representative.tolist())) == 2


def test_no_texts_and_one_text_are_their_own_sets():
    assert near_duplicate_sets([]).representative.tolist() == []
    assert near_duplicate_sets(["", "a"]).representative.tolist() == [0, 1]


def test_a_large_family_of_copies_is_one_set_without_comparing_every_two(monkeypatch):
    asked = []
    inner = near_pairs.jaccard_of_sets
    monkeypatch.setattr(near_pairs, "jaccard_of_sets", lambda one, other: asked.append(len(one)) or inner(one, other))
    sets = near_duplicate_sets([LONG] * 500 + [f"{LONG} {number}" for number in range(500)])
    assert len(set(sets.representative.tolist())) == 1
    assert sum(asked) < 501 * 4 * (near_pairs.WINDOW + 1) < 501 * 500 / 2


def test_signatures_agree_as_often_as_sets_are_similar():
    chance = np.random.default_rng(0)
    bands, shared, alone, pairs = Bands(1, SLOTS), 40, 20, 60
    sets = []
    for _ in range(pairs):
        common = chance.integers(2**32, size=shared, dtype=np.uint32)
        for _ in range(2):
            own = chance.integers(2**32, size=alone, dtype=np.uint32)
            sets.append(np.sort(np.concatenate([common, own])))
    keys = band_keys(np.concatenate(sets), np.cumsum([len(held) for held in sets]), bands)
    found = (keys[:, ::2] == keys[:, 1::2]).mean()
    assert found == pytest.approx(shared / (shared + 2 * alone), abs=0.02)
    np.testing.assert_allclose(jaccard_of_sets(sets[::2], sets[1::2]), shared / (shared + 2 * alone))
    assert SEED == 1


@pytest.mark.parametrize("jaccard", [0.2, 0.35, 0.5, 0.7, 0.9, 1.0])
def test_bands_are_the_longest_that_find_nearly_all_pairs_of_a_similarity(jaccard):
    bands = Bands.for_similarity(jaccard)
    assert bands.slots * bands.count <= SLOTS
    assert 1 - (1 - jaccard**bands.slots) ** bands.count >= 0.98
    longer = bands.slots + 1
    assert longer > 16 or 1 - (1 - jaccard**longer) ** (SLOTS // longer) < 0.98


def test_shingles_of_a_block_are_those_of_each_text_alone(texts):
    block = shingled(texts)
    starts = np.concatenate([[0], block.ends[:-1]])
    for row, text in enumerate(texts):
        alone = shingled([text])
        held = block.shingles[starts[row] : block.ends[row]]
        np.testing.assert_array_equal(held, alone.shingles)
        assert len(held) == len(shingles_of(text))
        assert block.words[row] == len(text.split())
        assert block.digests[row] == alone.digests[0]
        assert block.empty[row] == (not text.strip())


def test_stars_are_those_of_choosing_centres_one_by_one():
    chance = np.random.default_rng(3)
    for _ in range(30):
        nodes, edges = 40, int(chance.integers(0, 90))
        ends = chance.integers(nodes, size=(edges, 2))
        ends = np.unique(np.sort(ends[ends[:, 0] != ends[:, 1]], axis=1), axis=0)
        weights = chance.choice([0.5, 0.6, 0.9], len(ends)).astype(np.float32)
        ranks = chance.permutation(nodes)
        found, similarity = star_sets(nodes, ends[:, 0], ends[:, 1], weights, ranks)
        near = {node: {} for node in range(nodes)}
        for (left, right), weight in zip(ends.tolist(), weights.tolist(), strict=True):
            near[left][right] = near[right][left] = weight
        centres = []
        for node in np.argsort(ranks).tolist():
            if not any(centre in near[node] for centre in centres):
                centres.append(node)
        for node in range(nodes):
            best = (
                node
                if node in centres
                else min(
                    (centre for centre in centres if centre in near[node]), key=lambda c: (-near[node][c], ranks[c])
                )
            )
            assert (found[node], similarity[node]) == (best, np.float32(near[node].get(best, 1)))


def test_pairs_of_two_sets_are_those_of_comparing_each_with_each(texts, tmp_path):
    one, other, similar = texts[:120], texts[120:], Similar(0.65, 10)
    expected = {(left, right - 120): value for (left, right), value in all_pairs(texts).items() if left < 120 <= right}
    with (
        sign_texts(lambda a, b: one[a:b], len(one), similar.bands, tmp_path / "one", "") as rows,
        sign_texts(lambda a, b: other[a:b], len(other), similar.bands, tmp_path / "other", "") as theirs,
    ):
        found = cross_pairs(rows, theirs, similar, None)
        lowest, lowest_theirs = near_pairs.lowest_rows(rows), near_pairs.lowest_rows(theirs)
    wanted = {pair for pair in expected if lowest[pair[0]] == pair[0] and lowest_theirs[pair[1]] == pair[1]}
    assert len(wanted) > 10
    assert set(zip(found.left.tolist(), found.right.tolist(), strict=True)) == wanted


# --- whole examinations


@pytest.fixture(scope="module")
def records():
    """Thirty rows without ids, so that equal texts share one; rows 20 to 25 are copies."""
    chance = random.Random(2)
    found = [{"text": " ".join(chance.choices(WORDS, k=16)), "label": row % 2} for row in range(20)]
    texts = [record["text"] for record in found]
    copies = [
        texts[3],
        texts[3].upper() + "!",
        " ".join(texts[5].split()[:-2]),
        edited(texts[7], 4),
        texts[9],
        "",
    ]
    labels = [1, 1, 1, 1, 0, 0]
    found += [{"text": text, "label": label} for text, label in zip(copies, labels, strict=True)]
    return [*found, *({"text": " ".join(chance.choices(WORDS, k=4)), "label": 0} for _ in range(4))]


def build(folder, records, model, kind):
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {
        "model": {"path": str(model), "kind": kind, "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 128},
        "recipe": {"name": "logra", "projection": {"p": 4, "q": 4}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "cluster": {"token_budget": 512, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), folder / "run")


@pytest.fixture(scope="module")
def run(model_folder, records, tmp_path_factory, client):
    return build(tmp_path_factory.mktemp("copies"), records, model_folder("llama"), "causal_lm")


@pytest.fixture(scope="module")
def classified(model_folder, records, tmp_path_factory, client):
    return build(tmp_path_factory.mktemp("classes"), records, model_folder("bert"), "sequence_classification")


def examined(run, folder, *checks, settings=(), **given):
    examine(run, folder / "issues.parquet", parse_settings(settings), checks=checks, **given)
    return pq.read_table(folder / "issues.parquet").to_pylist()


def test_a_flagged_row_names_the_row_it_is_a_copy_of_though_ids_repeat(run, tmp_path):
    lines = examined(run, tmp_path, "near_duplicate")
    flagged = {line["row"]: line for line in lines if line["is_near_duplicate"]}
    assert sorted(flagged) == [20, 21, 22, 23, 24]
    assert flagged[20]["suggestion"] == f"drop: a copy of {lines[3]['id']} (row 3)"
    assert flagged[20]["id"] == lines[3]["id"]
    assert flagged[21]["evidence"]["near_duplicate"][0] == lines[3]["id"]
    assert flagged[22]["suggestion"].startswith("drop: nearly a copy (0.")
    assert flagged[22]["suggestion"].endswith("(row 5)")
    assert {line["action"] for line in flagged.values()} == {"drop"}
    assert flagged[21]["near_duplicate_score"] == 1
    assert 0.65 <= flagged[23]["near_duplicate_score"] < 1
    assert (lines[3]["near_duplicate_score"], lines[25]["near_duplicate_score"]) == (0, None)


def test_in_a_classifiers_data_a_copy_has_the_same_label(classified, tmp_path):
    lines = examined(classified, tmp_path, "near_duplicate")
    assert [line["row"] for line in lines if line["is_near_duplicate"]] == [20, 21, 22, 23]


def test_a_threshold_is_a_setting_and_is_told(run, tmp_path):
    lines = examined(run, tmp_path, "near_duplicate", settings=["near_duplicate.jaccard=0.95"])
    assert [line["row"] for line in lines if line["is_near_duplicate"]] == [20, 21, 24]
    frame = run.issues(["near_duplicate"], settings=["near_duplicate.jaccard=0.95"])
    assert "at least 0.95 of the words and word pairs" in frame.attrs["rules"]["near_duplicate"]


def test_texts_that_differ_in_a_few_words_are_copies_only_where_their_gradients_agree(run, tmp_path):
    vectors = run.vectors(range(30)).astype(np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    cosines = {22: unit[22] @ unit[5], 23: unit[23] @ unit[7]}
    assert abs(cosines[22] - cosines[23]) > 1e-3
    between = (cosines[22] + cosines[23]) / 2
    for least, expected in ((-1, [22, 23]), (1, []), (between, [max(cosines, key=lambda row: cosines[row])])):
        folder = tmp_path / f"at {least}"
        folder.mkdir()
        lines = examined(run, folder, "near_duplicate", settings=[f"near_duplicate.cosine={least}"])
        assert [line["row"] for line in lines if line["is_near_duplicate"]] == sorted([20, 21, 24, *expected])


def test_an_evaluation_example_among_the_rows_is_a_leak(run, records, tmp_path):
    held = [
        {"text": "nothing like any of the rows is to be found in here at all", "id": "clean"},
        {"text": records[5]["text"].upper(), "id": "copied"},
        {"text": edited(records[8]["text"], 3), "id": "edited"},
        {"text": " ", "id": "empty"},
    ]
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in held))
    from influence.diagnose.evaluation import read_evaluation

    lines = examined(run, tmp_path, "leak", evaluation=read_evaluation(run, path))
    flagged = {line["row"]: line for line in lines if line["is_leak"]}
    assert sorted(flagged) == [5, 8, 22]
    assert flagged[5]["evidence"]["leak"] == ["eval:copied"]
    assert flagged[5]["suggestion"] == "drop: is in the evaluation set as eval:copied (example 1)"
    assert flagged[8]["suggestion"].startswith("drop: is nearly (0.")
    assert (flagged[5]["leak_score"], lines[0]["leak_score"], lines[25]["leak_score"]) == (1, 0, None)


def test_a_leak_can_only_be_looked_for_in_an_evaluation_set(run, tmp_path):
    with pytest.raises(QueryError, match=r"leak doesn't apply.*give a file of them \(--eval\)"):
        examined(run, tmp_path, "leak")


@pytest.mark.parametrize("setting", ["near_duplicate.jaccard=1.1", "leak.words=0", "conflict.cosine=-2"])
def test_a_threshold_that_can_not_be_is_refused(setting):
    from influence.errors import ConfigError

    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        parse_settings([setting])


def test_the_defaults_are_those_that_are_argued_for():
    assert IssueSettings().near_duplicate == NearDuplicateSettings(jaccard=0.65, words=10)


def test_ids_of_an_evaluation_file_are_its_own_unless_the_run_has_none_and_they_repeat(run, records, tmp_path):
    from influence.diagnose.evaluation import read_evaluation

    assert run.config.data.columns.id is None
    path = tmp_path / "dev.jsonl"
    for ids, found in ((["a", "b"], ["a", "b"]), (["a", "a"], None)):
        held = [{"text": records[row]["text"], "id": name} for row, name in enumerate(ids)]
        path.write_text("".join(json.dumps(record) + "\n" for record in held))
        read = [example.id for example in read_evaluation(run, path).examples]
        assert read == found if found else len({*read, "a"}) == 3
