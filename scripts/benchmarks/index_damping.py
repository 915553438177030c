"""Which damping of a whitened projection makes the index alone put the right rows first.

    python scripts/benchmarks/index_damping.py --data paragraphs.jsonl [--model FOLDER] [--trials scratch tuned planted]

`scratch` and `tuned` are the small models of `damping.py`, held to half-trainings (LDS). `planted`, with --model: the
last blocks of a chat model fine-tuned on chats, ten of which teach each of eight made-up facts (`planted_chats.py`);
asked is what the model then says itself when questioned about one, in words that no chat uses.

Every rule's index is made in one pass: R (A + λ_A)^-½ for one R of 64 × 64, in float32 and at one bit. Beside them
stand `logra` at 16 × 16 and exact EK-FAC scores under some dampings. Columns: planted rows among an answer's ten best;
the share of the ten best rows of exact scores (`bounded`, and .01 of the mean) among the ten and fifty best; LDS. Then,
of some rows, single AdamW steps of that row alone: what they change, beside each damping's exact score.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damping import EDGES, MIDDLES, TASK, Fit, Resolved, Trial, of_losses, of_training, small, train
from planted_chats import planted
from torch import Tensor

from influence.curvature.covariance import CovarianceFit, FactorSettings
from influence.curvature.ekfac import EigenvalueFit
from influence.curvature.kfac import Eigenbasis, ModuleBasis, decompose
from influence.curvature.whitening import Whitening, bounded_share
from influence.data.batch import collate
from influence.data.tokenise import Part
from influence.demo.train import PAD_ID
from influence.evaluate.lds import linear_datamodeling_score
from influence.evaluate.subsets import half_subset, membership
from influence.gradients.hooks import Hooks, layer_inputs
from influence.gradients.projection import Projection, ProjectionSettings, Sides
from influence.model.layers import TrackedLayer, tracked_layers
from influence.task import fisher_loss

log = logging.getLogger("index_damping")
SHARES = (0.001, 0.01, 0.1, 1, 10, 100)


class Sink:
    """One layer's gradients of a batch: rotated into the eigenbasis and ordered by bins of Λ, and every sketch."""

    def __init__(self, layer: TrackedLayer, basis: ModuleBasis, order: Tensor, sides: Mapping[str, Sides]) -> None:
        self.layer, self.basis, self.order, self.sides = layer, basis, order, sides
        self.whole, self.sketches = torch.empty(0), dict[str, Tensor]()

    def keep(self, module: Any, inputs: Tensor, output: Tensor) -> Tensor:
        """Keep what the layer received."""
        return layer_inputs(self.layer, inputs, output)

    def take(self, grads: Tensor, activations: Tensor, *, last: bool) -> None:
        """Make the gradients."""
        left, right = self.basis.outputs.rotate(grads), self.basis.inputs.rotate(activations)
        self.whole = torch.bmm(left.transpose(1, 2), right).flatten(1)[:, self.order]
        for name, sides in self.sides.items():
            outputs = grads if sides.outputs is None else grads @ sides.outputs.T
            inputs = activations if sides.inputs is None else activations @ sides.inputs.T
            self.sketches[name] = torch.bmm(outputs.transpose(1, 2), inputs).flatten(1)


@dataclass
class Found:
    """Scores of every query and row, [queries, rows]: exact by bins of Λ, and by each index.

    Attributes:
        exact: EK-FAC's products.
        index: By the rule's name; those at one bit a coordinate end in "one bit".
        shares: c of each rule.
        own: A row's mean score with itself under each rule.
    """

    exact: Resolved
    index: dict[str, np.ndarray]
    shares: dict[str, float]
    own: dict[str, float] = field(default_factory=dict)


def factors(model: Any, layers: Sequence[TrackedLayer], rows: Sequence[Part]) -> tuple[Eigenbasis, list[np.ndarray]]:
    """Fit the eigenbasis and EK-FAC's eigenvalues to all rows, with sampled labels."""
    settings = FactorSettings()
    groups = [collate(rows[start : start + 8], PAD_ID) for start in range(0, len(rows), 8)]

    def sampled(number: int) -> Any:
        return lambda model, batch: fisher_loss(TASK, "sampled", model, batch, settings.label_seed(number))

    with CovarianceFit(model, layers, settings) as covariance:
        for number, batch in enumerate(groups):
            covariance.add(sampled(number), batch, batch.attention_mask)
    basis = decompose(covariance.sums)
    with EigenvalueFit(model, layers, basis) as squares:
        for number, batch in enumerate(groups):
            squares.add(sampled(number), batch)
    return basis, [values.flatten().numpy() for values in squares.sums.eigenvalues()]


def score(model: Any, rows: Sequence[Part], queries: Sequence[Part]) -> Found:
    """Score every row for every query, exactly and by every index."""
    started, layers = time.perf_counter(), tracked_layers(model)
    basis, values = factors(model, layers, rows)
    log.info("factors after %.0f s", time.perf_counter() - started)
    shares = {f"{share:g} of the mean": float(share) for share in SHARES} | {"bounded": bounded_share(basis, len(rows))}
    settings = ProjectionSettings(p=64, q=64, rows="whitened")
    makers = {name: Projection(settings, Whitening(basis, share)) for name, share in shares.items()}
    makers |= {"raw": Projection(ProjectionSettings(p=64, q=64)), "logra": Projection(ProjectionSettings())}
    counts, sinks = np.zeros((len(values), len(MIDDLES)), np.int64), []
    means = np.array([found.mean() for found in values])
    for number, (found, layer, own) in enumerate(zip(values, layers, basis.modules, strict=True)):
        bins = np.clip(np.digitize(np.log10(found / means[number] + 1e-30), EDGES) - 1, 0, len(MIDDLES) - 1)
        counts[number] = np.bincount(bins, minlength=len(MIDDLES))
        sides = {name: maker.sides(layer.name, layer.inputs, layer.outputs) for name, maker in makers.items()}
        sinks.append(Sink(layer, own, torch.from_numpy(np.argsort(bins, kind="stable")), sides))
    found = _multiplied(model, rows, queries, sinks, counts, means)
    found.shares = shares
    log.info("scores after %.0f s", time.perf_counter() - started)
    return found


def _multiplied(
    model: Any, rows: Sequence[Part], queries: Sequence[Part], sinks: Sequence[Sink], counts: np.ndarray, means: Any
) -> Found:
    """Multiply queries' gradients and rows', in one pass over each."""
    shape = (len(sinks), len(MIDDLES), len(queries), len(rows))
    products, squares = np.zeros(shape, np.float32), np.zeros((*shape[:2], shape[3]), np.float32)
    index = {f"{name}{bits}": np.zeros(shape[2:]) for name in sinks[0].sides for bits in ("", ", one bit")}
    own, small_rows = dict.fromkeys(sinks[0].sides, 0.0), [list[Tensor]() for _ in sinks]
    with Hooks(model, [sink.layer for sink in sinks], sinks) as hooks:
        asked = []
        for part in queries:
            hooks.run(TASK.example_loss, collate([part], PAD_ID))
            asked.append([(sink.whole, dict(sink.sketches)) for sink in sinks])
        whole = [torch.cat([each[number][0] for each in asked]) for number in range(len(sinks))]
        sketched = [
            {name: torch.cat([each[number][1][name] for each in asked]) for name in sink.sides}
            for number, sink in enumerate(sinks)
        ]
        del asked
        for start in range(0, len(rows), 8):
            there = slice(start, min(start + 8, len(rows)))
            hooks.run(TASK.example_loss, collate(rows[there], PAD_ID))
            for number, sink in enumerate(sinks):
                edge = 0
                for place in np.flatnonzero(counts[number]):
                    taken = slice(edge, edge + int(counts[number, place]))
                    products[number, place, :, there] = whole[number][:, taken] @ sink.whole[:, taken].T
                    squares[number, place, there] = sink.whole[:, taken].square().sum(dim=1)
                    edge = taken.stop
                small_rows[number].append(sink.sketches["logra"])
                for name, sketch in sink.sketches.items():
                    length = sketch.square().sum(dim=1, keepdim=True)
                    coded = torch.where(sketch < 0, -1.0, 1.0) * length / sketch.abs().sum(dim=1, keepdim=True)
                    index[name][:, there] += (sketched[number][name] @ sketch.T).numpy() / len(rows)
                    index[f"{name}, one bit"][:, there] += (sketched[number][name] @ coded.T).numpy() / len(rows)
                    own[name] += float(length.sum()) / len(rows) ** 2
    del index["logra, one bit"]
    index["logra"] = _fisher([each["logra"] for each in sketched], [torch.cat(each) for each in small_rows])
    return Found(Resolved(products, squares, counts, means), index, {}, own)


def _fisher(queries: Sequence[Tensor], rows: Sequence[Tensor], damping: float = 0.1) -> np.ndarray:
    """Return scores under each module's projected Fisher."""
    total = np.zeros((len(queries[0]), len(rows[0])))
    for asked, held in zip(queries, rows, strict=True):
        fisher = held.double().T @ held.double() / len(held)
        damped = fisher + damping * fisher.diagonal().mean() * torch.eye(len(fisher))
        total += (asked.double() @ torch.linalg.solve(damped, held.double().T)).numpy() / len(held)
    return total


def best(scores: np.ndarray, count: int) -> list[set[int]]:
    """Return the best rows of every query."""
    return [set(row.tolist()) for row in np.argsort(-scores, axis=1)[:, :count]]


def table(trial: Trial, found: Found, causes: Sequence[np.ndarray], lds: Callable[[np.ndarray], float] | None) -> str:
    """Return the figures of one trial as text."""
    exact = {"bounded": of_losses(found.exact, trial), ".01": 0.01 * found.exact.means}
    right = {name: best(found.exact.scores(damping), 10) for name, damping in exact.items()}
    shown = {f"exact, {share:g} of the mean": found.exact.scores(share * found.exact.means) for share in SHARES}
    shown["exact, bounded"] = found.exact.scores(exact["bounded"])
    shown["exact, rate and steps"] = found.exact.scores(of_training(found.exact, trial))
    head = f"{trial.name}: {len(trial.rows)} rows, {len(trial.queries)} queries"
    lines = [f"{head}; the index's bounded c is {found.shares['bounded']:.3g}"]
    for name, scores in {**shown, **found.index}.items():
        line = f"{name:28s}"
        if causes:
            there = [len(rows & set(own.tolist())) for rows, own in zip(best(scores, 10), causes, strict=True)]
            line += f"  planted {sum(there):3d} of {10 * len(causes)} {there}"
        for reference, rows in right.items():
            shares = [np.mean([len(a & b) / 10 for a, b in zip(best(scores, k), rows, strict=True)]) for k in (10, 50)]
            line += f"  exact {reference} {shares[0]:.2f} {shares[1]:.2f}"
        line += f"  best {np.median(scores.max(axis=1)):.3g}"
        line += f"  self {found.own[name]:.3g}" if name in found.own else ""
        lines.append(line + (f"  LDS {lds(scores):.3f}" if lds else ""))
    return "\n".join(lines)


def single_steps(trial: Trial, found: Found, rate: float, count: int) -> str:
    """Take one AdamW step on each query's best row, alone, and compare what it changes with the exact scores."""
    dampings = {
        ".01 of the mean": 0.01 * found.exact.means,
        "bounded": of_losses(found.exact, trial),
        "rate and steps": of_training(found.exact, trial),
    }
    scores = {name: found.exact.scores(damping) for name, damping in dampings.items()}
    before, state = trial.log_likelihoods(), {name: w.clone() for name, w in trial.model.state_dict().items()}
    lines = ["one AdamW step on a query's best row: log p before, its change, and the scores"]
    for query in range(min(count, len(trial.queries))):
        row = int(scores["bounded"][query].argmax())
        train(trial.model, [trial.rows[row]], np.ones(1), Fit(1, rate))
        change = trial.log_likelihoods()[query] - before[query]
        trial.model.load_state_dict(state)
        promised = "  ".join(f"{name} {values[query, row]:.3g}" for name, values in scores.items())
        lines.append(f"query {query}, row {row}: {before[query]:.2f}  {change:+.2f}  {promised}")
    return "\n".join(lines)


def halves(trial: Trial) -> Callable[[np.ndarray], float] | None:
    """Train on random halves of the rows, and return what scores' LDS over them is."""
    if not trial.halves:
        return None
    subsets, outputs = [half_subset(len(trial.rows), number) for number in range(trial.halves)], []
    for number, subset in enumerate(subsets):
        weights = np.zeros(len(trial.rows))
        weights[subset] = 1
        trial.again(weights, 1 + number if trial.other_seeds else trial.fit.seed)
        outputs.append(trial.log_likelihoods())
    members = membership(subsets, len(trial.rows))
    return lambda scores: linear_datamodeling_score(scores, members, np.array(outputs)).score


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="jsonl with a column text")
    parser.add_argument("--model", type=Path, help="folder of a chat model of Llama's architecture")
    parser.add_argument("--trials", nargs="+", default=["scratch", "tuned", "planted"])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--halves", type=int, default=12)
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=5e-4)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    read = [json.loads(line)["text"] for line in options.data.read_text(encoding="utf-8").splitlines()]
    for name in options.trials:
        causes: list[np.ndarray] = []
        if name != "planted":
            texts = [read[place] for place in np.random.default_rng(0).permutation(len(read)).tolist()]
            trial = small(texts, name == "tuned", options)
        elif options.model is not None:
            trial, causes = planted(options.model, read, options)
        else:
            continue
        found = score(trial.model, trial.rows, trial.queries)
        # Half-trainings leave the model trained on a half, and the rule of the rows' losses asks the trained one.
        state = {key: weight.clone() for key, weight in trial.model.state_dict().items()}
        lds = halves(trial)
        trial.model.load_state_dict(state)
        steps = single_steps(trial, found, options.rate, 8)
        print(table(trial, found, causes, lds), steps, sep="\n", flush=True)


if __name__ == "__main__":
    main()
