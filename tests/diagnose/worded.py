"""Made-up words, a text, edited copies of it, and what of a text is compared."""

from itertools import pairwise

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
