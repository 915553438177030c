"""What `influence plan` reckons beside what the same build then takes: seconds from the command to its end.

    python scripts/benchmarks/plan.py --data paragraphs.jsonl --rows 1000 --workers 1 2

Trains a 4,096-token BPE on the texts and saves a random 6.8M-parameter GPT-NeoX with it, as `build.py` does. For each
recipe and number of workers it runs the plan, then the build, and prints planned ÷ taken.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from build import prepare
from rich.console import Console
from rich.table import Table

RECIPES = {
    "gradcos, 16×16, flat": ["recipe={name: gradcos, projection: {p: 16, q: 16}}", "index.kind=flat"],
    "logra, 16×16": ["recipe={name: logra, projection: {p: 16, q: 16}}", "index.kind=exact"],
    "whitened, 64×64, exact EK-FAC (the default)": ["index.kind=exact"],
}


def run(*arguments: str) -> tuple[float, str]:
    """Run our command and return its seconds and its standard output."""
    began = time.perf_counter()
    own = str(Path(sys.executable).with_name("influence"))
    done = subprocess.run([own, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"influence {' '.join(arguments)} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    return time.perf_counter() - began, done.stdout


def main() -> None:
    """Measure and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="jsonl with a `text` column")
    options.add_argument("--rows", type=int, default=1000)
    options.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    options.add_argument("--max-tokens", type=int, default=512)
    given = options.parse_args()
    console = Console(width=120)
    table = Table("recipe", "workers", "planned, s", "taken, s", "planned ÷ taken", "stages planned", title="plan")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.jsonl"
        lines = given.data.read_text(encoding="utf-8").splitlines(keepends=True)
        data.write_text("".join(lines[: given.rows]), encoding="utf-8")
        model, _ = prepare(data, folder, given.max_tokens)
        settings = {
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"path": str(data), "max_tokens": given.max_tokens, "columns": {"id": None}},
        }
        (folder / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")
        for recipe, changes in RECIPES.items():
            for workers in given.workers:
                sets = [word for change in (*changes, f"cluster.workers={workers}") for word in ("--set", change)]
                common = ["-c", str(folder / "run.yaml"), *sets]
                plan = json.loads(run("plan", *common, "--format", "json")[1])
                taken, _ = run("build", *common, "--out", str(folder / "out"))
                shutil.rmtree(folder / "out")
                planned = 3600 * plan["hours"]
                stages = ", ".join(f"{stage} {one['seconds']:.1f}" for stage, one in plan["stages"].items())
                row = (recipe, str(workers), f"{planned:.1f}", f"{taken:.1f}", f"{planned / taken:.2f}", stages)
                table.add_row(*row)
                console.print(*row, sep="; ", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
