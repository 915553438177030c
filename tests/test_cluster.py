"""The settings of a cluster: what goes together, and what is refused with what to do."""

from typing import get_args

import pytest
from pydantic import ValidationError

from influence.cli.cluster import NAMES
from influence.cluster import QUEUES, ClusterSettings, JobSettings, Kind


@pytest.mark.parametrize(
    ("memory", "count"), [("16GB", 16 * 10**9), ("1.5 GiB", 1536 * 2**20), ("500MB", 5 * 10**8), ("2TiB", 2 * 2**40)]
)
def test_memory_is_in_powers_of_1000_or_with_an_i_of_1024(memory, count):
    assert JobSettings(memory=memory).memory_bytes == count


def test_unset_memory_is_the_queues_own_affair():
    assert JobSettings().memory_bytes is None


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"kind": "address"}, "needs an address"),
        ({"kind": "slurm", "address": "tcp://host:1"}, "needs an address"),
        ({"kind": "address", "address": "tcp://host:1", "tls": {"ca_file": "a", "cert": "b", "key": "c"}}, "tls://"),
        ({"kind": "address", "address": "tls://host:1", "tls": {"ca_file": "a", "cert": "b"}}, "Field required"),
        ({"workers": 2, "adapt": {"max": 4}}, "keep one of them"),
        ({"adapt": {"min": 5, "max": 4}}, "expected min ≤ max"),
        ({"kind": "cuda", "adapt": {"max": 4}}, "leave adapt out"),
        ({"kind": "cuda", "device": "cpu"}, "take kind local"),
        ({"kind": "slurm", "device": "cpu", "job": {"gpus": 1}}, "leave one of them out"),
        ({"kind": "slurm", "job": {"gpus": 1, "workers": 2}}, "and more jobs"),
        ({"kind": "slurm", "job": {"memory": "16"}}, "should match pattern"),
        ({"kind": "slurm", "job": {"directives": ["--a\n#SBATCH --b"]}}, "should match pattern"),
        ({"kind": "sge", "job": {"memory": "16GB"}}, "-l h_vmem=16G"),
        ({"kind": "slurm", "job": {"partition": "a"}}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(found, told):
    with pytest.raises(ValidationError, match=told):
        ClusterSettings.model_validate(found)


@pytest.mark.parametrize("found", [{"kind": "cuda"}, *({"kind": kind, "job": {"gpus": 1}} for kind in QUEUES[:3])])
def test_a_gpu_that_was_asked_for_by_name_is_computed_on(found):
    assert ClusterSettings.model_validate(found).device == "cuda"


def test_a_queues_settings_stay_without_effect_on_this_machine():
    settings = ClusterSettings.model_validate({"kind": "local", "job": {"gpus": 1, "memory": "16GB"}})
    assert (settings.here, settings.queued, settings.device) == (True, False, "auto")


def test_the_command_line_names_every_kind_of_cluster_that_has_no_address():
    assert {*NAMES, "address"} == {*get_args(Kind)}
