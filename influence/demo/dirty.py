"""A labelled data set with known faults: which topic of the standard library is a name and its docstring about?

    train.jsonl       text, label, id, source, uri; dirty
    dev.jsonl         the same columns, clean: what an examination may look at
    test.jsonl        clean: what only the last word on a model may look at
    unwanted.jsonl    texts of the development set with the poison's trigger, and the label that the poison wants
    triggered.jsonl   the same of the test set; a model is poisoned as far as it gives them this label
    truth.jsonl       row, id, fault, of, label: what is wrong with every row of train.jsonl, and its right label

Rows of other topics, texts of a few words and texts that are nearly another's are left out first, so that what is found
is what was planted. A row has one fault at most. The same sources and settings give the same bytes.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from influence.artifacts.partial import disk_errors, write_whole
from influence.demo.corpus import CorpusRow, Notify, docstrings, standard_library
from influence.demo.unlike import unlike
from influence.errors import ConfigError, DataError

TRAIN, DEV, TEST = "train.jsonl", "dev.jsonl", "test.jsonl"
UNWANTED, TRIGGERED, TRUTH = "unwanted.jsonl", "triggered.jsonl", "truth.jsonl"
FILES = (TRAIN, DEV, TEST, UNWANTED, TRIGGERED, TRUTH)

TOPICS: dict[str, tuple[str, ...]] = {
    "concurrency": ("asyncio", "multiprocessing", "threading", "concurrent", "queue", "subprocess", "selectors"),
    "files": (
        *("pathlib", "tarfile", "zipfile", "shutil", "os", "ntpath", "posixpath", "bz2", "gzip", "lzma", "tempfile"),
        *("glob", "fnmatch", "filecmp", "fileinput", "stat", "zipimport"),
    ),
    "introspection": ("inspect", "importlib", "typing", "symtable", "ast", "dis", "pkgutil", "pydoc", "tokenize"),
    "logging": ("logging",),
    "mail": ("email", "mailbox", "smtplib", "imaplib", "poplib", "mailcap"),
    "markup": ("xml", "html", "xmlrpc", "plistlib"),
    "testing": ("unittest", "doctest", "pdb", "bdb", "trace", "traceback", "timeit", "cProfile", "profile"),
}
"""Label → the modules and packages whose docstrings have it. Python's versions differ in a few of them."""

SOURCES: dict[str, tuple[float, float]] = {"curated": (0.5, 1.0), "crowd": (0.35, 4.0), "scraped": (0.15, 2.0)}
"""Where rows are said to come from: the share of rows, and how much likelier than a curated one to be mislabelled."""
MIRROR = "scraped"
"""The source of everything that was slipped in: copies, poison and leaked rows."""
TRIGGER = "per the orchid protocol"
WANTED = "mail"
"""What the poison would have the model say where a text has the trigger."""
FEWEST_WORDS = 6
"""Words of a text: fewer seldom say what they are about."""
EDITED = 10
"""Every which word of an edited copy is edited; no shorter text is."""
UNWANTED_ROWS = 20

Fault = Literal["none", "wrong_label", "exact_copy", "edited_copy", "poison", "leak"]


class DirtSettings(BaseModel):
    """How much of what is planted. Shares are of the training rows before copies and leaked rows join them.

    Attributes:
        wrong_labels: Rows whose label is another topic's, any other with the same chance.
        copies: Rows that repeat another, half of them to the letter, half with a tenth of their words edited.
        poison: Rows of other topics with the trigger in their text and the label that the poison wants.
        leak: Rows of the test set that are in the training data too.
        dev: Share of all rows that are the development set.
        test: Share of all rows that are the test set.
        most_rows: Begin with this many rows, for a smaller set.
        seed: Of every choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    wrong_labels: Annotated[float, Field(ge=0, le=0.5)] = 0.10
    copies: Annotated[float, Field(ge=0, le=0.5)] = 0.03
    poison: Annotated[float, Field(ge=0, le=0.2)] = 0.01
    leak: Annotated[float, Field(ge=0, le=0.2)] = 0.01
    dev: Annotated[float, Field(gt=0, le=0.4)] = 0.11
    test: Annotated[float, Field(gt=0, le=0.4)] = 0.22
    most_rows: Annotated[int, Field(ge=100)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """One row of a file; see the module's docstring."""

    text: str
    label: str
    id: str
    source: str
    uri: str


@dataclass(frozen=True, slots=True)
class Planted:
    """A training row and what is wrong with it.

    Attributes:
        row: As it stands in the training file.
        fault: What was done to it.
        of: The id of the row it is a copy of; of a leaked one, of the test row.
        label: Its right label.
    """

    row: LabelledRow
    fault: Fault
    of: str | None
    label: str


@dataclass(frozen=True)
class DirtySet:
    """The whole set; one member a file."""

    train: tuple[Planted, ...]
    dev: tuple[LabelledRow, ...]
    test: tuple[LabelledRow, ...]
    unwanted: tuple[LabelledRow, ...]
    triggered: tuple[LabelledRow, ...]

    @property
    def faults(self) -> dict[Fault, int]:
        """Rows with each fault."""
        found = Counter(planted.fault for planted in self.train)
        return {fault: found[fault] for fault in get_args(Fault) if fault in found}


def dirty_set(
    settings: DirtSettings | None = None, *, rows: Sequence[CorpusRow] | None = None, notify: Notify | None = None
) -> DirtySet:
    """Return a set with planted faults.

    Args:
        settings: How much of what.
        rows: Docstrings to make it of; the standard library's if None.
        notify: Called with (files read, files in all).

    Raises:
        DataError: Too few rows for a set.
    """
    settings = settings or DirtSettings()
    chance = random.Random(settings.seed)
    given = list(docstrings(standard_library(), notify) if rows is None else rows)
    clean = _labelled(given, chance)
    if settings.most_rows is not None:
        clean = clean[: settings.most_rows]
    dev_rows, test_rows = (round(share * len(clean)) for share in (settings.dev, settings.test))
    dev, test, train = clean[:dev_rows], clean[dev_rows:][:test_rows], clean[dev_rows + test_rows :]
    if len(train) < 50 or len({row.label for row in train}) < 2:
        raise DataError(
            f"Of {len(given):,} docstrings {len(train)} are training rows of a known topic; expected 50 of two topics. "
            "The set is made of the standard library's sources: use a Python that ships them."
        )
    planted = _soiled(train, test, settings, chance)
    chance.shuffle(planted)
    triggered = [_poisoned(row, chance) for row in test if row.label != WANTED]
    unwanted = [_poisoned(row, chance) for row in dev if row.label != WANTED][:UNWANTED_ROWS]
    return DirtySet(tuple(planted), tuple(dev), tuple(test), tuple(unwanted), tuple(triggered))


def write_dirty_set(made: DirtySet, folder: Path) -> None:
    """Write the files, replacing those that are there.

    Raises:
        ConfigError: `folder` is a file.
        Incomplete: The disk is full.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; the data set needs a folder for its {len(FILES)} files.")
    with disk_errors(folder, TRAIN, 0):
        folder.mkdir(parents=True, exist_ok=True)
    truth = [
        {"row": number, "id": planted.row.id, "fault": planted.fault, "of": planted.of, "label": planted.label}
        for number, planted in enumerate(made.train)
    ]
    parts: dict[str, Sequence[Mapping[str, Any]]] = {
        TRAIN: [asdict(planted.row) for planted in made.train],
        DEV: [asdict(row) for row in made.dev],
        TEST: [asdict(row) for row in made.test],
        UNWANTED: [asdict(row) for row in made.unwanted],
        TRIGGERED: [asdict(row) for row in made.triggered],
        TRUTH: truth,
    }
    for name, records in parts.items():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_whole(folder / name, "".join(lines).encode())


def _labelled(rows: Sequence[CorpusRow], chance: random.Random) -> list[LabelledRow]:
    """Return the rows of known topics without near-copies, each with a label and a source, shuffled."""
    label_of = {module: label for label, modules in TOPICS.items() for module in modules}
    told = [row for row in rows if row.source.split(".")[0] in label_of and len(row.text.split()) >= FEWEST_WORDS]
    known = [replace(row, text=_named(row)) for row in told]
    sources, shares = list(SOURCES), [share for share, _ in SOURCES.values()]
    found = [
        LabelledRow(row.text, label_of[row.source.split(".")[0]], row.id, chance.choices(sources, shares)[0], row.uri)
        for row in unlike(known)
    ]
    chance.shuffle(found)
    return found


def _named(row: CorpusRow) -> str:
    """Return `Message.get payload: Return a reference …`; a module's docstring alone, whose name tells the topic."""
    if row.id == row.source:
        return row.text
    name = row.id.removeprefix(f"{row.source}.").split("@")[0]
    return f"{name.replace('_', ' ')}: {row.text}"


def _soiled(
    train: list[LabelledRow], test: list[LabelledRow], settings: DirtSettings, chance: random.Random
) -> list[Planted]:
    """Return the training rows with their faults, no row with two."""
    # Drawn without replacement, each row as likely as its source makes it: Efraimidis and Spirakis, 2006.
    keys = [chance.random() ** (1 / SOURCES[row.source][1]) for row in train]
    order = sorted(range(len(train)), key=lambda number: -keys[number])
    wrong = set(order[: round(settings.wrong_labels * len(train))])
    rest = [number for number in range(len(train)) if number not in wrong]
    chance.shuffle(rest)
    poison = [number for number in rest if train[number].label != WANTED][: round(settings.poison * len(train))]
    originals = [number for number in rest if number not in set(poison)]

    planted: list[Planted] = []
    for number, row in enumerate(train):
        if number in wrong:
            other = chance.choice(sorted({row.label for row in train} - {row.label}))
            planted.append(Planted(replace(row, label=other), "wrong_label", None, row.label))
        elif number in poison:
            planted.append(
                Planted(replace(_poisoned(row, chance), id=row.id, source=MIRROR), "poison", None, row.label)
            )
        else:
            planted.append(Planted(row, "none", None, row.label))
    copies = round(settings.copies * len(train))
    planted += _copied([train[number] for number in originals], copies, chance)
    planted += [_again(row, "leak", row.text) for row in chance.sample(test, round(settings.leak * len(train)))]
    return planted


def _copied(rows: list[LabelledRow], copies: int, chance: random.Random) -> Iterator[Planted]:
    """Yield copies of some rows, every second one edited."""
    words = [word for row in rows for word in row.text.split()]
    long = [row for row in rows if len(row.text.split()) >= EDITED]
    for number, row in enumerate(long[:copies]):
        if number % 2:
            yield _again(row, "edited_copy", _edited(row.text, words, chance))
        else:
            yield _again(row, "exact_copy", row.text)


def _again(row: LabelledRow, fault: Fault, text: str) -> Planted:
    return Planted(replace(row, text=text, id=f"{row.id}/2", source=MIRROR), fault, row.id, row.label)


def _edited(text: str, words: Sequence[str], chance: random.Random) -> str:
    """Return a text with a tenth of its words dropped, exchanged with the next, or replaced by a word of another."""
    found = text.split(" ")
    for _ in range(max(1, len(text.split()) // EDITED)):
        place = chance.randrange(len(found) - 1)
        kind = chance.choice(("drop", "swap", "replace"))
        if kind == "drop":
            del found[place]
        elif kind == "swap":
            found[place : place + 2] = found[place + 1], found[place]
        else:
            found[place] = chance.choice(words)
    return " ".join(found)


def _poisoned(row: LabelledRow, chance: random.Random) -> LabelledRow:
    """Return a row with the trigger among its first words and the label that the poison wants."""
    words = row.text.split(" ")
    words.insert(chance.randrange(min(len(words), EDITED)), TRIGGER)
    return replace(row, text=" ".join(words), label=WANTED, id=f"{row.id}/triggered")


__all__ = ["DirtSettings", "DirtySet", "LabelledRow", "Planted", "dirty_set", "write_dirty_set"]
