"""Which damping gives exact EK-FAC scores that are nats: predictions held against trainings with one row counted twice.

    nice -n 10 python scripts/benchmarks/damping.py --data paragraphs.jsonl [--model FOLDER] [--out figures.json]

Three trials. `scratch`: a model of two blocks trained from random weights; `tuned`: the same trained on other rows
before; `pretrained`, with --model: the last blocks of a causal language model fine-tuned on short rows, the blocks
before them frozen (their outputs are computed once). Every trial scores every row for every query under every rule,
and measures:

    copies      the queries' log-likelihoods after a training in which one row counts twice, all else alike
    halves      the same on random halves of the rows (not for `pretrained`): the linear datamodeling score

One eigendecomposition serves all rules: products of rotated gradients are summed by bins of Λ/mean(Λ), a tenth of a
decade each, and a rule divides each bin by Λ + λ.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frozen_blocks import append_rows, last_blocks
from scipy.stats import rankdata
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from influence.curvature.covariance import CovarianceFit, FactorSettings
from influence.curvature.ekfac import EigenvalueFit
from influence.curvature.kfac import decompose
from influence.data.batch import collate
from influence.data.tokenise import NOT_SCORED, Part
from influence.demo.train import PAD_ID, train_tokeniser
from influence.evaluate.lds import linear_datamodeling_score
from influence.evaluate.subsets import half_subset, membership
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import tracked_layers
from influence.task import CausalLM, fisher_loss

log = logging.getLogger("damping")
TASK = CausalLM()
EDGES = np.arange(-10, 6.05, 0.1)
"""log10 of Λ/mean(Λ) at the bins' edges."""
MIDDLES = 10 ** ((EDGES[1:] + EDGES[:-1]) / 2)


@dataclass(frozen=True)
class Fit:
    """One way of training: AdamW at a constant rate, batches of rows in an order that the seed decides."""

    epochs: int
    rate: float
    batch: int = 8
    seed: int = 0

    def steps(self, rows: int) -> int:
        """How many steps it takes."""
        return self.epochs * -(-rows // self.batch)


@dataclass(frozen=True)
class Trial:
    """What one table is about.

    Attributes:
        name: Of the trial.
        model: Trained on all rows.
        rows: What it was trained on.
        queries: What is measured.
        fit: How.
        again: Trains with each row's weight and a seed, leaves the model so.
        halves: How many half-trainings.
        other_seeds: Whether each half has a seed of its own.
    """

    name: str
    model: Any
    rows: Sequence[Part]
    queries: Sequence[Part]
    fit: Fit
    again: Callable[[np.ndarray, int], None]
    halves: int
    other_seeds: bool

    def log_likelihoods(self) -> np.ndarray:
        """Log p of every query under the model as it is, [queries]."""
        with torch.no_grad():
            return np.array([-float(TASK.example_loss(self.model, collate([part], PAD_ID))) for part in self.queries])


def train(model: nn.Module, parts: Sequence[Part], weights: np.ndarray, fit: Fit) -> None:
    """Train what requires a gradient; a row of weight 0 isn't there, one of weight 2 counts twice in its batch."""
    generator = np.random.default_rng(fit.seed)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=fit.rate, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(fit.epochs):
        order = [row for row in generator.permutation(len(parts)).tolist() if weights[row] > 0]
        for start in range(0, len(order), fit.batch):
            chosen = order[start : start + fit.batch]
            batch = collate([parts[row] for row in chosen], PAD_ID)
            losses = TASK.example_loss(model, batch) * torch.tensor(weights[chosen], dtype=torch.float32)
            (losses.sum() / sum(parts[row].scored for row in chosen)).backward()
            optimiser.step()
            optimiser.zero_grad()


@dataclass(frozen=True)
class Resolved:
    """Products of rotated gradients of queries and rows, by module and bin of Λ.

    Attributes:
        products: [modules, bins, queries, rows].
        squares: Of the rows with themselves, [modules, bins, rows].
        counts: Eigenvalues in a bin, [modules, bins].
        means: mean(Λ), [modules].
    """

    products: np.ndarray
    squares: np.ndarray
    counts: np.ndarray
    means: np.ndarray

    @property
    def eigenvalues(self) -> np.ndarray:
        """Λ at the middle of every bin, [modules, bins]."""
        return self.means[:, None] * MIDDLES

    @property
    def rows(self) -> int:
        """N."""
        return self.products.shape[3]

    def scores(self, dampings: np.ndarray) -> np.ndarray:
        """Exact scores under λ of each module, [queries, rows], in nats per extra copy."""
        inverse = 1 / (self.eigenvalues + dampings[:, None])
        return np.einsum("mbqr,mb->qr", self.products, inverse, optimize=True) / self.rows

    def self_influence(self, dampings: np.ndarray) -> np.ndarray:
        """What a row's copy does to the row itself, [rows]."""
        inverse = 1 / (self.eigenvalues + dampings[:, None])
        return np.einsum("mbr,mb->r", self.squares, inverse, optimize=True) / self.rows

    def dimension(self, dampings: np.ndarray) -> float:
        """Σ Λ / (Λ + λ): N times the mean self-influence of rows whose labels the model drew."""
        values = self.eigenvalues
        return float((self.counts * values / (values + dampings[:, None])).sum())


def resolve(model: nn.Module, rows: Sequence[Part], queries: Sequence[Part]) -> Resolved:
    """Fit EK-FAC with sampled labels to all rows and multiply rotated gradients, bin by bin."""
    layers = tracked_layers(model)
    settings = FactorSettings()
    groups = [rows[start : start + 8] for start in range(0, len(rows), 8)]

    def sampled(number: int) -> Any:
        return lambda model, batch: fisher_loss(TASK, "sampled", model, batch, settings.label_seed(number))

    with CovarianceFit(model, layers, settings) as covariance:
        for number, group in enumerate(groups):
            batch = collate(group, PAD_ID)
            covariance.add(sampled(number), batch, batch.attention_mask)
    basis = decompose(covariance.sums)
    with EigenvalueFit(model, layers, basis) as squares:
        for number, group in enumerate(groups):
            squares.add(sampled(number), collate(group, PAD_ID))
    values = [found.flatten().numpy() for found in squares.sums.eigenvalues()]
    means = np.array([found.mean() for found in values])
    orders, counts = [], np.zeros((len(values), len(MIDDLES)), np.int64)
    for number, found in enumerate(values):
        bins = np.clip(np.digitize(np.log10(found / means[number] + 1e-30), EDGES) - 1, 0, len(MIDDLES) - 1)
        orders.append(torch.from_numpy(np.argsort(bins, kind="stable")))
        counts[number] = np.bincount(bins, minlength=len(MIDDLES))

    with Capture(model, layers, Projection(ProjectionSettings(kind="none"))) as capture:
        columns = capture.modules

        def rotated(parts: Sequence[Part]) -> list[Tensor]:
            gradients = capture(TASK.example_loss, collate(parts, PAD_ID))[0]
            found = []
            for module, own, order in zip(columns, basis.modules, orders, strict=True):
                block = gradients[:, module.start : module.stop].unflatten(1, (module.q, module.p))
                found.append(own.rotate(block).flatten(1)[:, order])
            return found

        asked = [torch.cat(blocks) for blocks in zip(*(rotated([part]) for part in queries), strict=True)]
        products = np.zeros((len(values), len(MIDDLES), len(queries), len(rows)), np.float32)
        own = np.zeros((len(values), len(MIDDLES), len(rows)), np.float32)
        for group, start in zip(groups, range(0, len(rows), 8), strict=True):
            there = slice(start, start + len(group))
            for number, block in enumerate(rotated(group)):
                edge = 0
                for place in np.flatnonzero(counts[number]):
                    taken = slice(edge, edge + int(counts[number, place]))
                    products[number, place, :, there] = asked[number][:, taken] @ block[:, taken].T
                    own[number, place, there] = block[:, taken].square().sum(dim=1)
                    edge = taken.stop
    return Resolved(products, own, counts, means)


Rule = Callable[[Resolved, Trial], np.ndarray]


def relative(share: float) -> Rule:
    """λ = c · mean(Λ)."""
    return lambda resolved, trial: share * resolved.means


def of_trace(share: float) -> Rule:
    """The λ under which this share of the module's trace lies."""

    def rule(resolved: Resolved, trial: Trial) -> np.ndarray:
        trace = np.cumsum(resolved.counts * resolved.eigenvalues, axis=1)
        places = (trace < share * trace[:, -1:]).sum(axis=1)
        return resolved.eigenvalues[np.arange(len(places)), places]

    return rule


def of_dimension(per_row: float, least: float = 0.01) -> Rule:
    """The smallest c of at least `least` for which Σ Λ/(Λ + c·mean(Λ)) is at most this many a row."""

    def rule(resolved: Resolved, trial: Trial) -> np.ndarray:
        shares = 10 ** np.arange(np.log10(least), 9, 0.02)
        fits = [share for share in shares if resolved.dimension(share * resolved.means) <= per_row * resolved.rows]
        return fits[0] * resolved.means

    return rule


def of_training(resolved: Resolved, trial: Trial) -> np.ndarray:
    """λ = √(mean(Λ)/B) / (ηT): T Adam steps of rate η, each gradient divided by the root of its batch's noise."""
    steps = trial.fit.steps(resolved.rows)
    return np.sqrt(resolved.means / trial.fit.batch) / (trial.fit.rate * steps)


def of_losses(resolved: Resolved, trial: Trial) -> np.ndarray:
    """The default: as `of_dimension`, with a row's mean loss: its copy can't raise its own log-likelihood by more."""
    with torch.no_grad():
        losses = [float(TASK.example_loss(trial.model, collate([part], PAD_ID))) for part in trial.rows]
    return of_dimension(float(np.mean(losses)))(resolved, trial)


RULES: Mapping[str, Rule] = {
    **{f"{share:g} of the mean": relative(share) for share in (0.001, 0.01, 0.1, 1, 10, 100, 1000)},
    **{f"{share:g} of the trace": of_trace(share) for share in (0.01, 0.1, 0.3, 0.5, 0.9)},
    **{f"{count:g} dimensions a row": of_dimension(count) for count in (10, 3, 1, 0.3, 0.1, 0.03)},
    "a row's mean loss": of_losses,
    "rate and steps": of_training,
}


def examine(trial: Trial, copies: int) -> dict[str, Any]:
    """Measure one trial and hold every rule to it."""
    started = time.perf_counter()
    resolved = resolve(trial.model, trial.rows, trial.queries)
    log.info("%s: gradients in %.0f s", trial.name, time.perf_counter() - started)
    base = trial.log_likelihoods()
    everyone = np.ones(len(trial.rows))
    middle = resolved.scores(of_dimension(1)(resolved, trial))
    best = middle.max(axis=0).argsort()[::-1][: copies // 2].tolist()
    others = [row for row in np.random.default_rng(1).permutation(len(trial.rows)).tolist() if row not in best]
    chosen = best + others[: copies - len(best)]
    measured = []
    for row in chosen:
        weights = everyone.copy()
        weights[row] = 2
        trial.again(weights, trial.fit.seed)
        measured.append(trial.log_likelihoods() - base)
        log.info("%s: row %d twice after %.0f s", trial.name, row, time.perf_counter() - started)
    outputs, subsets = [], []
    for number in range(trial.halves):
        subsets.append(half_subset(len(trial.rows), number))
        weights = np.zeros(len(trial.rows))
        weights[subsets[-1]] = 1
        trial.again(weights, 1 + number if trial.other_seeds else trial.fit.seed)
        outputs.append(trial.log_likelihoods())
    if trial.halves:
        log.info("%s: %d halves after %.0f s", trial.name, trial.halves, time.perf_counter() - started)
    found = {
        "trial": trial.name,
        "rows": len(trial.rows),
        "queries": len(trial.queries),
        "steps": trial.fit.steps(len(trial.rows)),
    }
    found |= {"log_likelihoods": base.tolist(), "measured": np.array(measured).tolist(), "rules": {}}
    for name, rule in RULES.items():
        dampings = rule(resolved, trial)
        scores = resolved.scores(dampings)
        line = _held(scores, scores[:, chosen], np.array(measured).T, base)
        line |= {
            "share": float(np.median(dampings / resolved.means)),
            "dimension": resolved.dimension(dampings) / resolved.rows,
        }
        line["self"] = float(np.median(resolved.self_influence(dampings)))
        if trial.halves:
            lds = linear_datamodeling_score(scores, membership(subsets, len(trial.rows)), np.array(outputs))
            line |= {"lds": lds.score, "lds_error": lds.query_error}
        found["rules"][name] = line
    return found


def _held(scores: np.ndarray, predicted: np.ndarray, measured: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """Compare predictions [queries, rows] with measured changes."""
    slope = float((predicted * measured).sum() / (predicted**2).sum())
    return {
        "best": float(np.median(scores.max(axis=1))),
        "beyond": float((scores.max(axis=1) > -base).mean()),
        "ratio": float(np.sqrt((predicted**2).mean() / (measured**2).mean())),
        "slope": slope,
        "correlation": float(np.corrcoef(predicted.ravel(), measured.ravel())[0, 1]),
        "rank": float(np.corrcoef(rankdata(predicted), rankdata(measured))[0, 1]),
    }


def parts_of(tokens: Sequence[Sequence[int]], prompts: Sequence[int] | None = None) -> list[Part]:
    """Rows as parts, all but the first token scored, or all behind a prompt of so many."""
    found = []
    for position, ids in enumerate(tokens):
        labels = np.asarray(ids, np.int32).copy()
        labels[: 1 if prompts is None else prompts[position]] = NOT_SCORED
        found.append(Part(position, np.asarray(ids, np.int32), labels))
    return found


def small(texts: Sequence[str], tuned: bool, options: argparse.Namespace) -> Trial:
    """The trial of a small model: 300 rows, from random weights or trained on others before."""
    tokeniser = train_tokeniser(list(texts), 1024)
    ids = [tokens for tokens in tokeniser(list(texts), verbose=False)["input_ids"] if len(tokens) >= 48]
    rows, count = ids[: options.rows], options.rows
    lengths = np.random.default_rng(0).integers(24, 49, count)
    parts = parts_of([tokens[:length] for tokens, length in zip(rows, lengths, strict=True)])
    queries = parts_of([tokens[:48] for tokens in ids[count : count + options.queries]])
    before = parts_of([tokens[:48] for tokens in ids[count + options.queries :][:1200]])
    config = LlamaConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    fit = Fit(2, 1e-3) if tuned else Fit(5, 3e-3)

    def fresh(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)

    model = fresh(0)
    if tuned:
        train(model, before, np.ones(len(before)), Fit(4, 3e-3))
    start = {name: weight.clone() for name, weight in model.state_dict().items()}

    def again(weights: np.ndarray, seed: int) -> None:
        model.load_state_dict(start if tuned else fresh(seed).state_dict())
        train(model, parts, weights, Fit(fit.epochs, fit.rate, fit.batch, seed))

    again(np.ones(count), 0)
    return Trial("tuned" if tuned else "scratch", model, parts, queries, fit, again, options.halves, not tuned)


def pretrained(folder: Path, texts: Sequence[str], options: argparse.Namespace) -> Trial:
    """The trial of a real model's last blocks; what is asked is what it says itself after fine-tuning."""
    tokeniser = AutoTokenizer.from_pretrained(folder)
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [tokens for tokens in tokeniser(list(texts), verbose=False)["input_ids"] if len(tokens) >= options.tokens]
    rows = [tokens[: options.tokens] for tokens in ids[: options.tuned_rows]]
    prompts = [tokens[:10] for tokens in ids[options.tuned_rows :][: options.tuned_queries]]
    tail = last_blocks(whole, options.layers)
    start = {
        name: weight.clone() for name, weight in tail.state_dict().items() if weight.requires_grad or "layers" in name
    }
    fit = Fit(options.epochs, options.rate)

    parts = append_rows(whole, tail, rows, [1] * len(rows))

    def again(weights: np.ndarray, seed: int) -> None:
        tail.load_state_dict(start, strict=False)
        train(tail, parts, weights, Fit(fit.epochs, fit.rate, fit.batch, seed))

    again(np.ones(len(parts)), 0)
    length: Any = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    said = [whole.generate(torch.tensor([each]), **length)[0].tolist() for each in prompts]
    queries = append_rows(whole, tail, said, [10] * len(said))
    for each in said:
        log.info("asked: %r", tokeniser.decode(each))
    return Trial("pretrained", tail, parts, queries, fit, again, 0, other_seeds=False)


COLUMNS = ("share", "dimension", "self", "best", "beyond", "ratio", "slope", "correlation", "rank", "lds", "lds_error")


def table(found: Mapping[str, Any]) -> str:
    """The figures of one trial as text."""
    head = f"{found['trial']}: {found['rows']} rows, {found['queries']} queries, {found['steps']} steps"
    lines = [head, f"{'rule':24s}" + "".join(f"{name:>12s}" for name in COLUMNS)]
    for name, line in found["rules"].items():
        lines.append(f"{name:24s}" + "".join(f"{line.get(column, float('nan')):12.3g}" for column in COLUMNS))
    return "\n".join(lines)


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="jsonl with a column text")
    parser.add_argument("--model", type=Path, help="folder of a causal language model")
    parser.add_argument("--trials", nargs="+", default=["scratch", "tuned", "pretrained"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--halves", type=int, default=16)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--tuned-rows", type=int, default=96)
    parser.add_argument("--tuned-queries", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2e-4)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    read = [json.loads(line)["text"] for line in options.data.read_text(encoding="utf-8").splitlines()]
    texts = [read[place] for place in np.random.default_rng(0).permutation(len(read)).tolist()]
    found = []
    for name in options.trials:
        if name != "pretrained":
            trial = small(texts, name == "tuned", options)
        elif options.model is not None:
            trial = pretrained(options.model, texts, options)
        else:
            continue
        found.append(examine(trial, options.copies))
        print(table(found[-1]), flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
