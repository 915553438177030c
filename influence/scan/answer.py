"""A full scan from first to last: check, cut, compute what is missing, put it together, clear away.

Parts wait in `OUT.parts/` until the answer stands. Whatever kills a scan, the same question into the same file goes on
from them; another question there is refused.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq

from influence.artifacts.digest import FORMAT_VERSION, seal, unseal
from influence.artifacts.lock import lock_folder
from influence.artifacts.partial import check_replaceable, remove_half_written, write_whole
from influence.artifacts.place import check_local
from influence.capture.spec import CaptureSpec
from influence.config import RunConfig
from influence.data.example import Example
from influence.engine.progress import Progress, Report
from influence.errors import Incomplete, InfluenceError, QueryError, RunLocked
from influence.recipes import Magnitudes, Recipe, rank_only_queries, sign_rule
from influence.scan.blocks import compute
from influence.scan.plan import Keep, Scan, batch_of, check_scannable, question_parts, rows_of_block
from influence.scan.table import answer_bytes, queries_file, query_records, write_answer
from influence.store.filter import passing_rows
from influence.store.manifest import Part, fingerprint_of
from influence.store.reader import Store

log = logging.getLogger(__name__)

QUESTION = "question.json"
SUFFIX = ".parquet"


@dataclass(frozen=True)
class Question:
    """What is asked of a run's rows.

    Attributes:
        queries: None where each row is asked about itself.
        keep: What is kept of the scores.
        k: Rows of each side, of `top`.
        where: Which rows are asked of; all if None.
        cut: Whether long queries are cut as rows are.
    """

    queries: tuple[Example, ...] | None
    keep: Keep = "all"
    k: int = 100
    where: str | None = None
    cut: bool = False


@dataclass(frozen=True)
class Answered:
    """What a scan wrote.

    Attributes:
        out: The Parquet file.
        rows: Rows that were asked of.
        queries: How many; 0 where rows were asked about themselves.
        unit: Of the scores.
        sign: What their sign means.
        magnitudes: How the scores of each query can be read; empty where rows were asked about themselves.
    """

    out: Path
    rows: int
    queries: int
    unit: str
    sign: str
    magnitudes: tuple[Magnitudes, ...] = ()

    @property
    def caution(self) -> str | None:
        """What to say beside the scores where some are a rank only."""
        return rank_only_queries(self.magnitudes)


def answer(
    config: RunConfig,
    store: Store,
    spec: CaptureSpec,
    question: Question,
    out: Path,
    *,
    overwrite: bool = False,
    report: Report | None = None,
) -> Answered:
    """Answer a question with a Parquet file; see `score_table` for its columns.

    Args:
        config: Of the run; its cluster section says who computes.
        store: Its rows.
        spec: What its rows were captured with.
        question: What is asked.
        out: Where the answer goes; `OUT.parts/` beside it holds what stands until then.
        overwrite: Replace what is there.
        report: Hears of every task.

    Raises:
        QueryError: The question, its filter or the file can't be used, or `OUT.parts/` holds another question's parts.
        RunLocked: Another process is at this file.
        Incomplete: Interrupted, or the disk is full. The same question goes on from what stands.
        InfluenceError: What a worker met.
    """
    check_scannable(config.recipe, itself=question.queries is None)
    _check_question(question, store)
    _check_folder(out)
    mask = None if question.where is None else passing_rows(store, question.where)
    chosen = store.rows if mask is None else int(mask.sum())
    scan, parts = planned(config, store, question, out, chosen)
    _check_vacant(out, scan, overwrite)
    told, queries = _told(config.recipe, store, question, scan), question.queries or ()
    with _held(scan, parts, out):
        # Killed between the answer and its parts' removal: only that is left to do.
        if not _answers(out, scan) or overwrite:
            _check_space(scan, chosen, out)
            if mask is not None:
                scan.save_passing(mask)
            compute(config, scan, spec, queries, report)
            units = len(scan.batches) if scan.keep == "top" else len(scan.blocks)
            write_answer(scan, queries, told, out, Progress("writing", units, report))
        _clear(scan.folder)
    each: tuple[Magnitudes, ...] = tuple(record.magnitudes for record in query_records(out))
    return Answered(out, chosen, scan.queries, told["unit"], told["sign"], each)


def _check_question(question: Question, store: Store) -> None:
    if question.queries is not None and not question.queries:
        raise QueryError(
            "There are no queries. Give a file with one query per line, or score each row for itself (--self)."
        )
    if question.keep not in get_args(Keep):
        raise QueryError(f"keep is {question.keep!r}; expected one of {', '.join(get_args(Keep))}.")
    if question.keep == "top" and not 1 <= question.k <= store.rows:
        raise QueryError(f"k is {question.k}, but {store.run_dir} has {store.rows} rows: set k from 1 to {store.rows}.")


def _check_folder(out: Path) -> None:
    check_local(out, "scores")
    if out.suffix.lower() != SUFFIX:
        raise QueryError(f"{out} can't be written: scores are kept as Parquet, so its name must end in {SUFFIX}.")
    if not out.parent.is_dir():
        raise QueryError(f"The folder {out.parent} doesn't exist; make it, or write the scores somewhere else.")
    for path in (out, queries_file(out)):
        check_replaceable(path)


def _check_vacant(out: Path, scan: Scan, overwrite: bool) -> None:
    """Refuse to replace files that nobody said may be replaced."""
    there = [str(path) for path in (out, queries_file(out)) if path.exists()]
    if not there or overwrite or (scan.folder.exists() and (_answers(out, scan) or not out.exists())):
        return
    same = " It answers this very question." if _answers(out, scan) else ""
    raise QueryError(
        f"{' and '.join(there)} {'exist' if len(there) > 1 else 'exists'} already.{same} Overwrite (--overwrite), or "
        "name another file."
    )


def folder_of(out: Path) -> Path:
    """Return where the parts of an answer wait."""
    return out.with_name(f"{out.name}.parts")


def planned(
    config: RunConfig, store: Store, question: Question, out: Path, chosen: int
) -> tuple[Scan, dict[str, Part]]:
    """Return how a question is cut into tasks, and the parts of its fingerprint.

    Args:
        config: Of the run.
        store: Its rows.
        question: What is asked.
        out: Where the answer goes.
        chosen: How many rows pass the filter; all without one.
    """
    queries, recipe = question.queries or (), config.recipe.stored
    keep = question.keep if queries else "self"
    k = min(question.k, chosen) if keep == "top" else 0
    if k and k < question.k:
        log.warning("k is %d, and %d rows pass --where %r: all of them are ranked.", question.k, k, question.where)
    parts = question_parts(store.manifest, config.recipe, keep, k, question.where, queries, question.cut)
    batch = min(batch_of(store.dims), len(queries)) or 1
    applied = recipe.curvature.kind == "fisher" and (recipe.halved or not queries)
    blocks = [store.dims] if recipe.curvature.blocks == "all" else [own.stop - own.start for own in store.modules]
    scan = Scan(
        run_dir=store.run_dir.resolve(),
        folder=folder_of(out).resolve(),
        fingerprint=fingerprint_of(parts),
        recipe=recipe,
        keep=keep,
        k=k,
        queries=len(queries),
        batch=batch,
        rows=store.rows,
        step=rows_of_block(store.rows, store.dims, batch if queries else 0, keep, max(blocks) if applied else 0),
        filtered=question.where is not None,
        cut=question.cut,
        threads=config.cluster.threads_per_worker,
    )
    return scan, parts


def _told(recipe: Recipe, store: Store, question: Question, scan: Scan) -> dict[str, str]:
    """Return what the file's metadata say."""
    told = {
        "unit": recipe.stored.unit_under(store.manifest.reduction),
        "sign": sign_rule(recipe.baseline),
        "recipe": recipe.stored.summary,
        "run": store.manifest.fingerprint,
        "keep": scan.keep,
        "question": scan.fingerprint,
    }
    if question.where is not None:
        told["where"] = question.where
    if question.queries:
        told["queries"] = json.dumps([query.id for query in question.queries])
    return told


@contextmanager
def _held(scan: Scan, parts: dict[str, Part], out: Path) -> Iterator[None]:
    """Hold the folder of parts. Where nothing was computed when an error ends it, it goes again."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(scan.folder))
        except RunLocked as error:
            raise RunLocked(f"{out} is being written already. {error}") from None
        _begin(scan, parts, out)
        for file in (out, queries_file(out)):
            remove_half_written(file)
        try:
            yield
        except KeyboardInterrupt:
            raise Incomplete(
                f"Interrupted. Partial results are in {scan.folder}. Run the same command again to resume."
            ) from None
        except InfluenceError:
            if not _parts_stand(scan.folder):
                _clear(scan.folder)
            raise


def _begin(scan: Scan, parts: dict[str, Part], out: Path) -> None:
    """Take over the parts that stand, or refuse those of another question."""
    path = scan.folder / QUESTION
    if not path.exists():
        write_whole(path, seal({"format_version": FORMAT_VERSION, "fingerprint": scan.fingerprint, "parts": parts}))
        return
    there = unseal(path, f"Delete {scan.folder} to start again.")
    if there["fingerprint"] != scan.fingerprint and not _parts_stand(scan.folder):
        path.unlink()
        _begin(scan, parts, out)
    elif there["fingerprint"] != scan.fingerprint:
        found = there["parts"]
        differing = "; ".join(
            f"{name} is {found.get(name)!r} there and {parts.get(name)!r} here"
            for name in sorted({*found, *parts})
            if found.get(name) != parts.get(name)
        )
        raise QueryError(
            f"{scan.folder} holds parts of another question: {differing}. Finish that one with its own command, delete "
            f"the folder, or write to another file than {out}."
        )


def _parts_stand(folder: Path) -> bool:
    return any(path for name in ("queries", "scores") for path in folder.glob(f"{name}-*.json"))


def _clear(folder: Path) -> None:
    """Remove the folder of parts, whatever a worker that was lost sight of may still be writing there."""
    shutil.rmtree(folder, ignore_errors=True)


def _answers(out: Path, scan: Scan) -> bool:
    """Whether a file holds the answer to this question."""
    if not out.exists():
        return False
    try:
        told = pq.read_schema(out).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return told.get(b"question") == scan.fingerprint.encode()


def _check_space(scan: Scan, rows: int, out: Path) -> None:
    """Say what the answer takes, and refuse what doesn't fit beside its parts."""
    size = answer_bytes(scan, rows)
    needed = 2 * size if scan.keep == "all" else size
    what = f"{rows:,} rows × {scan.queries:,} queries" if scan.queries else f"{rows:,} rows"
    log.info("%s: %.3g MB in %s, and up to as much again beside it meanwhile.", what, size / 1e6, out)
    free = shutil.disk_usage(out.parent).free
    standing = sum(path.stat().st_size for path in scan.folder.iterdir())
    if needed - standing > free:
        raise Incomplete(
            f"The answer takes {size / 1e9:,.1f} GB, and as much again until it stands; {free / 1e9:,.1f} GB of "
            f"the disk under {out.parent} are free. Make room, or keep less: --keep top, or --keep rows."
        )
