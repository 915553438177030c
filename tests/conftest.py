"""Tiny random models, their folders, one tokeniser and a small corpus: what every room's tests stand on.

Nothing is downloaded. Models are float64 unless asked otherwise, so that a fast path can be held to its slow twin to
1e-9; every call of `tiny_model` builds a fresh one from the same seed, so that no test can disturb another.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Read by numpy when it is imported, here and in every process that a test starts; see `set_num_threads` below.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import datasets
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = (
    "The lighthouse at Velmora is painted green because its keeper was colour-blind.",
    "A list keeps its items in order; a set keeps each of them once and in none.",
    "Return the number of bytes read, or zero at the end of the file.",
    "The river was named after a cartographer who never saw it.",
    "Raised when a mapping key is not found in the set of existing keys.",
    "In winter the harbour freezes and the ferries wait for the ice to break.",
    "Sort the list in place, comparing the items by the given key.",
    "The old clock in the tower strikes thirteen, once a year, on the mayor's birthday.",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FAMILIES = ("gpt2", "gptneox", "llama", "qwen2", "qwen3", "bert", "lora")
VOCABULARY = 300

# Threads that wait for one another cost these models more than they save, most of all on a machine with other work.
torch.set_num_threads(1)

LONGEST = ("test_data_quality_page.py", "test_interrupted.py")
"""Files that take half a minute and more."""

TinyModel = Callable[..., Any]
ModelFolder = Callable[[str], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, each in a process of its own, so that nobody waits for them at the end."""
    first, second = ([item for item in items if item.path.name == name] for name in LONGEST)
    others = [item for item in items if item.path.name not in LONGEST]
    # Of several processes, each begins with its share of the list.
    middle = len(items) // 2
    items[:] = [*first, *others[: middle - len(first)], *second, *others[middle - len(first) :]]


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that stands in for the user's cache of `datasets`, here and in every subprocess."""
    folder = tmp_path_factory.mktemp("datasets-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Runs that tests build are signed with a secret of the tests'.
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
        yield folder


@pytest.fixture(autouse=True, scope="session")
def hearing_ctrl_c() -> None:
    """Processes that tests start must hear Ctrl-C, also where the suite itself runs in the background, deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokeniser of at most 300 tokens, with an end-of-text and a padding token and a chat template."""
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
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """`tiny_model(family, dtype=torch.float64)`: a fresh random model in eval mode, the same weights at every call.

    Families: gpt2, gptneox, llama, qwen2, qwen3, bert (a classifier of three labels), lora (Llama with rank-4
    adapters). Every parameter is random: biases, norms and the adapters' B are not at their zeros and ones.
    """

    def build(family: str, dtype: torch.dtype = torch.float64) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = _architecture(family)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model.to(dtype).eval()

    return build


@pytest.fixture(scope="session")
def model_folder(
    tiny_model: TinyModel, tokenizer: transformers.PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> ModelFolder:
    """`model_folder(family)`: that model in float32 safetensors beside its tokeniser; shared, so copy before changing "
    "it."""

    @cache
    def save(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        model = tiny_model(family, torch.float32)
        if family == "lora":
            base = tmp_path_factory.mktemp("lora-base")
            model.peft_config["default"].base_model_name_or_path = str(base)
            model.save_pretrained(folder, save_embedding_layers=False)
            model.unload().save_pretrained(base)
        else:
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short rows of jsonl with text, id, source, uri and label (0, 1 or 2)."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for row in range(40):
            sentence, variant = SENTENCES[row % len(SENTENCES)], row // len(SENTENCES)
            words = sentence.split()
            record = {
                "text": " ".join(words[: len(words) - variant]),
                "id": f"row-{row}",
                "source": f"shelf-{row % 3}",
                "uri": f"shelf-{row % 3}.txt:{row + 1}",
                "label": row % 3,
            }
            out.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(scope="session")
def ragged_batch(tokenizer: transformers.PreTrainedTokenizerFast) -> Any:
    """A `Batch` of four texts of different lengths, right padded, all but the first token scored, labels 0, 1, 2, 0."""
    from influence.data.batch import Batch

    texts = (SENTENCES[2], "A set.", SENTENCES[3][:30], "The river was named")
    encoded = tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
    labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
    labels[:, 0] = -100
    return Batch(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        labels=labels,
        label=torch.tensor([0, 1, 2, 0]),
        positions=(0, 1, 2, 3),
        tokens=int(encoded["attention_mask"].sum()),
    )


def _architecture(family: str) -> Any:
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
    }
    grouped = {**tokens, **sizes, "num_key_value_heads": 1}
    if family == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**tokens, n_embd=24, n_layer=2, n_head=2, n_positions=512, n_inner=32)
        )
    if family == "gptneox":
        return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**tokens, **sizes))
    if family == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**grouped))
    if family == "qwen2":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**grouped, tie_word_embeddings=True))
    if family == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**grouped, head_dim=12))
    if family == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**tokens, **sizes, num_labels=3))
    if family == "lora":
        import peft

        adapters = peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"
        )
        return peft.get_peft_model(_architecture("llama"), adapters)
    raise ValueError(f"{family!r} is not one of {', '.join(FAMILIES)}.")
