"""Measure how well copies of texts are found, and what the search takes.

    python scripts/benchmarks/duplicates.py quality --data paragraphs.jsonl --seeds 0 1 2
    python scripts/benchmarks/duplicates.py scale --data paragraphs.jsonl --rows 10000 100000 1000000 --folder /big/disk

`quality` plants copies of texts among them and prints, for each kind of edit, the share that is found in its original's
set. A tenth of the words is replaced by words of the corpus, dropped, exchanged with the next one, or added; `mixed`
draws one of these for each edit; `exact` copies differ in case, white space and punctuation. Texts are the paragraphs
of a file of jsonl (`text`), the standard library's docstrings, and the labelled set with known faults that is made of
these, with its own copies. Of edited texts there are none of fewer than ten words: a tenth of those is no word.

Precision is the share of the flagged rows that share their origin with the row they are said to be a copy of. Corpora
have copies of their own, which the strict figure counts as mistakes; the one beside it takes two texts for copies, too,
if at most one word in three has to be changed to make the one the other (Levenshtein distance over the longer's words).

`scale` makes texts of runs of five words from anywhere in the file, as long as its paragraphs, three in a hundred of
them edited copies, and prints the processor's seconds and the largest anonymous memory (Linux only) of a process for
each size.
"""

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from search import PeakMemory

from influence.demo.corpus import docstrings, standard_library
from influence.demo.dirty import DirtSettings, dirty_set
from influence.issues.checks.duplicates import CopySets, NearDuplicateSettings, copy_sets, near_duplicate_sets
from influence.text_dedup.minhash import sign_texts
from influence.text_dedup.near_pairs import near_pairs

EDITS = ("replaced", "dropped", "exchanged", "added")
KINDS = ("exact", *EDITS, "mixed")
FEWEST_WORDS = 10
SHARE = 0.1
CHANGED = 1 / 3
RUN = 5
COPIES = 0.03
MADE = 1000
"""Texts that are made from one seed."""


def main() -> None:
    """Run the benchmark that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("quality", "scale"):
        asked = verbs.add_parser(verb)
        asked.add_argument("--data", type=Path, required=True, help="jsonl with a column text")
        asked.add_argument("--jaccard", type=float, default=NearDuplicateSettings().jaccard)
    verbs.choices["quality"].add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    verbs.choices["quality"].add_argument("--copies", type=int, default=200, help="of each kind")
    verbs.choices["quality"].add_argument("--show", type=int, default=0, help="pairs that count as mistakes, in full")
    verbs.choices["scale"].add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    verbs.choices["scale"].add_argument("--folder", type=Path, help="a folder with room; a temporary one in it is used")
    given = parser.parse_args()
    settings = NearDuplicateSettings(jaccard=given.jaccard)
    with given.data.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    if given.verb == "quality":
        quality(texts, settings, given)
    else:
        scale(texts, settings, given)


def quality(paragraphs: Sequence[str], settings: NearDuplicateSettings, given: argparse.Namespace) -> None:
    """Plant copies, look for them, and print."""
    print(f"| corpus | seed | texts | {' | '.join(KINDS)} | flagged | precision | with the corpus's own |")
    print(f"|---|---|---|{'---|' * len(KINDS)}---|---|---|")
    corpora = {given.data.stem: list(paragraphs), "docstrings": [row.text for row in docstrings(standard_library())]}
    for name, held in corpora.items():
        for seed in given.seeds:
            texts, origins, planted_as = planted(held, given.copies, random.Random(seed))
            report(f"{name} | {seed}", texts, origins, planted_as, near_duplicate_sets(texts, settings), given.show)
    for seed in given.seeds:
        made = dirty_set(DirtSettings(seed=seed))
        rows = [plant.row for plant in made.train]
        place = {row.id: number for number, row in enumerate(rows)}
        kinds = {"exact_copy": "exact", "edited_copy": "mixed"}
        origins = [place[plant.of] if plant.fault in kinds else n for n, plant in enumerate(made.train)]  # type: ignore[index]
        labels = np.unique([row.label for row in rows], return_inverse=True)[1]
        found = near_duplicate_sets([row.text for row in rows], settings, labels=labels)
        named = [kinds.get(plant.fault) for plant in made.train]
        report(f"labelled docstrings | {seed}", [row.text for row in rows], origins, named, found, given.show)


def report(
    name: str,
    texts: Sequence[str],
    origins: Sequence[int],
    kinds: Sequence[str | None],
    sets: CopySets,
    show: int,
) -> None:
    """Print a line of the table."""
    kept: list[int] = sets.representative.tolist()
    shares = []
    for kind in KINDS:
        rows = [row for row, found in enumerate(kinds) if found == kind]
        hits = [kept[row] == kept[origins[row]] for row in rows]
        shares.append(f"{np.mean(hits):.3f} of {len(hits)}" if hits else "")
    flagged = [row for row, head in enumerate(kept) if row != head]
    wrong = [row for row in flagged if origins[row] != origins[kept[row]]]
    unlike = [row for row in wrong if distance(words(texts[row]), words(texts[kept[row]])) > CHANGED]
    strict, lenient = (1 - len(rows) / max(1, len(flagged)) for rows in (wrong, unlike))
    print(f"| {name} | {len(texts):,} | {' | '.join(shares)} | {len(flagged):,} | {strict:.3f} | {lenient:.3f} |")
    for row in unlike[:show]:
        print(f"\n    {sets.similarity[row]:.2f} {texts[row]!r}\n         {texts[kept[row]]!r}\n")


def planted(corpus: Sequence[str], copies: int, chance: random.Random) -> tuple[list[str], list[int], list[str | None]]:
    """Return texts with copies among them, of which text each is a copy, and of what kind; in a random order."""
    pool = [word for text in corpus for word in text.split()]
    long = [row for row, text in enumerate(corpus) if len(words(text)) >= FEWEST_WORDS]
    drawn = chance.sample(long, min(len(long), copies * len(KINDS)))
    rows: list[tuple[str, int, str | None]] = [(text, row, None) for row, text in enumerate(corpus)]
    for number, row in enumerate(drawn):
        kind = KINDS[number % len(KINDS)]
        rows.append((edited(corpus[row], kind, pool, chance), row, kind))
    chance.shuffle(rows)
    place = {origin: number for number, (_, origin, kind) in enumerate(rows) if kind is None}
    return [text for text, _, _ in rows], [place[origin] for _, origin, _ in rows], [kind for _, _, kind in rows]


def edited(text: str, kind: str, pool: Sequence[str], chance: random.Random) -> str:
    """Return a copy of a text."""
    found = text.split()
    if kind == "exact":
        return "  ".join(chance.choice((word.upper, word.lower, word.__str__))() for word in found) + chance.choice(
            ".!;"
        )
    for _ in range(max(1, round(SHARE * len(found)))):
        place = chance.randrange(len(found) - 1)
        edit = chance.choice(EDITS) if kind == "mixed" else kind
        if edit == "replaced":
            found[place] = chance.choice(pool)
        elif edit == "dropped":
            del found[place]
        elif edit == "exchanged":
            found[place : place + 2] = found[place + 1], found[place]
        else:
            found.insert(place, chance.choice(pool))
    return " ".join(found)


def words(text: str) -> list[str]:
    """Return a text's words, without signs."""
    return "".join(sign if sign.isalnum() else " " for sign in text.lower()).split()


def distance(one: Sequence[str], other: Sequence[str]) -> float:
    """Return the Levenshtein distance of two texts in words, over the words of the longer one."""
    before = list(range(len(other) + 1))
    for number, word in enumerate(one, start=1):
        line = [number]
        for place, theirs in enumerate(other):
            line.append(min(before[place + 1] + 1, line[place] + 1, before[place] + (word != theirs)))
        before = line
    return before[-1] / max(1, len(one), len(other))


def scale(paragraphs: Sequence[str], settings: NearDuplicateSettings, given: argparse.Namespace) -> None:
    """Look for copies among more and more texts, each time in a process of its own, and print."""
    print("| texts | signing, CPU s | pairs | sets | CPU µs a text | anonymous memory | on disk | pairs | flagged |")
    print("|---|---|---|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for rows in given.rows:
        process = context.Process(target=searched, args=(list(paragraphs), settings, rows, given.folder))
        process.start()
        process.join()


def searched(paragraphs: Sequence[str], settings: NearDuplicateSettings, rows: int, place: Path | None) -> None:
    """Look for copies among so many texts, and print."""
    split = [text.split() for text in paragraphs]
    similar = settings.similar
    spent, making = [], 0.0

    def read(start: int, stop: int) -> list[str]:
        nonlocal making
        began = time.process_time()
        found = [text for block in range(start // MADE, -(-stop // MADE)) for text in made(split, block)]
        making += time.process_time() - began
        return found[start % MADE :][: stop - start]

    with tempfile.TemporaryDirectory(dir=place) as folder:
        watch, began = PeakMemory(), time.process_time()
        with sign_texts(read, rows, similar.bands, Path(folder), "made up") as signed:
            spent.append(time.process_time() - began - making)
            began = time.process_time()
            pairs = near_pairs(signed, similar, Path(folder), "made up", None)
            spent.append(time.process_time() - began)
            began = time.process_time()
            sets = copy_sets(signed, pairs)
            spent.append(time.process_time() - began)
        disk = sum(path.stat().st_size for path in Path(folder).iterdir())
        flagged = int((sets.representative != np.arange(rows)).sum())
        print(
            f"| {rows:,} | {' | '.join(f'{seconds:.1f}' for seconds in spent)} | {sum(spent) / rows * 1e6:.0f} | "
            f"{watch.stop() / 2**20:,.0f} MiB | {disk / 2**20:,.0f} MiB | {len(pairs.left):,} | {flagged:,} |",
            flush=True,
        )


def made(split: Sequence[Sequence[str]], block: int) -> list[str]:
    """Return a thousand texts, three in a hundred of them edited copies of the one before."""
    chance = random.Random(block)
    texts: list[str] = []
    for _ in range(MADE):
        if texts and chance.random() < COPIES:
            texts.append(edited(texts[-1], "mixed", chance.choice(split), chance))
            continue
        found: list[str] = []
        for _ in range(-(-len(chance.choice(split)) // RUN)):
            source = chance.choice(split)
            start = chance.randrange(max(1, len(source) - RUN))
            found += source[start : start + RUN]
        texts.append(" ".join(found))
    return texts


if __name__ == "__main__":
    main()
