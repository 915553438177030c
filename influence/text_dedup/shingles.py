"""Texts as sets of shingles: their words and pairs of adjacent words, numbered by a hash.

What two texts have in common is judged by their words in their order. Case, white space and punctuation are ignored,
Unicode's compatible forms are one (NFKC), and a letter of a script that puts no spaces between words (Han, kana, Thai,
Lao, Khmer, Burmese) is a word. An operator before a number is a word too: "3 - 4" isn't "3 + 4". The first and the last
word make a pair with the text's border, so that each word counts in two pairs: n words have n + 1.

Pairs are rarely shared by chance, words alone often; but where words have changed places, words are all that is left.

All of it is done on a block of texts at once, by Arrow and in numpy; no text costs a Python loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas.util
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute
"""Its functions are made when it is imported."""
hash_array: Any = pandas.util.hash_array
OPERATORS = "+-*/=<>^%"
MARKS = {operator: chr(0xE001 + place) for place, operator in enumerate(OPERATORS)}
"""A letter of Unicode's private use for each operator before a number."""
UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
BETWEEN = rf"[^\pL\pN\pM_{MARKS['+']}-{MARKS['%']}]+"
BORDERS = np.array([0x243F6A8885A308D3, 0x13198A2E03707344], dtype=np.uint64)
"""What stands for a text's beginning and end: the first digits of π, which hash no word we know of."""


@dataclass(frozen=True)
class Shingled:
    """Texts as sets of shingles.

    Attributes:
        shingles: Words and pairs of every text, ascending and none twice, one text after another, uint32.
        ends: Where each text's end in them, int64 [texts].
        pairs: The pairs alone.
        pair_ends: Where each text's end in them.
        words: Words of each text, int32 [texts].
        digests: uint64 [texts]; equal where texts have the same words in the same order. Of a text without words, those
            of its characters.
        empty: Which texts are nothing but white space, bool [texts].
    """

    shingles: np.ndarray
    ends: np.ndarray
    pairs: np.ndarray
    pair_ends: np.ndarray
    words: np.ndarray
    digests: np.ndarray
    empty: np.ndarray


def shingled(texts: Sequence[str]) -> Shingled:
    """Return the shingles of some texts."""
    normal = pc.utf8_lower(pc.utf8_normalize(pa.array(texts, pa.large_string()), "NFKC"))
    hashes, lengths = _words(normal)
    digests = _sequence_digests(hashes, lengths)
    wordless = lengths == 0
    if wordless.any():
        bare = pc.utf8_trim_whitespace(normal.filter(pa.array(wordless))).to_numpy(zero_copy_only=False)
        digests[wordless] = hash_array(bare.astype(object), categorize=False)
    empty = np.asarray(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(normal)), 0))
    rows = np.repeat(np.arange(len(lengths)), lengths)
    pair_rows, found = _pairs(hashes, lengths)
    pairs, pair_ends = _sets(pair_rows, found, len(lengths))
    both = np.concatenate([rows, pair_rows]), np.concatenate([spread(hashes), found])
    shingles, ends = _sets(*both, len(lengths))
    return Shingled(shingles, ends, pairs, pair_ends, lengths.astype(np.int32), digests, empty)


def spread(numbers: np.ndarray) -> np.ndarray:
    """Return numbers whose bits all depend on all bits of the given ones, uint64: splitmix64's last step."""
    mixed = numbers.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _words(normal: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of every word, uint64, and the number of words of each text."""
    for operator, mark in MARKS.items():
        signs = f"\\{operator}" + ("−" if operator == "-" else "")
        normal = pc.replace_substring_regex(normal, rf"[{signs}](\s*\pN)", rf" {mark} \1")
    normal = pc.replace_substring_regex(normal, UNSPACED, r" \1 ")
    pieces = pc.split_pattern_regex(normal, BETWEEN)
    held = pieces.flatten().dictionary_encode()
    vocabulary = held.dictionary.to_numpy(zero_copy_only=False).astype(object)
    hashes = hash_array(vocabulary, categorize=False)
    kept = (vocabulary != "")[held.indices.to_numpy()]
    # Splitting leaves empty pieces at either end of a text.
    before = np.concatenate([[0], np.cumsum(kept)])
    bounds = pieces.offsets.to_numpy() - pieces.offsets[0].as_py()
    return hashes[held.indices.to_numpy()[kept]], np.diff(before[bounds])


def _sequence_digests(hashes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    starts = np.cumsum(lengths) - lengths
    places = (np.arange(len(hashes)) - np.repeat(starts, lengths)).astype(np.uint64)
    terms = np.concatenate([[np.uint64(0)], np.cumsum(spread(hashes ^ spread(places + np.uint64(1))))])
    return spread(terms[starts + lengths] - terms[starts])


def _pairs(hashes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the text and the hash, uint64, of every pair of adjacent words."""
    sizes = np.where(lengths > 0, lengths + 1, 0)
    rows, total = np.repeat(np.arange(len(lengths)), sizes), int(sizes.sum())
    # Text r's words stand one further right in `first` than in `second`, each text one longer than its words.
    places = np.arange(len(hashes)) + np.cumsum(sizes > 0)[np.repeat(np.arange(len(lengths)), lengths)] - 1
    first, second = np.full(total, BORDERS[0]), np.full(total, BORDERS[1])
    first[places + 1], second[places] = hashes, hashes
    return rows, spread(first + spread(second))


def _sets(rows: np.ndarray, hashes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each text's different hashes, cut to uint32, and where each text's end."""
    keys = np.sort((rows.astype(np.uint64) << np.uint64(32)) | (hashes >> np.uint64(32)))
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
    counts = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=count)
    return keys.astype(np.uint32), np.cumsum(counts)


__all__ = ["Shingled", "shingled", "spread"]
