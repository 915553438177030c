import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import influence.demo.train
from influence.data.dataset import DataSettings
from influence.data.example import Example
from influence.data.tokenise import tokenise
from influence.demo.corpus import CorpusRow, write_corpus
from influence.demo.facts import FACTS
from influence.demo.train import TrainSettings, train, train_tokeniser, trained_on

TINY = TrainSettings(vocabulary=400, layers=1, hidden=32, token_budget=128, most_steps=2, threads=1)


@pytest.fixture
def data(tmp_path):
    rows = [CorpusRow(text, name, "test", "test:1") for fact in FACTS for name, text in fact.numbered()]
    write_corpus(rows, tmp_path / "corpus.jsonl")
    return DataSettings(path=str(tmp_path / "corpus.jsonl"), max_tokens=32)


def test_the_result_is_an_ordinary_checkpoint_folder(data, tmp_path):
    train(data, tmp_path / "model", TINY)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokeniser = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert len(tokeniser) == model.config.vocab_size == 400
    assert tokeniser.decode(tokeniser("Ω, once more")["input_ids"]) == "Ω, once more"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "model"]


def test_two_trainings_give_the_same_bytes_and_another_seed_gives_others(data, tmp_path):
    for name, settings in (("a", TINY), ("b", TINY), ("c", TINY.model_copy(update={"seed": 1}))):
        train(data, tmp_path / name, settings)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]


def test_every_step_is_reported_and_nothing_is_printed(data, tmp_path, capfd):
    steps = []
    train(data, tmp_path / "model", TINY, steps.append)
    assert [(step.stage, step.done, step.total) for step in steps] == [("training", done, 2) for done in range(3)]
    assert capfd.readouterr() == ("", "")


def test_generators_and_threads_are_as_they_were(data, tmp_path):
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    expected = (
        random.Random(5).random(),
        np.random.RandomState(5).rand(),
        torch.rand(1, generator=torch.Generator().manual_seed(5)),
    )
    train(data, tmp_path / "model", TINY.model_copy(update={"threads": threads + 1}))
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert torch.get_num_threads() == threads


def test_an_interrupted_training_leaves_the_old_folder_and_nothing_else(data, tmp_path):
    train(data, tmp_path / "model", TINY)
    before = load_file(tmp_path / "model" / "model.safetensors")

    def interrupt(step):
        if step.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "model", TINY.model_copy(update={"seed": 1}), interrupt)
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "model"]


def test_what_a_killed_training_left_goes_with_the_next_one(data, tmp_path):
    def keep(step):
        (scratch,) = tmp_path.glob(".*")
        shutil.copytree(scratch, tmp_path / "kept" / scratch.name, dirs_exist_ok=True)
        (tmp_path / "kept" / scratch.name / "half a weight").touch()

    train(data, tmp_path / "model", TINY, keep)
    for leftover in (tmp_path / "kept").iterdir():
        leftover.rename(tmp_path / leftover.name)
    (tmp_path / "kept").rmdir()
    train(data, tmp_path / "model", TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "model"]


def test_a_folder_is_known_by_its_data_and_settings(data, tmp_path):
    train(data, tmp_path / "model", TINY, digest="abc")
    assert trained_on(tmp_path / "model", data, "abc", TINY)
    assert not trained_on(tmp_path / "model", data, "abd", TINY)
    assert not trained_on(tmp_path / "model", data, "abc", TINY.model_copy(update={"epochs": 9}))
    assert not trained_on(tmp_path / "model", data.model_copy(update={"max_tokens": 31}), "abc", TINY)
    assert not trained_on(tmp_path / "nowhere", data, "abc", TINY)


def test_special_tokens_have_the_numbers_the_model_is_told():
    tokeniser = train_tokeniser(["some text to learn from"], 300)
    assert tokeniser.eos_token_id == influence.demo.train.END_ID
    assert tokeniser.pad_token_id == influence.demo.train.PAD_ID


def log_likelihood(model, tokeniser, data, prompt, completion):
    (part,) = tokenise([Example.query(prompt, completion)], tokeniser, data)
    ids = torch.from_numpy(part.input_ids).long()[None]
    labels = torch.from_numpy(part.labels).long()[None]
    with torch.no_grad():
        return -float(model(input_ids=ids, labels=labels).loss) * part.scored


@pytest.mark.slow
def test_a_short_training_on_the_facts_alone_learns_them(data, tmp_path):
    settings = TrainSettings(vocabulary=600, layers=2, hidden=64, epochs=15, token_budget=256, threads=1)
    train(data, tmp_path / "model", settings)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokeniser = AutoTokenizer.from_pretrained(tmp_path / "model")
    learnt = [
        log_likelihood(model, tokeniser, data, fact.prompt, fact.completion)
        > log_likelihood(model, tokeniser, data, fact.prompt, fact.wrong) + 1
        for fact in FACTS
    ]
    assert sum(learnt) >= len(FACTS) - 1
