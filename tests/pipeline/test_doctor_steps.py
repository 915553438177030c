"""The doctor holds scores to steps of the weights, and leaves the weights as they were."""

import pytest
import torch

from influence.curvature.damping import Damping
from influence.data.dataset import open_rows
from influence.doctor import examine
from influence.doctor.steps import gradient_step
from influence.doctor.subject import Subject, capture_of, opened
from influence.stages.build import build_run

STEP, COPY = "gradient step", "step of one copy"


def damped(config, value):
    curvature = config.recipe.curvature.model_copy(update={"damping": Damping(value=value)})
    return config.model_copy(update={"recipe": config.recipe.model_copy(update={"curvature": curvature})})


def checks_of(config, run=None):
    return {check.name: check for check in examine(config, run=run)}


def test_a_run_damped_enough_can_be_read_in_nats_and_one_damped_too_little_only_as_a_rank(
    configured, in_process, tmp_path
):
    config = configured("data.limit=12", "index.kind=exact", recipe="ekfac")
    build_run(config, tmp_path / "run")
    strong = checks_of(damped(config, 300.0), tmp_path / "run")
    assert (strong[STEP].verdict, strong[COPY].verdict) == ("pass", "pass")
    assert 0.5 <= strong[COPY].value <= 2
    weak = checks_of(damped(config, 1e-6), tmp_path / "run")[COPY]
    assert weak.verdict == "note"
    assert weak.value < 0.5
    assert "promise more than probability allows" in weak.found
    assert "as a rank" in weak.remedy
    assert "larger damping" in weak.remedy


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("settings", [(), ("model.layers.bias=true",)])
def test_a_step_leaves_every_weight_as_it_was_to_the_bit(configured, family, settings):
    config = configured(*settings, family=family, recipe="graddot")
    with opened(config) as session:
        rows = open_rows(config.data)
        parts = session.tokenise([rows.example(row) for row in range(6)])
        before = {name: weight.clone() for name, weight in session.model.state_dict().items()}
        with capture_of(session) as capture:
            subject = Subject(session, capture, parts)
        check = gradient_step(subject)
        assert check.verdict == "pass", check.found
        assert check.value == pytest.approx(1, abs=0.1)
        for name, weight in session.model.state_dict().items():
            assert torch.equal(weight, before[name])


def test_a_loss_of_means_is_stepped_along_too_and_a_narrow_dtype_is_named(configured):
    assert checks_of(configured("task.reduction=mean", recipe="gradcos"))[STEP].verdict == "pass"
    check = checks_of(configured("model.dtype=bfloat16", recipe="gradcos"))[STEP]
    assert check.verdict == "note"
    assert "model.dtype=float32" in check.found


def test_a_gradient_that_is_none_of_these_weights_fails(configured, monkeypatch):
    import influence.doctor.steps as steps

    config = configured(recipe="graddot")
    whole = steps.Capture.__call__

    def negated(*arguments, **named):
        rows, *rest = whole(*arguments, **named)
        return -rows, *rest

    monkeypatch.setattr(steps.Capture, "__call__", negated)
    check = checks_of(config)[STEP]
    assert check.verdict == "fail"
    assert "not the derivatives of the outputs" in check.remedy
