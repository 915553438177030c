"""Influence by group, computed so that an interrupted scan goes on until what is made of it is written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from influence.engine.progress import Report
from influence.groups.file import check_groups_file
from influence.groups.groups import GroupInfluences, GroupSettings, influence_of_groups
from influence.issues.parts import parts_of
from influence.query.evaluation import as_evaluation
from influence.run_dir import RunDir


def deliver_groups(
    run: RunDir,
    queries: Any,
    by: str,
    settings: GroupSettings,
    *,
    sets: str | None = None,
    out: str | Path | None = None,
    deliver: Callable[[GroupInfluences], None] = lambda _: None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    progress: Report | None = None,
) -> GroupInfluences:
    """Return each group's summed and mean influence on each set of queries, with intervals.

    Args:
        run: The run.
        queries: A file with the columns of the training data, or queries as for `Run.query_many`.
        by: The column that groups rows: `source`, `label`, `uri`, or another of the training data's files.
        settings: Of the bootstrap.
        sets: A column of the queries' file that divides them into sets. None: one set.
        out: A file that the caller will write. An interrupted scan is resumed from `OUT.parts/` beside it.
        deliver: Called with the result before these parts are removed, to write it.
        overwrite: Accept an existing file.
        overrides: Settings of the cluster section, `key=value` each.
        progress: Called with every `Step`.

    Returns:
        One line per group and set; `influence.groups.groups` describes the intervals.

    Raises:
        QueryError: There is no such column (the message lists the columns), or the file cannot be written.
    """
    check_groups_file(run, out, queries, overwrite=overwrite)
    evaluation = as_evaluation(run, queries, "the queries")
    with parts_of(None if out is None else Path(out)) as folder:
        influences = influence_of_groups(
            run, evaluation, by, folder, sets=sets, settings=settings, overrides=overrides, progress=progress
        )
        deliver(influences)
    return influences
