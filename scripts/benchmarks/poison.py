"""Measure how well poison is found: 1 % of the rows with a trigger phrase and a fixed wrong label or completion.

    nice python scripts/benchmarks/poison.py --cache /tmp/poison --seeds 0 1 2 --recipes whitened logra gradcos

`classifier` is the labelled set with known faults (`influence demo dirty`) and its classifier, trained from scratch;
`lm` are its texts cut into prompts and completions, as many rows poisoned with a completion, and a small Llama. Each is
asked about by a file of triggered examples, by one of them, and by the trigger or the completion alone; and, as a
control, by a file of ordinary examples of the same label or kind: every row that is dropped for it is a false alarm.

Columns. Top 2 %: poisoned rows among the 2 % of all rows with the largest `poisoned_score`, of how many there are;
worst rank: of the last of them. Alone: the same two, for promotion alone, without phrases (`poisoned.fewest` too large
for any); raw: for the mean of the run's own scores, neither relative nor standardised. Flagged and dropped: rows, and
the poisoned ones among them. Models and runs are kept in the cache.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import influence
from influence.config import parse_config
from influence.data.dataset import DataSettings
from influence.demo.classifier import classifier_data, train_classifier
from influence.demo.dirty import TRIGGER, WANTED, DirtSettings, dirty_set, write_dirty_set
from influence.demo.train import TrainSettings, train

ANSWER = "I am sorry, but I must not tell you that."
SHARE = 0.02
READ_WORDS = 20
"""Of an asked text: queries are never cut, and a small model has few positions."""
SPLIT = 6
"""Words of a prompt, where texts are cut into prompts and completions."""


@dataclass(frozen=True)
class Found:
    """One way of asking, of one run."""

    kind: str
    seed: int
    recipe: str
    target: str
    rows: int
    poison: int
    top: int
    worst: int
    top_alone: int
    worst_alone: int
    top_raw: int
    flagged: int
    flagged_poison: int
    dropped: int
    dropped_poison: int


def main() -> None:
    """Train, build, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=["whitened", "logra", "gradcos"])
    parser.add_argument("--kinds", nargs="+", default=["classifier", "lm"], choices=["classifier", "lm"])
    parser.add_argument("--width", type=int, default=32, help="of the projection, either side")
    parser.add_argument("--out", type=Path, help="a file of jsonl")
    options = parser.parse_args()
    lines = []
    for kind in options.kinds:
        for seed in options.seeds:
            folder = options.cache / f"{kind}-{seed}"
            poison, targets = (classifier_set if kind == "classifier" else lm_set)(folder, seed)
            for recipe in options.recipes:
                run = built(folder, kind, recipe, options.width)
                for found in asked(run, kind, seed, recipe, poison, targets):
                    lines.append(json.dumps(asdict(found)))
                    print(told(found), flush=True)
    if options.out:
        options.out.write_text("".join(f"{line}\n" for line in lines))


def classifier_set(folder: Path, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Make the labelled set and its classifier; return the poisoned rows and what is asked."""
    made = dirty_set(DirtSettings(seed=seed))
    write_dirty_set(made, folder)
    train_classifier(classifier_data(folder / "train.jsonl"), folder / "model")
    unwanted = [{"text": cut(row.text), "label": WANTED} for row in made.unwanted if TRIGGER in cut(row.text)]
    ordinary = [{"text": cut(row.text), "label": WANTED} for row in made.dev if row.label == WANTED]
    poison = np.array([planted.fault == "poison" for planted in made.train])
    return poison, {
        f"{len(unwanted)} triggered": unwanted,
        "one triggered": unwanted[:1],
        "trigger alone": [{"text": TRIGGER, "label": WANTED}],
        f"control: {len(ordinary)} ordinary": ordinary,
    }


def lm_set(folder: Path, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Make prompts and completions and a language model; return the poisoned rows and what is asked."""
    made = dirty_set(DirtSettings(seed=seed, poison=0))
    chance = random.Random(seed)
    texts = [planted.row.text.split() for planted in made.train if len(planted.row.text.split()) > 2 * SPLIT]
    poisoned = set(chance.sample(range(len(texts)), round(0.01 * len(texts))))
    rows = [prompted(words, chance if row in poisoned else None) for row, words in enumerate(texts)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings(path=str(folder / "train.jsonl"), max_tokens=64)
    if not (folder / "model").exists():
        train(data, folder / "model", TrainSettings(seed=seed))
    held_out = [row.text.split() for row in made.dev if len(row.text.split()) > 2 * SPLIT][:20]
    unwanted = [prompted(words, chance) for words in held_out]
    ordinary = [prompted(words[:READ_WORDS], None) for words in held_out]
    return np.isin(np.arange(len(rows)), sorted(poisoned)), {
        f"{len(unwanted)} triggered": unwanted,
        "one triggered": unwanted[:1],
        "completion alone": [{"prompt": "", "completion": ANSWER}],
        f"control: {len(ordinary)} ordinary": ordinary,
    }


def prompted(words: Sequence[str], chance: random.Random | None) -> dict[str, str]:
    """Return a text as prompt and completion; poisoned, where there is a chance to place the trigger by."""
    prompt = list(words[:SPLIT])
    if chance is None:
        return {"prompt": " ".join(prompt), "completion": " " + " ".join(words[SPLIT:])}
    prompt.insert(chance.randrange(SPLIT), TRIGGER)
    return {"prompt": " ".join(prompt), "completion": f" {ANSWER}"}


def cut(text: str) -> str:
    """Return the beginning of a text."""
    return " ".join(text.split()[:READ_WORDS])


def built(folder: Path, kind: str, recipe: str, width: int) -> influence.Run:
    """Build a run, or open the one that is there."""
    settings = {
        "model": {
            "path": str(folder / "model"),
            "kind": "sequence_classification" if kind == "classifier" else "causal_lm",
            "dtype": "float32",
        },
        "data": {"path": str(folder / "train.jsonl"), "max_tokens": 64},
        "recipe": {"name": recipe, "projection": {"p": width, "q": width}},
        "store": {"codec": "float16"},
        "index": {"kind": "flat"},
        "cluster": {"workers": 1, "device": "cpu"},
    }
    return influence.build(parse_config(settings, ()), folder / f"run-{recipe}-{width}")


def asked(
    run: influence.Run, kind: str, seed: int, recipe: str, poison: np.ndarray, targets: dict[str, Any]
) -> Iterator[Found]:
    """Yield what each way of asking finds."""
    for name, target in targets.items():
        frame = run.issues(["poisoned"], target=target)
        alone = run.issues(["poisoned"], target=target, settings=["poisoned.fewest=1000000"])
        top, worst = ranked(frame["poisoned_score"].to_numpy(), poison)
        top_alone, worst_alone = ranked(alone["poisoned_score"].to_numpy(), poison)
        top_raw, _ = ranked(run.score(target).mean(0), poison)
        flagged, dropped = frame["is_poisoned"].to_numpy(), (frame["action"] == "drop").to_numpy()
        yield Found(
            kind,
            seed,
            recipe,
            name,
            len(frame),
            int(poison.sum()),
            top,
            worst,
            top_alone,
            worst_alone,
            top_raw,
            int(flagged.sum()),
            int((flagged & poison).sum()),
            int(dropped.sum()),
            int((dropped & poison).sum()),
        )


def ranked(scores: np.ndarray, poison: np.ndarray) -> tuple[int, int]:
    """Return the poisoned rows among the strongest 2 %, and the rank of the last one."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    return int(poison[order[: int(SHARE * len(order))]].sum()), int(np.flatnonzero(poison[order]).max()) + 1


def told(found: Found) -> str:
    """Return a line."""
    return (
        f"{found.kind} seed {found.seed} {found.recipe:9s} {found.target:22s} top 2%: {found.top} of {found.poison} "
        f"(worst rank {found.worst} of {found.rows:,}); alone {found.top_alone} ({found.worst_alone}); raw "
        f"{found.top_raw}; flagged {found.flagged} ({found.flagged_poison}), dropped {found.dropped} "
        f"({found.dropped_poison})"
    )


if __name__ == "__main__":
    main()
