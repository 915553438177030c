"""The doctor finds what is wrong and passes what isn't: every family, and every identity broken on purpose."""

import json

import pytest
from safetensors.torch import load_file, save_file

import influence.doctor.precision as precision
import influence.gradients.capture as capturing
import influence.task as tasks
from influence.config import parse_config
from influence.doctor import examine
from influence.errors import DataError


@pytest.fixture
def configured(model_folder, corpus_file):
    def make(family="llama", *overrides, data=corpus_file, folder=None):
        kind = "sequence_classification" if family == "bert" else "causal_lm"
        settings = {
            "model": {"path": str(folder or model_folder(family)), "kind": kind, "dtype": "float32"},
            "data": {"path": str(data), "max_tokens": 64},
            "recipe": {"name": "graddot", "projection": {"p": 4, "q": 4}},
            "cluster": {"token_budget": 256, "device": "cpu"},
        }
        return parse_config(settings, overrides)

    return make


@pytest.fixture
def jsonl(tmp_path):
    """`jsonl(records)`: a file of them."""

    def write(records):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


def verdicts(config):
    return {check.name: check.verdict for check in examine(config)}


IDENTITIES = ("padding", "batches", "ordinary backward")


@pytest.mark.parametrize("family", ["gpt2", "gptneox", "llama", "bert", "lora"])
def test_every_family_passes(configured, family):
    checks = list(examine(configured(family)))
    assert [check.name for check in checks if check.verdict == "fail"] == []
    measured = {check.name: check for check in checks if check.name in IDENTITIES or check.name.startswith("sum over")}
    assert len(measured) == 4
    for check in measured.values():
        if check.verdict == "note":
            assert (family, check.name) == ("bert", "sum over tokens")
        else:
            assert check.value is not None
            assert check.limit is not None
            assert check.value < check.limit / 10


@pytest.mark.parametrize(
    "settings",
    [
        ("data.long_rows=split", "data.max_tokens=16"),
        ("task.reduction=mean",),
        ("model.layers.bias=true",),
        ("recipe.projection.kind=none",),
        ("cluster.token_budget=2",),
        ("model.gradient_checkpointing=true",),
        ("recipe={name: trak, projection: {dims: 6, block: 3}}",),
    ],
)
def test_every_setting_of_the_capture_passes(configured, settings):
    assert "fail" not in verdicts(configured("gpt2", *settings)).values()


def test_a_tracked_embedding_passes_and_one_that_is_tied_fails_with_the_other_named(configured):
    embedding = "model.layers.include=['*', '*embed_tokens']"
    assert "fail" not in verdicts(configured("llama", embedding, "recipe.projection.kind=none")).values()
    failed = [check for check in examine(configured("qwen2", embedding)) if check.verdict == "fail"]
    assert [check.name for check in failed] == ["ordinary backward"]
    assert "model.embed_tokens shares its weight with lm_head" in failed[0].remedy
    assert "model.layers.exclude: ['model.embed_tokens']" in failed[0].remedy


def test_the_share_of_the_body_that_is_tracked_is_told_and_what_is_missing(configured):
    def coverage(*settings):
        return next(check for check in examine(configured("llama", *settings)) if check.name == "coverage")

    whole = coverage()
    assert whole.verdict == "pass"
    assert "of the body" in whole.found
    assert whole.value > 0.95
    # What a glob leaves out is the user's choice.
    assert coverage("model.layers.exclude=['*.mlp.*']").verdict == "pass"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_dtype_is_held_against_float32(configured, dtype):
    checks = {check.name: check for check in examine(configured("gptneox", f"model.dtype={dtype}"))}
    check = checks[f"{dtype} against float32"]
    assert check.verdict == "pass"
    assert 0.99 <= check.value < 1
    assert checks["padding"].limit > 1e-3


def test_scores_that_do_not_follow_float32_fail(configured, monkeypatch):
    monkeypatch.setattr(precision, "_correlation", lambda ours, theirs: 0.97)
    check = list(examine(configured("llama", "model.dtype=bfloat16")))[-1]
    assert (check.verdict, check.value, check.limit) == ("fail", 0.97, 0.99)
    assert "model.dtype to float32" in check.remedy


def test_a_model_that_reads_padding_fails(configured, monkeypatch):
    def blind(self, model, batch):
        logits = model(input_ids=batch.input_ids).logits
        return tasks.nn.functional.cross_entropy(logits, batch.label, reduction="none")

    monkeypatch.setattr(tasks.SequenceClassification, "example_loss", blind)
    found = verdicts(configured("bert"))
    assert (found["padding"], found["batches"], found["ordinary backward"]) == ("fail", "fail", "pass")


def broken(monkeypatch, change):
    loss = tasks.CausalLM.example_loss
    monkeypatch.setattr(
        tasks.CausalLM, "example_loss", lambda self, model, batch: change(loss(self, model, batch), batch)
    )


def test_a_loss_that_depends_on_the_batch_fails(configured, monkeypatch):
    broken(monkeypatch, lambda loss, batch: loss / len(loss))
    found = verdicts(configured())
    assert (found["padding"], found["batches"], found["ordinary backward"]) == ("pass", "fail", "pass")


def test_a_loss_that_is_no_sum_over_tokens_fails(configured, monkeypatch):
    broken(monkeypatch, lambda loss, batch: loss**2)
    found = verdicts(configured())
    assert [name for name, verdict in found.items() if verdict == "fail"] == ["sum over 16 tokens", "gradient step"]


def test_a_capture_that_is_off_by_a_factor_fails_against_an_ordinary_backward_pass(configured, monkeypatch):
    product = capturing.sum_over_positions
    monkeypatch.setattr(capturing, "sum_over_positions", lambda *sides: 2 * product(*sides))
    found = verdicts(configured())
    assert [name for name, verdict in found.items() if verdict == "fail"] == ["ordinary backward", "gradient step"]


def test_a_loss_that_is_not_finite_fails_with_the_rows_named(configured, monkeypatch):
    broken(monkeypatch, lambda loss, batch: loss * float("nan"))
    check = next(check for check in examine(configured()) if check.name == "gradients")
    assert check.verdict == "fail"
    assert "10 of 10 rows" in check.found
    assert "id 'row-0'" in check.found


def test_layers_without_a_gradient_are_noted_by_name(configured, model_folder, tmp_path):
    import shutil

    folder = shutil.copytree(model_folder("lora"), tmp_path / "lora")
    weights = load_file(folder / "adapter_model.safetensors")
    for name, weight in weights.items():
        if "lora_B" in name:
            weight.zero_()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    check = next(check for check in examine(configured("lora", folder=folder)) if check.name == "layers")
    assert check.verdict == "note"
    assert "6 of 12 tracked layers" in check.found
    assert "lora_A" in check.found


def test_a_disk_without_room_fails(configured, monkeypatch):
    import influence.doctor.surroundings as surroundings

    monkeypatch.setattr(surroundings.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    assert verdicts(configured())["free disk"] == "fail"


def test_rows_that_have_nothing_to_score_are_bad_input(configured, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("", "a", "")))
    with pytest.raises(DataError, match=r"None of 3 rows .* has a scored token"):
        list(examine(configured(data=path)))


def test_rows_with_something_to_score_are_found_among_others(configured, tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = ["", "a", *["A list keeps its items."] * 3] * 4
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    check = next(check for check in examine(configured(data=path)) if check.name == "gradients")
    assert check.verdict == "pass"
    assert "10 rows" in check.found


def found(config, name, **more):
    return next(check for check in examine(config, **more) if check.name == name)


def test_a_row_is_shown_as_the_model_sees_it_with_what_is_scored_in_brackets(configured, jsonl):
    user, says = {"role": "user", "content": "Who\u001b[31m keeps it?"}, {"role": "assistant", "content": "The keeper."}
    data = jsonl([{"messages": [user, says]}, {"messages": [says, user, says]}])
    first = found(configured(data=data), "row as scored")
    assert first.shown == "<|user|>Who\x1b[31m keeps it?<|end|><|assistant|>⟦The keeper.<|end|>⟧"
    assert "Row 0" in first.found
    second = found(configured(data=data), "row as scored", row=1)
    assert second.shown.startswith("<|assistant|>⟦The keeper.<|end|>⟧<|user|>Who")
    assert second.value == 2 * first.value
    with pytest.raises(DataError, match="no row 2"):
        found(configured(data=data), "row as scored", row=2)


def test_a_text_and_a_classified_text_are_shown_too(configured):
    shown = found(configured(), "row as scored").shown
    assert shown == "The⟦ lighthouse at Velmora is painted green because its keeper was colour-blind.⟧"
    classified = found(configured("bert"), "row as scored")
    assert "class 0 read from" in classified.found
    assert "⟦" not in classified.shown


def test_rows_that_truncation_cuts_are_counted_with_the_length_that_keeps_them(configured, jsonl):
    rows = [
        {"prompt": "the list keeps " * 20, "completion": "its items"},
        {"prompt": "the", "completion": " list " * 50},
    ]
    check = found(
        configured("llama", "data.max_tokens=20", data=jsonl([*rows, {"prompt": "a", "completion": " b c"}])), "length"
    )
    assert check.verdict == "note"
    assert "2 lose scored tokens, 1 all of them" in check.found
    assert "cuts off every scored token of 1 of 3 rows" in check.remedy
    assert found(configured(), "length").verdict == "pass"


@pytest.mark.parametrize(
    ("row", "padded"),
    [
        ({"input_ids": [5, 6, 7, 1, 1]}, True),
        ({"input_ids": [1, 1, 5, 6, 7]}, True),
        ({"input_ids": [5, 6, 7, 1]}, False),
        ({"input_ids": [5, 6, 7, 1, 1], "attention_mask": [1, 1, 1, 0, 0]}, False),
        ({"input_ids": [5, 6, 7, 1, 1], "labels": [-100, 6, 7, -100, -100]}, False),
    ],
)
def test_padding_that_no_mask_clears_is_noted(configured, jsonl, row, padded):
    check = found(configured(data=jsonl([row, {"input_ids": [5, 6, 7]}])), "padding in the rows")
    assert check.verdict == ("note" if padded else "pass")
    assert check.value == padded
