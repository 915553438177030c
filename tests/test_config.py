"""A run file says exactly what it means, or an error says where it doesn't."""

from pathlib import Path

import pytest

from influence.config import RunConfig, load_config, override_config, parse_config, save_config
from influence.errors import ConfigError

SMALLEST = {"model": {"path": "gpt2"}, "data": {"path": "wikitext"}}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_unknown_key_is_named_with_its_line_the_allowed_keys_and_a_near_miss(tmp_path):
    path = write(tmp_path, "model: {path: gpt2}\ndata:\n  path: wikitext\n  max_token: 5\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:4: unknown key data.max_token.")
    assert "long_rows" in message
    assert message.endswith("Did you mean max_tokens?")


def test_every_problem_gets_a_line_of_its_own(tmp_path):
    path = write(tmp_path, "model: {path: gpt2, dtype: int3}\ndata: {path: x, max_tokens: 1}\nclutser: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "model.dtype" in lines[0]
    assert "'int3'" in lines[0]
    assert "data.max_tokens" in lines[1]
    assert "at the top: model, data, task" in lines[2]
    assert "Did you mean cluster?" in lines[2]


@pytest.mark.parametrize("text", ["model: [1\ndata: x", "model: {path: a}\n\tdata: {}", "a: b: c"])
def test_broken_yaml_is_named_by_file_and_line(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=r"run\.yaml:\d+: not valid YAML"):
        load_config(path)


def test_a_key_given_twice_is_refused_rather_than_the_last_one_taken(tmp_path):
    path = write(tmp_path, "model: {path: a}\ndata: {path: b}\nmodel: {path: c}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:3: .*'model' is given twice"):
        load_config(path)


@pytest.mark.parametrize(("text", "found"), [("", "is empty"), ("- model", "holds a list"), ("model", "holds a str")])
def test_a_file_that_is_no_mapping_lists_the_sections(tmp_path, text, found):
    with pytest.raises(ConfigError, match=f"{found}.*model, data, task, recipe, store, index, cluster"):
        load_config(write(tmp_path, text))


def test_a_missing_file_and_a_missing_setting_say_so(tmp_path):
    with pytest.raises(ConfigError, match="There is no run file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="data is missing"):
        load_config(write(tmp_path, "model: {path: gpt2}"))


def test_paths_of_a_file_are_relative_to_it_and_those_of_overrides_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "trained").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = write(tmp_path / "here", "model: {path: trained}\ndata: {path: rows.jsonl}\n")
    config = load_config(path)
    assert config.model.path == str(tmp_path / "here" / "trained")
    assert config.data.path == str(tmp_path / "here" / "rows.jsonl")
    assert load_config(path, ["data.path=rows.jsonl"]).data.path == str(tmp_path / "elsewhere" / "rows.jsonl")
    assert load_config(path, ["model.path=gpt2"]).model.path == "gpt2"


def test_the_tls_files_of_a_scheduler_are_relative_to_the_run_file_whether_they_are_there_or_not(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    tls = "tls: {ca_file: keys/ca, cert: ~/cert.pem, key: key.pem}"
    cluster = f"cluster: {{kind: address, address: tls://host:1, {tls}}}"
    path = write(tmp_path, f"model: {{path: gpt2}}\ndata: {{path: rows.jsonl}}\n{cluster}\n")
    found = load_config(path, ["cluster.tls.key=key.pem"]).cluster.tls
    assert (found.ca_file, found.key) == (str(tmp_path / "keys" / "ca"), str(tmp_path / "elsewhere" / "key.pem"))
    assert found.cert == str(Path.home() / "cert.pem")


def test_overrides_are_yaml_and_reach_into_a_recipe_given_by_name():
    config = parse_config(
        {**SMALLEST, "recipe": "logra"},
        ["recipe.projection.p=64", "data.append_eos=true", "model.layers.include=[a.*, b]", "recipe.damping=1e-3"],
    )
    assert config.recipe.name == "logra"
    assert config.recipe.projection.p == 64
    assert config.recipe.projection.q == 16
    assert config.recipe.curvature.kind == "fisher"
    assert config.recipe.curvature.damping.value == 1e-3
    assert config.data.append_eos is True
    assert config.model.layers.include == ("a.*", "b")


@pytest.mark.parametrize("override", ["data.max_tokens", "=5", "data..x=5", "data.path=[", "data.path.x=5"])
def test_an_override_that_cannot_be_used_is_quoted(override):
    with pytest.raises(ConfigError) as caught:
        parse_config(SMALLEST, [override])
    assert repr(override) in str(caught.value)


def test_a_bad_value_of_an_override_is_blamed_on_the_override(tmp_path):
    path = write(tmp_path, "model: {path: gpt2}\ndata: {path: x}\n")
    with pytest.raises(ConfigError, match=r"^--set: data.max_tokens: .*found 'many'"):
        load_config(path, ["data.max_tokens=many"])


def test_an_unknown_recipe_and_an_unknown_part_name_the_file(tmp_path):
    path = write(tmp_path, "model: {path: gpt2}\ndata: {path: x}\nrecipe: lorga\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:3: recipe: .*Did you mean 'logra'"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"projection.*widht"):
        parse_config({**SMALLEST, "recipe": {"name": "logra", "projection": {"widht": 3}}})


def test_a_short_and_a_long_form_of_the_same_part_are_not_silently_ranked():
    saved = parse_config(SMALLEST)
    with pytest.raises(ConfigError, match=r"damping and curvature\.damping"):
        override_config(saved, ["recipe.damping=0.5"])


def test_a_saved_configuration_loads_as_the_same_one(tmp_path):
    config = parse_config(
        {
            **SMALLEST,
            "recipe": {"name": "graddot", "comparison": "cosine", "projection": {"p": 4, "seed": 3}},
            "store": {"rows_per_shard": 7},
            "cluster": {"kind": "address", "address": "tcp://host:8786"},
        }
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_recipe_of_parts_alone_needs_no_preset_name():
    config = RunConfig.model_validate({**SMALLEST, "recipe": {"comparison": "cosine"}})
    assert (config.recipe.name, config.recipe.curvature.kind) == ("custom", "identity")


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ({"name": "ekfac", "checkpoints": [{"path": "a"}]}, "no build has ekfac of whole gradients under several"),
        (
            {"name": "trak", "measurement": "log_likelihood", "exact": {"kind": "ekfac"}},
            "factors under a trak projection",
        ),
        ({"name": "tracin", "checkpoints": [{"weight": 0.1}]}, "a checkpoint without a path"),
        ({"name": "less", "checkpoints": [{"path": "a"}, {"path": "b"}]}, "names none: set each checkpoint's state"),
        ("less", r"names none: set recipe\.gradient\.state to the checkpoint folder"),
        ({"name": "bm25", "checkpoints": [{"path": "a"}]}, "bm25 has no checkpoints: leave them out. The nearest"),
    ],
)
def test_what_a_build_has_not_or_would_look_for_in_vain_is_refused(recipe, told):
    with pytest.raises(ConfigError, match=f"recipe: .*{told}"):
        parse_config({**SMALLEST, "recipe": recipe})


def test_states_and_checkpoints_are_paths_too(tmp_path, monkeypatch):
    (tmp_path / "step-1").mkdir()
    path = write(
        tmp_path,
        "model: {path: gpt2}\ndata: {path: x}\n"
        "recipe: {name: less, checkpoints: [{path: step-1, state: ./step-1}, {path: org/name, state: step-1}]}\n",
    )
    first, second = load_config(path).recipe.checkpoints
    assert first.path == first.state == second.state == str(tmp_path / "step-1")
    assert second.path == "org/name"
    monkeypatch.chdir(tmp_path)
    assert parse_config(SMALLEST, ["recipe=less", "recipe.gradient.state=step-1"]).recipe.gradient.state == first.path


def test_an_address_without_scheme_and_port_is_refused():
    with pytest.raises(ConfigError, match=r"cluster\.address: .*found 'somewhere'"):
        parse_config({**SMALLEST, "cluster": {"kind": "address", "address": "somewhere"}})


def test_an_address_without_its_kind_is_refused():
    with pytest.raises(ConfigError, match=r"^configuration: cluster: kind 'address' needs an address"):
        parse_config({**SMALLEST, "cluster": {"address": "tcp://host:8786"}})


def test_a_value_that_is_not_utf_8_is_refused_from_the_command_line_and_from_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"--set data\.path: 'd\\udcff\.jsonl' isn't UTF-8"):
        parse_config({}, ["data.path=d\udcff.jsonl"])
    folder = tmp_path / "\udcff"
    folder.mkdir()
    (folder / "run.yaml").write_text("model: {path: ./model}\ndata: {path: rows.jsonl}\n")
    with pytest.raises(ConfigError, match=r"model\.path: '.*\\udcff/model' isn't UTF-8 .* symbolic link"):
        load_config(folder / "run.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("recipe.name=[logra]", "name is ['logra']; expected the name of a recipe"),
        ("recipe.curvature.dampng=1", "there is no curvature.dampng.* Did you mean damping?"),
        ("recipe.projecton={p: 4}", "there is no projecton.* Did you mean projection?"),
        ("cluster.threads_per_worker=100000", "less than or equal to 1024"),
        ("data.limit=true", "--set: data.limit: Input should be a number (found True)"),
        ("recipe.projection.seed=yes", "recipe.projection.seed: Input should be a number (found True)"),
        ("recipe.damping=no", "damping is False; expected a number"),
        ("model=/some/folder", "model is '/some/folder'; expected settings below it: path, kind"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named_with_what_is_near_or_expected(change, said):
    sections = {"model": {"path": "/m"}, "data": {"path": "/d.jsonl"}, "recipe": {"name": "logra"}}
    with pytest.raises(ConfigError) as caught:
        parse_config(sections, [change])
    for part in said.split(".*"):
        assert part in str(caught.value)


def test_a_time_without_quotes_is_a_queues_walltime():
    found = parse_config({"model": {"path": "/m"}, "data": {"path": "/d.jsonl"}}, ["cluster.job.walltime=01:30:00"])
    assert found.cluster.job.walltime == "01:30:00"


def test_a_run_file_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("influence.config.MAX_BYTES", 1000)
    (tmp_path / "run.yaml").write_text("#" * 1001)
    with pytest.raises(ConfigError, match="has more than 1,000 bytes"):
        load_config(tmp_path / "run.yaml")
