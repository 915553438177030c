"""A finished run's `config.yaml` decides its answers, so a change in it is refused by name, or decides nothing."""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

import influence.api as runs
from influence.artifacts.digest import seal
from influence.config import parse_config
from influence.errors import ConfigError, FingerprintMismatch, Incomplete, InfluenceError, StoreError
from influence.stages.configuration import CONFIG, open_configuration
from influence.stages.record import CHANGEABLE, changeable, check_settings
from influence.stages.status import status
from influence.store.manifest import MANIFEST, Manifest

QUERY: dict[str, Any] = {"prompt": "The river was named after", "completion": " a cartographer.", "k": 3}


@pytest.fixture
def copy(finished_copy) -> Path:
    """A copy of the run, to be changed."""
    return finished_copy


@pytest.fixture
def built(finished) -> Path:
    """A finished run, not to be changed."""
    return finished


def written(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / CONFIG).read_text())


def leaves(found: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The steps to every setting of a configuration."""
    if isinstance(found, dict) and found:
        return [leaf for key, below in found.items() for leaf in leaves(below, (*above, key))]
    return [above]


def other(value: Any) -> Any:
    """A value beside a setting's own."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1 if value >= 1 else value * 10 or 1
        case str():
            return f"{value}x"
        case list():
            return [*value, "x"]
        case _:
            return 7


def outcome(found: dict[str, Any], manifest: Manifest) -> tuple[str, str]:
    """What becomes of a configuration that was parsed, and the message; the tests below go by way of the file."""
    try:
        check_settings(parse_config(found), manifest, Path("runs/x/config.yaml"))
    except FingerprintMismatch as error:
        return "refused", str(error)
    except ConfigError as error:
        return "no value", str(error)
    return "allowed", ""


def change(run: Path, setting: str, value: Any) -> None:
    """Write another value into a run's configuration."""
    found = section = written(run)
    *above, last = setting.split(".")
    for step in above:
        section = section[step]
    section[last] = value
    (run / CONFIG).write_text(yaml.safe_dump(found, sort_keys=False))


def test_a_change_of_any_setting_is_refused_by_name_or_is_one_that_may_be_changed(copy):
    manifest, untouched, seen = Manifest.load(copy), written(copy), {"refused": 0, "allowed": 0, "no value": 0}
    for steps in leaves(untouched):
        found, setting = deepcopy(untouched), ".".join(steps)
        section = found
        for step in steps[:-1]:
            section = section[step]
        section[steps[-1]] = other(section[steps[-1]])
        kind, told = outcome(found, manifest)
        assert kind != "refused" or f"{setting} is" in told, setting
        assert kind != "allowed" or changeable(setting), setting
        seen[kind] += 1
    assert min(seen.values()) > 5, seen


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("recipe.projection.seed", 1),
        ("recipe.curvature.damping.value", 0.11),
        ("recipe.exact.kind", "ekfac"),
        ("task.reduction", "mean"),
        ("model.dtype", "bfloat16"),
        ("model.layers.bias", True),
        ("data.columns.text", "source"),
        ("index.kind", "exact"),
    ],
)
def test_a_setting_that_decides_answers_is_named_with_both_values_and_what_to_do(setting, value, copy):
    change(copy, setting, value)
    with pytest.raises(FingerprintMismatch) as told:
        runs.open(copy)
    assert f"{setting} is {value!r}, and the run was built with " in str(told.value)
    assert "Put the old value back" in str(told.value)
    assert "--set" in str(told.value)
    with pytest.raises(FingerprintMismatch):
        status(copy)


def test_answers_stay_to_the_bit_under_every_change_that_a_run_takes(built, copy, model_folder, tmp_path):
    with runs.open(built) as run:
        before = run.query(**QUERY).promoting
    moved = shutil.copytree(model_folder("llama"), tmp_path / "moved")
    for setting, value in {
        "cluster.workers": 3,
        "cluster.job.queue": "gpu",
        "cluster.token_budget": 512,
        "model.gradient_checkpointing": True,
        "model.path": str(moved),
        "model.tokeniser": str(moved),
    }.items():
        change(copy, setting, value)
    with runs.open(copy) as run:
        assert run.query(**QUERY).promoting == before


def test_a_line_that_is_taken_out_is_refused_where_its_default_is_another(copy):
    text = (copy / CONFIG).read_text()
    (copy / CONFIG).write_text("".join(line for line in text.splitlines(True) if "max_tokens: 64" not in line))
    with pytest.raises(FingerprintMismatch, match=r"data\.max_tokens is 512, and the run was built with 64"):
        runs.open(copy)


def test_the_same_build_with_another_setting_records_it_and_keeps_the_rows(built, rebuild, copy):
    before = (copy / "rows" / "shard-00000.json").read_bytes()
    with rebuild(copy, "recipe.curvature.damping.value=0.5") as run:
        assert run.recipe.curvature.damping.value == 0.5
    assert (copy / "rows" / "shard-00000.json").read_bytes() == before
    with runs.open(copy) as run, runs.open(built) as old:
        assert run.query(**QUERY).promoting[0].score != old.query(**QUERY).promoting[0].score


def test_a_damaged_configuration_names_the_line_and_the_same_build_mends_it(rebuild, copy):
    text = (copy / CONFIG).read_text()
    (copy / CONFIG).write_text(text.replace("reduction: sum", "reductiom: sum"))
    with pytest.raises(ConfigError, match=r"config\.yaml:\d+: unknown key task\.reductiom.*\n.*run the same build"):
        runs.open(copy)
    (copy / CONFIG).write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(ConfigError, match="UTF-8"):
        runs.open(copy)
    rebuild(copy).close()
    assert (copy / CONFIG).read_text() == text


def test_a_call_may_say_where_it_computes_and_not_what(built):
    with runs.open(built) as run, pytest.raises(ConfigError, match=r"recipe\.curvature\.damping\.value decides what"):
        run.self_influence_to(built.parent / "self.parquet", overrides=["recipe.curvature.damping.value=1"])


def test_a_run_of_an_earlier_release_opens_and_its_fingerprint_still_protects_its_rows(copy):
    document = Manifest.load(copy).model_dump(mode="json")
    del document["settings"]
    (copy / MANIFEST).write_bytes(seal(document))
    runs.open(copy).close()
    change(copy, "recipe.projection.seed", 1)
    with pytest.raises(FingerprintMismatch, match=r"recipe\.projection\.seed is 1, and the run was built with 0"):
        runs.open(copy)


def test_a_manifest_that_was_written_by_hand_is_refused(copy):
    document = Manifest.load(copy).model_dump(mode="json")
    document["fingerprint_parts"]["task.reduction"] = "mean"
    (copy / MANIFEST).write_bytes(seal(document))
    with pytest.raises(StoreError, match="written by hand"):
        runs.open(copy)


def test_no_message_about_a_manifest_advises_to_delete_it(copy):
    path = copy / MANIFEST
    content = path.read_bytes()
    for spoil in (lambda: path.write_bytes(content[:-9]), path.unlink, path.mkdir):
        spoil()
        with pytest.raises(InfluenceError) as told:
            runs.open(copy)
        assert str(path.parent) in str(told.value)
        assert "delete" not in str(told.value).lower()
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(StoreError, match=r"manifest\.json can't be read: .*symbolic links"):
        runs.open(copy)


def test_an_unfinished_run_has_no_configuration_to_check(copy):
    (copy / CONFIG).unlink()
    with pytest.raises(Incomplete, match="its build stopped early"):
        runs.open(copy)


def test_a_run_opened_by_a_relative_path_answers_after_a_change_of_folder(built, monkeypatch, tmp_path):
    monkeypatch.chdir(built.parent)
    with runs.open("run") as run:
        monkeypatch.chdir(tmp_path)
        assert run.query(**QUERY).promoting
        assert run.status()["complete"]


def test_the_list_of_what_may_be_changed_names_settings_that_there_are(copy):
    config = open_configuration(copy, Manifest.load(copy))
    for name in CHANGEABLE:
        section: Any = config
        for step in name.removesuffix(".path").removesuffix(".state").split("."):
            if step == "*":
                break
            section = getattr(section, step)
