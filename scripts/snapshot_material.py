"""The input of `scripts/snapshot.py`: random models of fixed seeds, their tokeniser, rows, queries and run files.

Nothing is downloaded, and nothing depends on the checkout under test: two snapshots have the same input.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

SENTENCES = (
    "The lighthouse at Velmora is painted green because its keeper was colour-blind.",
    "A list keeps its items in order; a set keeps each of them once and in none.",
    "Return the number of bytes read, or zero at the end of the file.",
    "The river was named after a cartographer who never saw it.",
    "Raised when a mapping key is not found in the set of existing keys.",
    "In winter the harbour freezes and the ferries wait for the ice to break.",
    "Sort the list in place, comparing the items by the given key.",
    "The old clock in the tower strikes thirteen, once a year, on the mayor's birthday.",
    "Bread is baked before dawn and sold while it is warm.",
    "A tuple is a sequence that can't be changed after it was made.",
)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY, CLASSES, ROWS = 300, 3, 60
SECOND_MOMENTS = "exp_avg_sq."

QUERIES: dict[str, list[dict[str, Any]]] = {
    "texts": [
        {"id": "river", "prompt": "The river was named after", "completion": " a cartographer who never saw it."},
        {
            "id": "harbour",
            "prompt": "In winter",
            "completion": " the harbour freezes",
            "contrast": " the bread is warm",
        },
        {"id": "whole", "text": "Return the number of items, or zero."},
    ],
    "classes": [
        {"id": "right", "text": "A list keeps its items in order.", "label": 1},
        {"id": "wrong", "text": "The ferries wait for the ice to break.", "label": 0},
    ],
    "pairs": [{"id": "clock", "prompt": "What strikes thirteen?", "completion": "The old clock in the tower."}],
    "chats": [
        {"id": "turns", "prompt": "Who named the river?", "completion": "A cartographer."},
        {
            "id": "chat",
            "messages": [{"role": "user", "content": "Is it cold?"}, {"role": "assistant", "content": "In winter."}],
        },
    ],
}

# Presets by name, with parts that fit a tiny model.
SIDES = {"p": 4, "q": 4}
RECIPES: dict[str, dict[str, Any]] = {
    "graddot": {"projection": SIDES},
    "gradcos": {"projection": SIDES},
    "tracin": {"projection": SIDES, "checkpoints": [{"path": "causal"}, {"path": "later"}]},
    "less": {"projection": SIDES, "gradient": {"state": "causal/moments.safetensors"}},
    "logra": {"projection": SIDES},
    "trackstar": {"projection": SIDES},
    "whitened": {"projection": SIDES},
    "trak": {"projection": {"dims": 16, "block": 8}, "curvature": {"damping": {"value": 0.1}}},
    "kfac": {},
    "ekfac": {},
    "bm25": {},
    "repsim": {},
}
BASELINES = ("bm25", "repsim")
CODECS: dict[str, dict[str, Any]] = {
    "float16": {"codec": "float16"},
    "int8": {"codec": "int8"},
    "int4": {"codec": "int4"},
    "bits": {"codec": "bits"},
    "factors": {"codec": "factors", "rank": 2},
}


def write_material(folder: Path) -> None:
    """Write models, rows and queries into an empty folder."""
    tokeniser = _tokeniser()
    for name, seed in (("causal", 1), ("later", 2), ("classifier", 3), ("gpt2", 4)):
        _write_model(folder / name, seed, tokeniser)
    for name, rows in _data().items():
        write_lines(folder / f"{name}.jsonl", rows)
    for name, queries in QUERIES.items():
        write_lines(folder / f"{name}-queries.jsonl", queries)
    # Rows of an evaluation set have the columns of the training data.
    write_lines(folder / "texts-eval.jsonl", [{"text": text} for text in SENTENCES[:4]])
    labelled = ({"text": text, "label": number % CLASSES} for number, text in enumerate(SENTENCES[:6]))
    write_lines(folder / "classes-eval.jsonl", list(labelled))


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_run_file(
    folder: Path, name: str, data: str = "texts", recipe: str = "logra", **changed: Mapping[str, Any]
) -> Path:
    """Write the run file of one build beside the material; its paths are relative to it.

    Args:
        folder: Where the material is.
        name: The file's name.
        data: Which rows: `texts`, `classes`, `pairs` or `chats`; `classes` are a classifier's.
        recipe: One of `RECIPES`.
        **changed: Settings that differ, by section.
    """
    classifier = data == "classes"
    model = {"path": "classifier", "kind": "sequence_classification"} if classifier else {"path": "causal"}
    sections: dict[str, dict[str, Any]] = {
        "model": {**model, "dtype": "float32"},
        "data": {"path": f"{data}.jsonl", "max_tokens": 48},
        "recipe": {"name": recipe, **RECIPES[recipe]},
        "store": {"rows_per_shard": 16, "codec": "float16"},
        "index": {"kind": "flat"},
        "cluster": {"token_budget": 512, "workers": 0, "threads_per_worker": 1, "device": "cpu"},
    }
    for section, settings in changed.items():
        sections[section] = {**sections.get(section, {}), **settings}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def _data() -> dict[str, list[dict[str, Any]]]:
    """Return rows of every shape: texts, labelled texts, prompts with completions, chats.

    Some are copies of others, one label in seven is wrong, one text is empty.
    """
    texts, classes = [], []
    for row in range(ROWS):
        sentence, variant = SENTENCES[row % len(SENTENCES)], row // len(SENTENCES)
        words = sentence.split()
        text = " ".join(words[: len(words) - variant % 5])
        about = {"id": f"row-{row}", "source": f"shelf-{row % 3}", "uri": f"shelf-{row % 3}.txt:{row + 1}"}
        texts.append({"text": "" if row == 37 else text, **about})
        right = (row % len(SENTENCES)) % CLASSES
        classes.append({"text": text, "label": (right + 1) % CLASSES if row % 7 == 3 else right, **about})
    half = [(sentence[:20], sentence[20:]) for sentence in SENTENCES]
    pairs = [
        {"prompt": half[row % 10][0], "completion": half[(row + (row % 8 == 5)) % 10][1], "source": f"shelf-{row % 2}"}
        for row in range(24)
    ]
    chats = [
        {"messages": [{"role": "user", "content": start}, {"role": "assistant", "content": end.strip()}]}
        for start, end in half
    ]
    return {"texts": texts, "classes": classes, "pairs": pairs, "chats": chats}


def _tokeniser() -> Any:
    """Return a byte-level BPE tokeniser of at most 300 tokens with a chat template."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE
    return fast


def _write_model(folder: Path, seed: int, tokeniser: Any) -> None:
    """Save a random model in float32 with its tokeniser and random second moments of its weights."""
    import torch
    import transformers
    from safetensors.torch import save_file

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if folder.name == "classifier":
            settings: dict[str, Any] = {**sizes, "num_labels": CLASSES}
            model: Any = transformers.BertForSequenceClassification(transformers.BertConfig(**settings))
        elif folder.name == "gpt2":
            tokens = {key: sizes[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
            config = transformers.GPT2Config(**tokens, n_embd=24, n_layer=2, n_head=2, n_positions=128)
            model = transformers.GPT2LMHeadModel(config)
        else:
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=1))
        moments = {}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Biases and norms are not at their zeros and ones.
                parameter.add_(0.1 * torch.randn_like(parameter))
                moments[SECOND_MOMENTS + name] = torch.rand_like(parameter) + 0.1
    model.to(torch.float32).eval().save_pretrained(folder)
    tokeniser.save_pretrained(folder)
    save_file(moments, folder / "moments.safetensors")
