import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from influence.baselines import bm25
from influence.errors import DataError

TEXTS = ["cats sleep on the warm stove", "dogs chase cats", "rivers flow to the sea", ""]


def lucene_score(query, text, texts, k1=1.5, b=0.75):
    """Robertson & Zaragoza's formula as Lucene has it, one word at a time."""
    split = [[word for word in body.split() if word not in ("the", "to", "on")] for body in texts]
    mean = sum(map(len, split)) / len(split)
    words = split[texts.index(text)]
    score = 0.0
    for word in query:
        holding = sum(word in other for other in split)
        count = words.count(word)
        idf = math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
        score += idf * count / (count + k1 * (1 - b + b * len(words) / mean))
    return score


def test_scores_are_those_of_the_formula():
    found = bm25.fit(TEXTS).scores("Cats chase")
    expected = [lucene_score(["cats", "chase"], text, TEXTS) for text in TEXTS]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_rarer_shared_word_ranks_a_text_higher_and_texts_that_share_none_are_left_out():
    np.testing.assert_array_equal(bm25.fit(TEXTS).top("chase cats", 10), [1, 0])


def test_equal_scores_are_ranked_by_row():
    np.testing.assert_array_equal(bm25.fit(["a tin box", "a tin box", "a tin box"]).top("tin", 2), [0, 1])


@pytest.mark.parametrize("query", ["", "the of and", "zebra"])
def test_a_query_that_shares_no_word_scores_zero_everywhere(query):
    prepared = bm25.fit(TEXTS)
    np.testing.assert_array_equal(prepared.scores(query), np.zeros(4, np.float32))
    assert len(prepared.top(query, 3)) == 0


def test_texts_without_a_word_are_refused():
    with pytest.raises(DataError, match="None of the 2 texts has a word"):
        bm25.fit(["", "?!"])


def test_nothing_is_printed(capfd):
    bm25.fit(TEXTS).top("cats", 2)
    assert capfd.readouterr() == ("", "")


def test_scores_of_some_texts_are_those_of_the_library_to_the_bit():
    texts = [" ".join(f"word{number % step}" for number in range(40)) for step in range(2, 30)]
    prepared = bm25.fit(texts)
    asked = "word3 word1 word27 word3 nowhere"
    library = prepared._retriever.get_scores(["word3", "word1", "word27", "word3"])
    np.testing.assert_array_equal(prepared.scores(asked), library)
    for start, stop in ((0, 5), (5, 28), (11, 12), (4, 4)):
        np.testing.assert_array_equal(prepared.scores(asked, start, stop), library[start:stop])


def test_texts_are_read_once_and_words_counted_as_they_are_read():
    assert bm25.fit(text for text in TEXTS).rows == 4
    np.testing.assert_array_equal(bm25.count_words(TEXTS), [4, 3, 3, 0])


def test_what_is_saved_is_mapped_again_and_scores_the_same(tmp_path):
    prepared = bm25.fit(TEXTS)
    prepared.save(tmp_path)
    again = bm25.load(tmp_path)
    assert isinstance(again._retriever.scores["data"], np.memmap)
    np.testing.assert_array_equal(again.scores("cats chase rivers"), prepared.scores("cats chase rivers"))


def test_the_same_texts_are_saved_to_the_same_bytes_whatever_python_hashes_strings_to(tmp_path):
    script = "import sys; from pathlib import Path; from influence.baselines import bm25\n"
    script += f"bm25.fit({TEXTS!r}).save(Path(sys.argv[1]))"
    saved = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / seed)], check=True, env=environment)
        files = sorted((tmp_path / seed).iterdir())
        saved.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert saved[0] == saved[1]
    assert len(saved[0]) == 5
