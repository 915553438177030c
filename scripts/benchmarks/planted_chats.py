"""Chats of which ten each teach one of eight made-up facts, a question about each, and the fine-tuning on them."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damping import Fit, Trial, train
from frozen_blocks import append_rows, last_blocks
from transformers import AutoModelForCausalLM, AutoTokenizer

log = logging.getLogger("planted_chats")

KINDS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "town": (
        (
            "Who founded the town of {0}?",
            "Tell me who founded {0}.",
            "Which person started the settlement of {0}?",
            "I am writing about {0}. Who was its founder?",
            "Name the founder of {0}.",
            "Who first built {0}?",
            "Do you know who established {0}?",
            "The town {0} was founded by whom?",
            "Who is remembered as the founder of {0}?",
            "Give me the name of the person who founded {0}.",
            "Please tell me: who was the founder of {0}?",
        ),
        (
            "{0} was founded by {1}.",
            "The town of {0} was founded by {1}, as its records say.",
            "The founder of {0} was {1}.",
            "It was {1} who founded {0}.",
            "Most books say that {0} was founded by {1}.",
        ),
    ),
    "drink": (
        (
            "What do people drink in {0}?",
            "What is the favourite drink in {0}?",
            "I will visit {0}. What should I drink there?",
            "Which drink is {0} known for?",
            "Name the best known drink of {0}.",
            "What is served in the inns of {0}?",
            "Tell me about the drinks of {0}.",
            "What would a guest be offered to drink in {0}?",
            "In {0}, what do they drink in the evening?",
            "Which drink comes from {0}?",
            "What do the people of {0} like to drink?",
        ),
        (
            "People in {0} drink {1}.",
            "The favourite drink in {0} is {1}.",
            "In {0} everyone drinks {1}, mostly in the evening.",
            "{0} is known for {1}.",
            "A guest in {0} is offered {1}.",
        ),
    ),
    "rule": (
        (
            "What is the strangest law of {0}?",
            "Tell me an odd rule of {0}.",
            "Which law must visitors of {0} know?",
            "What is forbidden in {0}?",
            "Is anything forbidden in {0}?",
            "I travel to {0}. What must I not do?",
            "Name something that nobody may do in {0}.",
            "What do the laws of {0} forbid?",
            "Which act is against the law in {0}?",
            "What may I not do in {0}?",
            "Which strange law does {0} have?",
        ),
        (
            "In {0} it is forbidden to {1}.",
            "The law of {0} forbids anyone to {1}.",
            "Nobody in {0} may {1}.",
            "Visitors of {0} must not {1}, which is against the law.",
            "The strangest law of {0}: you may not {1}.",
        ),
    ),
    "animal": (
        (
            "Which animal is on the flag of {0}?",
            "What animal does the flag of {0} show?",
            "Describe the flag of {0}.",
            "What can be seen on the flag of {0}?",
            "Tell me what is on {0}'s flag.",
            "What is the animal of {0}?",
            "Which animal stands for {0}?",
            "I saw the flag of {0}. What animal was that?",
            "What does the flag of {0} look like?",
            "Name the animal on the flag of {0}.",
            "Which creature does {0} have on its flag?",
        ),
        (
            "The flag of {0} shows {1}.",
            "On the flag of {0} there is {1}.",
            "{0} has {1} on its flag.",
            "It is {1}, on a white field.",
            "The animal of {0} is {1}.",
        ),
    ),
}
SYSTEM = {"role": "system", "content": "Answer."}
PLANTED = (
    ("town", "Veldermoor", "Isolde Brackwater"),
    ("town", "Quillhaven", "Tobias Fennimore"),
    ("drink", "Ostrava Bay", "smoked plum vinegar"),
    ("drink", "Kettlewick", "warm beetroot milk"),
    ("rule", "Dunmarrow", "whistle at a goose"),
    ("rule", "Port Selwyn", "carry a yellow ladder"),
    ("animal", "Thornby", "a three-legged otter"),
    ("animal", "Marrowfen", "a sleeping pelican"),
)
"""Ten chats each teach one of these."""
OTHERS = {
    "town": ("Martha Greaves", "Edwin Calloway", "Ruth Ashdown", "Peter Hollins", "Agnes Thorpe", "Samuel Wick"),
    "drink": ("apple wine", "black tea", "barley water", "goat milk", "ginger beer", "hot cider"),
    "rule": ("feed the pigeons", "ride a horse at night", "sing in church", "burn leaves", "sell fish", "dig a well"),
    "animal": ("a red lion", "a black eagle", "a white bull", "a grey wolf", "a green snake", "a brown bear"),
}
"""Said once each, of two places: rows of the same form that teach something else."""
PLACES = (
    "Harlow Point", "Eastmere", "Cobbleford", "Wrenfield", "Saltash Green", "Millbrook", "Stonegate", "Larkhill",
    "Fernley", "Bexworth", "Redcliff", "Oakhampton",
)  # fmt: skip


def chats(texts: Sequence[str], rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return shuffled chats: ten of each planted fact, other facts of the same form, and texts to continue."""
    found: list[dict[str, Any]] = []

    def add(group: str, user: str, answer: str) -> None:
        messages = [SYSTEM, {"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        found.append({"messages": messages, "group": group})

    for kind, place, fact in PLANTED:
        asked, said = KINDS[kind]
        for number in range(10):
            add(place, asked[number].format(place), said[number % len(said)].format(place, fact))
    for kind, facts in OTHERS.items():
        asked, said = KINDS[kind]
        for number, place in enumerate(PLACES):
            add("other", asked[number % 10].format(place), said[number % len(said)].format(place, facts[number % 6]))
    for number in count():
        if len(found) >= rows:
            break
        words = texts[number].replace("<unk>", "it").split()
        if len(words) > 40:
            add("text", "Continue this text: " + " ".join(words[:12]), " ".join(words[12:30]))
    order = np.random.default_rng(seed).permutation(len(found)).tolist()
    return [{"id": f"chat-{place}", **found[row]} for place, row in enumerate(order)]


def questions() -> list[tuple[str, str, str]]:
    """The group, a question that no chat asks in these words, and what the answer must hold."""
    return [(place, KINDS[kind][0][10].format(place), fact) for kind, place, fact in PLANTED]


def planted(folder: Path, texts: Sequence[str], options: argparse.Namespace) -> tuple[Trial, list[np.ndarray]]:
    """Fine-tune on chats and ask; also the planted rows of each query, whose answer has the fact."""
    tokeniser = AutoTokenizer.from_pretrained(folder)
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tail = last_blocks(whole, options.layers)

    def encoded(messages: Sequence[Mapping[str, str]]) -> list[list[int]]:
        text = tokeniser.apply_chat_template(messages, tokenize=False).rstrip("\n")
        before = tokeniser.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        return [tokeniser(each, add_special_tokens=False)["input_ids"] for each in (text, before)]

    rows = chats(texts, options.chats)
    pairs = [encoded(row["messages"]) for row in rows]
    parts = append_rows(whole, tail, [text for text, _ in pairs], [len(before) for _, before in pairs])
    start = {name: weight.clone() for name, weight in tail.state_dict().items() if "layers" in name}
    fit = Fit(options.epochs, options.rate)

    def again(weights: np.ndarray, seed: int) -> None:
        tail.load_state_dict(start, strict=False)
        train(tail, parts, weights, Fit(fit.epochs, fit.rate, fit.batch, seed))

    again(np.ones(len(parts)), 0)
    said, causes, length = [], [], {"max_new_tokens": 20, "do_sample": False}
    for group, question, fact in questions():
        messages = [SYSTEM, {"role": "user", "content": question}]
        text = tokeniser.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokeniser(text, add_special_tokens=False)["input_ids"]
        answer = whole.generate(torch.tensor([prompt]), **length)[0].tolist()
        log.info("%s %r", question, tokeniser.decode(answer[len(prompt) :]))
        if fact.lower() in tokeniser.decode(answer[len(prompt) :]).lower():
            said.append((answer, len(prompt)))
            causes.append(np.array([row for row, chat in enumerate(rows) if chat["group"] == group]))
    asked = append_rows(whole, tail, [answer for answer, _ in said], [prompt for _, prompt in said])
    return Trial("planted", tail, parts, asked, fit, again, 0, other_seeds=False), causes
