"""Copies are found as comparing all pairs finds them, whatever the order, in sets that are stars."""

import random

import numpy as np
import pytest

from influence.issues.checks.duplicates import near_duplicate_sets
from influence.text_dedup import minhash, near_pairs
from influence.text_dedup.minhash import SEED, SLOTS, Bands, band_keys, sign_texts
from influence.text_dedup.near_pairs import Similar, cross_pairs, jaccard_of_sets
from influence.text_dedup.near_pairs import near_pairs as find_pairs
from influence.text_dedup.shingles import shingled
from influence.text_dedup.star_sets import star_sets
from tests.diagnose.worded import LONG, WORDS, shingles_of


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
