"""A run as far as an export asks for one: its data's settings and digest, and rows with ids and labels."""

from types import SimpleNamespace

import numpy as np

from influence.data.dataset import DataSettings, digest_files, locate, open_rows
from influence.data.records import records
from influence.issues.finding import Case, Finding
from influence.issues.table import write_issues

FINGERPRINT = "f" * 64


def run_of(path, fingerprint=FINGERPRINT, **data):
    """What stands for a run over the data at `path`."""
    settings = DataSettings(path=str(path), **data)
    kind, files = locate(settings)
    if kind in ("saved", "hub"):
        rows = open_rows(settings)
        found, digest = [{"label": example.label} for example in rows.examples()], rows.digest()
    else:
        found = [record for file in files for _, record in records(file, kind, ("text", "label", "id"))]
        found, digest = found[: settings.limit], digest_files(files)
    manifest = SimpleNamespace(rows_fingerprint=fingerprint, fingerprint_parts={"data": digest})
    run = SimpleNamespace(path="runs/x", rows=len(found), manifest=manifest)
    run.config = SimpleNamespace(data=settings)
    run.store = SimpleNamespace(rows=len(found), manifest=manifest)
    labels = [record.get("label") for record in found]

    def meta(rows, names):
        whole = [
            {"id": f"id-{row}", "source": "s", "label": None if labels[row] is None else str(labels[row])}
            for row in map(int, rows)
        ]
        return [{name: line[name] for name in names} for line in whole]

    run.store.meta = meta
    return run


def table_of(run, out, drop=(), relabel=None, review=(), skipped=None, **checks):
    """A table of issues of two checks: `copies` wants rows dropped, `labels` others relabelled or looked at."""
    scores = np.linspace(0, 1, run.rows, dtype=np.float32)
    cases = {row: Case((), "drop", "drop: a copy") for row in drop}
    labels = {row: Case((), "relabel", f"relabel to {to!r}", to) for row, to in (relabel or {}).items()}
    labels |= {row: Case((), "review", "look at it") for row in review}
    findings = [
        Finding("copies", scores, cases, "How much of a copy.", "Flagged at 1."),
        Finding("labels", scores, labels, "How wrong.", "Flagged at 1."),
    ]
    findings += [
        Finding(name, scores, {row: Case((), "drop", f"drop: {name}") for row in rows}, "m", "r")
        for name, rows in checks.items()
    ]
    write_issues(run.store, findings, out, skipped=skipped)
    return out
