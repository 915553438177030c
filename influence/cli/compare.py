"""`influence compare`: where two runs over the same rows disagree."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from influence.cli.options import Form, FormOption, RawOption, TrustOption
from influence.cli.queries import from_file
from influence.cli.streams import put_text, show, told


class Device(StrEnum):
    """Where queries are computed."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="A run.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Another run over the same rows.")],
    queries: Annotated[
        str, typer.Option(metavar="FILE|-", help="JSON Lines with a query a line, from a file or stdin.")
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the lists of best rows that are compared.")] = 10,
    raw: RawOption = False,
    device: Annotated[Device, typer.Option(help="Device that computes the queries.")] = Device.auto,
    form: FormOption = Form.table,
    trust: TrustOption = False,
) -> None:
    """Compare two checkpoints or recipes: rank correlation, shared best rows, rows that rose and fell."""
    import influence.api
    from influence.compare import compare as compare_runs
    from influence.engine.progress import ProgressBar

    with (
        influence.api.open(first, device=device.value, trust=trust) as a,
        influence.api.open(second, device=device.value, trust=trust) as b,
        ProgressBar(told()) as bar,
    ):
        found = compare_runs(a, b, list(from_file(queries, a.query_form.asking(raw=raw))), k=k, progress=bar)
    if form is Form.json:
        content = json.dumps(found.to_dict(), ensure_ascii=False) + "\n"
        put_text(content.encode(errors="backslashreplace"), escapes=True)
        return
    from influence.cli.comparison_tables import comparison_tables

    show(*comparison_tables(found))
