"""`influence plan`: what a build would take. Starts none and writes nothing."""

import json
from dataclasses import asdict
from math import isfinite
from typing import Any

from influence.cli.options import ConfigOption, Form, FormOption, SetOption
from influence.cli.streams import put_text, show, told


def plan(config: ConfigOption, changes: SetOption = None, form: FormOption = Form.table) -> None:
    """Say how many rows and columns, bytes and hours a build would take, from a short measurement."""
    from influence.cli.tables import plan_tables
    from influence.run import plan as plan_run

    with told().status("Measuring on one worker …"):
        found = plan_run(config, overrides=changes or [])
    hours = {
        count: found.hours * found.workers / count for count in worker_counts(found.workers, found.estimate.shards)
    }
    if form is Form.table:
        show(*plan_tables(found, hours))
        return
    document: dict[str, Any] = {
        **asdict(found.estimate),
        "disk": found.estimate.disk,
        **found.probed.model_dump(mode="json", exclude={"modules", "dims"}),
        "modules": [module.name for module in found.probed.modules],
        "workers": found.workers,
        # JSON has no infinity, which stands for a speed that couldn't be measured.
        "hours": found.hours if isfinite(found.hours) else None,
        "hours_by_workers": {str(count): value if isfinite(value) else None for count, value in hours.items()},
    }
    put_text(json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n", escapes=True)


def worker_counts(configured: int, shards: int) -> list[int]:
    """Return the numbers of workers to tell hours for: powers of two up to one a shard, and the configured."""
    powers = [2**power for power in range(7) if 2**power <= shards]
    return sorted({*powers, configured})
