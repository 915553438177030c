"""Examine a run from first to last: decide which checks apply, make them, and write the table.

What a check found waits in `OUT.parts/` until the table stands, so that an examination which was interrupted goes on
with the checks that are missing; their thresholds and what they were held against are part of a finding's name.

Held in memory are each check's scores, four bytes a row, and its cases, in columns (`cases`); a check that is at work
holds what its own page says.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from influence.artifacts.outfile import check_outfile, parts_folder, publish, remove_parts
from influence.artifacts.tensors import load_tensors, save_tensors, saved_for
from influence.engine.cluster import kept_cluster
from influence.engine.progress import Progress, Report
from influence.errors import MissingExtra, QueryError, StoreError
from influence.issues.cases import Cases, gather
from influence.issues.checks.datalab import MISSING
from influence.issues.checks.registry import CHECKS, IssueSettings
from influence.issues.finding import Finding
from influence.issues.knn_graph import check_graph_file, check_wide, save_knn_graph
from influence.issues.parts import held_parts
from influence.issues.subject import Subject
from influence.issues.table import read_about, write_issues
from influence.query.evaluation import Evaluation
from influence.run_dir import RunDir
from influence.store.manifest import fingerprint_of

log = logging.getLogger(__name__)

ALL = "all"
"""The name of all checks that apply without being named, beside others' names."""
WORST = 5
"""Rows of each issue that are shown."""
VERSION = 1
"""Of a finding as it waits."""


@dataclass(frozen=True)
class Examined:
    """What an examination found.

    Attributes:
        out: The table.
        rows: Rows examined.
        findings: One a check, in the order of their columns.
        skipped: Check to what it lacks, of those that nobody named and that don't apply.
        neighbours: How near rows were found, in a sentence; None where nothing asked for them.
        worst: By check, the ids of the rows with the strongest cases.
    """

    out: Path
    rows: int
    findings: tuple[Finding, ...]
    skipped: dict[str, str]
    neighbours: str | None
    worst: dict[str, list[str]]


def examine(
    run: RunDir,
    out: Path,
    settings: IssueSettings,
    *,
    checks: Sequence[str] | None = None,
    evaluation: Evaluation | None = None,
    target: Evaluation | None = None,
    graph: Path | None = None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    progress: Report | None = None,
) -> Examined:
    """Make checks on every row of a run and write what they find to a Parquet file; see `diagnose.table`.

    Args:
        run: The run.
        out: The file, `….parquet`. `OUT.parts/` beside it holds what stands until then.
        settings: Of the checks.
        checks: Which; all that apply if None.
        evaluation: Examples that the model should get right, for the checks that ask about them.
        target: An unwanted output.
        graph: Write every row's nearest rows to this file too, `….npz`; see `knn_graph`.
        overwrite: Replace what is there.
        overrides: `key=value` each, of the cluster section.
        progress: Hears of everything that takes long.

    Raises:
        QueryError: A check that was named doesn't apply (those that do are listed), or the run or file can't be used.
        RunLocked: Another process is at this file.
        Incomplete: Interrupted, or the disk is full; the same call goes on.
    """
    if checks is not None and not checks:
        raise QueryError(f"No check is named. Name some of {', '.join(CHECKS)}; or none of them, for all that apply.")
    _check_out(out, overwrite)
    if graph is not None:
        check_graph_file(graph, overwrite=overwrite, beside=out)
        check_wide(run.rows)
    folder = parts_folder(out)
    with held_parts(folder, out), kept_cluster():
        subject = Subject(
            run,
            folder,
            settings.neighbours,
            evaluation=evaluation,
            target=target,
            overrides=overrides,
            progress=progress,
        )
        wanted, skipped = _wanted(subject, checks)
        _check_settings(settings, wanted, skipped)
        stage = Progress("checks", len(wanted), progress)
        findings = []
        for name in wanted:
            findings.append(_found(subject, name, settings))
            stage.finished()
        write_issues(run.store, findings, out, partial(publish, overwrite=overwrite), skipped)
        if graph is not None:
            save_knn_graph(subject.graph, graph, partial(publish, overwrite=overwrite, beside=out))
        remove_parts(folder)
    worst = {finding.issue: subject.ids(finding.flagged[:WORST]) for finding in findings}
    neighbours = subject.graph.summary if "graph" in subject.__dict__ else None
    return Examined(out, run.rows, tuple(findings), skipped, neighbours, worst)


def _wanted(subject: Subject, names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return the checks to make, and of those that don't apply what they lack; of `all` those that apply unnamed."""
    unknown = [name for name in names or () if name not in (ALL, *CHECKS)]
    if unknown:
        raise QueryError(f"There is no check {unknown[0]!r}; there are {', '.join(CHECKS)}, and {ALL}.")
    lacking = {name: lacks for name, check in CHECKS.items() if (lacks := check.lacks(subject)) is not None}
    applying = [name for name in CHECKS if name not in lacking]
    usual = [name for name in applying if not CHECKS[name].named_only]
    if names is None or ALL in names:
        told = {name: f"Made only where it is named: --checks {ALL},{name}." for name in applying if name not in usual}
        named = _wanted(subject, [name for name in names or () if name != ALL])[0] if names else []
        skipped = {name: lacks for name, lacks in (lacking | told).items() if name not in named}
        return [name for name in CHECKS if name in (*usual, *named)], skipped
    missing = [name for name in names if lacking.get(name) == MISSING]
    if missing:
        raise MissingExtra(f"{missing[0]} can't be made. {MISSING}")
    refused = [name for name in names if name in lacking]
    if refused:
        raise QueryError(
            f"{refused[0]} doesn't apply to {subject.run.path}: {lacking[refused[0]]} Checks that do apply: "
            f"{', '.join(applying)}."
        )
    return [name for name in CHECKS if name in names], {}


def _check_settings(settings: IssueSettings, wanted: Sequence[str], skipped: Mapping[str, str]) -> None:
    """Refuse settings of a check that is not made: they would do nothing."""
    for name in sorted(settings.model_fields_set & CHECKS.keys()):
        if name not in wanted:
            why = skipped.get(name, f"--checks names only {', '.join(wanted)}.")
            raise QueryError(f"--set {name}.… has no effect: the check {name} is not made. {why}")


def _found(subject: Subject, name: str, settings: IssueSettings) -> Finding:
    """Return what a check finds, or found before the examination was interrupted."""
    own = getattr(settings, name)
    held = (subject.evaluation, subject.target)
    made_of = fingerprint_of(
        {
            "rows": subject.run.manifest.rows_fingerprint,
            "recipe": subject.run.recipe.stored.model_dump_json(),
            "check": name,
            "settings": own.model_dump_json(),
            "neighbours": settings.neighbours.model_dump_json(),
            "held against": ", ".join(examples.digest if examples else "nothing" for examples in held),
            "version": VERSION,
        }
    )
    path = subject.folder / f"{name}.safetensors"
    if saved_for(path, made_of):
        return _loaded(load_tensors(path, made_of))
    finding = CHECKS[name].check(subject, own)
    assert finding.issue == name, f"the check {name} calls itself {finding.issue}"
    assert finding.scores.shape == (subject.rows,), f"the check {name} scores {finding.scores.shape} rows"
    cases = gather(finding.cases)
    told = json.dumps({"issue": name, "meaning": finding.meaning, "rule": finding.rule}).encode()
    held = {
        "scores": np.ascontiguousarray(finding.scores, dtype=np.float32),
        "cases": cases.to_bytes(),
        "told": np.frombuffer(told, dtype=np.uint8).copy(),
    }
    save_tensors(path, {part: torch.from_numpy(array) for part, array in held.items()}, made_of)
    return replace(finding, cases=cases)


def _loaded(tensors: dict[str, torch.Tensor]) -> Finding:
    told = json.loads(tensors["told"].numpy().tobytes())
    cases = Cases.from_bytes(tensors["cases"].numpy())
    return Finding(told["issue"], tensors["scores"].numpy(), cases, told["meaning"], told["rule"])


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix.lower() != ".parquet":
        raise QueryError(f"{out} can't be written: issues are kept as Parquet, so its name must end in .parquet.")
    check_outfile(out, "the issues", overwrite=overwrite)
    if out.exists():
        try:
            read_about(out)
        except QueryError as error:
            raise QueryError(f"{out} isn't replaced, since it may be anything else: {error}") from None
        except StoreError:
            log.info("%s is an older table of issues, and is replaced.", out)


__all__ = ["Examined", "examine"]
