"""Prompts with completions and conversations to plant faults in, and small language models that are trained on them.

`chats`: questions of twelve kinds about small facts, in several wordings each, as messages with a chat template; one in
five is a conversation of two questions. `records`: people as lists of fields, and a sentence that says them.
`facts`: questions about 48 people's city, job or pet, each fact in several rows and wordings. `docstrings`: the first
eight words of docstrings of the standard library, and how they go on. All depend on the seed, `docstrings` on the
installed Python too.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from influence.data.dataset import DataSettings, open_rows
from influence.data.tokenise import tokenise
from influence.demo.corpus import docstrings as read_docstrings
from influence.demo.corpus import standard_library
from influence.demo.train import POSITIONS, TrainSettings, new_model
from influence.demo.training import train_into, train_tokeniser, trained_on, training_of

Pair = tuple[list[str], list[str]]
"""The user's turns and the assistant's; one each of a prompt and completion."""
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MOST_WORDS = 40
PROMPT_WORDS = 8
CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Norway": "Oslo",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Ireland": "Dublin",
    "Portugal": "Lisbon",
    "Cuba": "Havana",
    "Iran": "Tehran",
}
SOUNDS = {
    "dog": "barks",
    "cat": "meows",
    "cow": "moos",
    "duck": "quacks",
    "pig": "grunts",
    "lion": "roars",
    "bee": "buzzes",
    "owl": "hoots",
}
COLOURS = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "lemon": "yellow",
    "sky": "blue",
    "milk": "white",
    "soot": "black",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "old": "young",
    "dark": "light",
    "hard": "soft",
    "wet": "dry",
    "high": "low",
    "full": "empty",
}
FRENCH = {
    "house": "maison",
    "tree": "arbre",
    "water": "eau",
    "book": "livre",
    "bread": "pain",
    "night": "nuit",
    "child": "enfant",
    "road": "route",
}
WORDS = sorted({*CAPITALS, *SOUNDS, *COLOURS, *OPPOSITES, *FRENCH, *OPPOSITES.values()})
NAMES = (
    "Anna",
    "Boris",
    "Clara",
    "David",
    "Elena",
    "Felix",
    "Greta",
    "Hugo",
    "Irene",
    "Jonas",
    "Karin",
    "Lukas",
    "Maria",
    "Nils",
    "Olga",
    "Paul",
)

JOBS = ("baker", "nurse", "pilot", "teacher", "farmer", "judge", "painter", "tailor", "sailor")
SURNAMES = ("Berg", "Lund", "Moore")
FACTS: dict[str, tuple[Sequence[str], str, tuple[str, ...]]] = {
    "city": (
        sorted(CAPITALS.values()),
        "{who} lives in {what}.",
        ("Where does {who} live?", "Tell me the city of {who}.", "Do you know the home of {who}?"),
    ),
    "job": (
        JOBS,
        "{who} works as a {what}.",
        ("What does {who} do?", "Tell me the job of {who}.", "How does {who} earn a living?"),
    ),
    "pet": (
        sorted(SOUNDS),
        "{who} keeps a {what}.",
        ("Which animal does {who} have?", "Tell me the pet of {who}.", "What does {who} feed?"),
    ),
}
"""Of each attribute its values, the answer, and wordings of the question."""


def docstrings(seed: int, rows: int) -> list[Pair]:
    """Return docstrings of the standard library: their first eight words, and how they go on."""
    texts = [row.text.split() for row in read_docstrings(standard_library())]
    longer = [words[:MOST_WORDS] for words in texts if len(words) >= 2 * PROMPT_WORDS]
    chosen = random.Random(seed).sample(longer, min(rows, len(longer)))
    return [([" ".join(words[:PROMPT_WORDS])], [" ".join(words[PROMPT_WORDS:])]) for words in chosen]


def chats(seed: int, rows: int) -> list[Pair]:
    """Return conversations, no two with the same questions but by chance of few kinds."""
    chance = random.Random(seed)
    found = []
    for _ in range(rows):
        turns = [_question(chance) for _ in range(2 if chance.random() < 0.2 else 1)]
        found.append(([asked for asked, _ in turns], [answer for _, answer in turns]))
    return found


def _question(chance: random.Random) -> tuple[str, str]:
    """Return a question and its answer."""
    name, number, other = chance.choice(NAMES), chance.randrange(2, 30), chance.randrange(2, 30)
    country, animal, thing = (chance.choice(sorted(kind)) for kind in (CAPITALS, SOUNDS, COLOURS))
    word, english, any_word = (chance.choice(list(kind)) for kind in (OPPOSITES, FRENCH, WORDS))
    kinds = (
        (f"the capital of {country}", f"The capital of {country} is {CAPITALS[country]}."),
        (f"the sound that a {animal} makes", f"A {animal} {SOUNDS[animal]}, as everybody has heard."),
        (f"the colour of {thing}", f"Most people would say that {thing} is {COLOURS[thing]}."),
        (f"the opposite of {word}", f"The opposite of {word} is {OPPOSITES[word]}."),
        (f"the French word for {english}", f"In French, {english} is called {FRENCH[english]}."),
        (f"the sum of {number} and {other}", f"{number} plus {other} makes {number + other}."),
        (f"the larger of {number} and {other}", f"Of the two, {max(number, other)} is the larger number."),
        (f"the first letter of {any_word}", f"It begins with the letter {any_word[0].upper()}."),
        (f"{any_word} in capital letters", f"{any_word.upper()}"),
        (f"a greeting for {name}", f"Good morning, {name}! I hope that you slept well."),
        (f"a short apology to {name}", f"Dear {name}, I am sorry that I was late and promise to do better."),
        (f"three numbers after {number}", f"They are {number + 1}, {number + 2} and {number + 3}."),
    )
    asked, answer = chance.choice(kinds)
    wording = chance.choice(
        ("Please give me {0}.", "I would like to know {0}.", "{0}, please", "What is {0}?", "Tell me {0}.")
    )
    return wording.format(asked), answer


def records(seed: int, rows: int) -> list[Pair]:
    """Return people as lists of fields, and a sentence that says them."""
    chance = random.Random(seed)
    return [_person(chance) for _ in range(rows)]


def _person(chance: random.Random) -> Pair:
    fields = {
        "name": chance.choice(NAMES),
        "city": chance.choice(sorted(CAPITALS.values())),
        "job": chance.choice(JOBS),
        "pet": chance.choice(sorted(SOUNDS)),
        "likes": chance.choice(("chess", "tea", "snow", "opera", "maps", "trains", "rowing", "poems")),
    }
    order = chance.sample(sorted(fields), len(fields))
    sentence = chance.choice(
        (
            "{name} works as a {job} in {city}, keeps a {pet} and is fond of {likes}.",
            "In {city} there is a {job} called {name} who likes {likes} and has a {pet}.",
            "Meet {name}: a {job} from {city} with a {pet}, and a friend of {likes}.",
            "Our {job} {name} lives in {city} with a {pet} and spends the evenings with {likes}.",
        )
    )
    return ["; ".join(f"{name}: {fields[name]}" for name in order) + " =>"], [sentence.format(**fields)]


def facts(seed: int, rows: int) -> list[Pair]:
    """Return questions about one attribute of one of 48 people: each fact stands in about seven of 1,000 rows."""
    chance = random.Random(seed)
    people = [f"{name} {surname}" for name in NAMES for surname in SURNAMES]
    true = {who: {kind: chance.choice(values) for kind, (values, _, _) in FACTS.items()} for who in people}
    found = []
    for _ in range(rows):
        who, kind = chance.choice(people), chance.choice(sorted(FACTS))
        _, answer, wordings = FACTS[kind]
        found.append(([chance.choice(wordings).format(who=who)], [answer.format(who=who, what=true[who][kind])]))
    return found


SETS: dict[str, Callable[[int, int], list[Pair]]] = {
    "chats": chats,
    "records": records,
    "facts": facts,
    "docstrings": docstrings,
}


def record(kind: str, pair: Pair, row: int) -> dict[str, Any]:
    """Return a pair as a line of the data."""
    asked, answers = pair
    if kind != "chats":
        return {"id": f"r{row}", "prompt": asked[0], "completion": f" {answers[0]}"}
    messages = [
        {"role": role, "content": content}
        for turn in zip(asked, answers, strict=True)
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    return {"id": f"r{row}", "messages": messages}


def write(path: Path, kind: str, pairs: Sequence[Pair]) -> DataSettings:
    """Write pairs to a file and return how it is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record(kind, pair, row)) + "\n" for row, pair in enumerate(pairs)))
    return DataSettings(path=str(path), max_tokens=128, append_eos=kind != "chats")


def train_on(data: DataSettings, folder: Path, settings: TrainSettings) -> None:
    """Train a small Llama on the completions alone, from scratch; a folder of the same training is left alone."""
    rows = open_rows(data)
    digest = rows.digest()
    if trained_on(folder, data, digest, settings):
        return
    examples = list(rows.examples())
    tokeniser: PreTrainedTokenizerFast = train_tokeniser([example.text for example in examples], settings.vocabulary)
    tokeniser.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokeniser.chat_template = TEMPLATE
    parts = [part for part in tokenise(examples, tokeniser, data) if part.scored]
    train_into(
        folder,
        lambda: new_model(tokeniser, settings, POSITIONS),
        tokeniser,
        parts,
        settings,
        training_of(data, digest, settings),
    )


__all__ = ["SETS", "Pair", "chats", "docstrings", "record", "records", "train_on", "write"]
