"""How often the champion gate passes, fails or cannot tell a challenger whose true gain is known.

The world is binormal: of a row with label y a model sees strength · y + noise, with noise of variance 1, and says the
true probability of y given that. Its area under the ROC curve is Φ(strength / √2), its accuracy and its log loss follow
from the same normal distributions, so the strength that is better or worse by exactly the margin is solved for, not
simulated; ``gain_error_max`` is how far the mean measured gain came from it. The champion's AUC is 0.78, 24% of the
rows are positive. The noise of champion and challenger has correlation 0.9. Each repetition draws a holdout anew and
judges challengers of all true gains on it, so the cells of one line of a table share their rows.

Clustered rows: entities of 20 rows on average, of very unequal size and very unequal share of positives, and a part of
the noise is an entity's own, so that a model errs in the same direction on all its rows. Each row's noise still has
variance 1, so the true gains stay what they are (but for the few pairs of rows within an entity).

The other kinds of targets (``--only kinds``) have worlds of their own. Of three equally frequent classes a model sees
three numbers with noise of variance 1, that of the true class raised by strength; by symmetry its macro F1 is its
accuracy, a normal integral. Of a standard normal number it says the number and a normal error, so that its RMSE is the
error's standard deviation and its R² is one less the error's variance. Noises and errors of champion and challenger
have correlation 0.9 here too.

Beside the gate, on the same rows: the float comparison of most templates, which passes a challenger that measures no
less than the champion, and one that passes it as long as the two models' separate 95% intervals overlap.

A full run writes the tables into docs/error-rates.md.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # every core has its own repetition

import numpy as np
from _figures import HERE, Figures, arguments
from drift_errors import interval, markdown
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtr, ndtri, softmax
from scipy.stats import norm

from clearway.target import BINARY, Target

SEED = 2013
MARGIN, CONFIDENCE, RESAMPLES = 0.01, 0.95, 400
"""As ``gates`` in params.yaml comes."""
AUC, POSITIVE, CORRELATION = 0.78, 0.24, 0.9
THRESHOLD = 0.5
CLASSES, ACCURACY, R2 = 3, 0.7, 0.6
"""Of the worlds of several classes and of numbers: how many classes there are, and how good the champion is."""
HOLDOUTS = (500, 1_000, 2_000, 5_000, 12_000, 26_000, 50_000)
GAINS = {"equal": 0, "worse by the margin": -1, "worse by twice the margin": -2, "better by the margin": 1}
"""True gains, in margins."""
ENTITY_ROWS, OWN_NOISE, LABEL_UNITY = 20, 0.5, 2.0
"""Rows of an entity on average; its part of the noise; how alike entities are (parameters of a beta add up to it)."""
OTHERS = 1_000
"""Repetitions, at most, of the other two ways to compare."""
STATUSES = ("pass", "fail", "unknown")
PARTS = ("binary", "kinds")
NAMES = {
    "binary": {"roc_auc": "AUC", "accuracy": "accuracy", "log_loss": "log loss"},
    "kinds": {
        "multiclass/accuracy": "accuracy of three classes",
        "multiclass/f1_macro": "macro F1 of three classes",
        "regression/r2": "R² of numbers",
        "regression/rmse": "RMSE of numbers",
    },
}
"""By part of this benchmark, metrics and how they are called."""

PAGE = HERE.parent / "docs" / "error-rates.md"
MARKS = {
    "binary": ("<!-- tables: benchmarks/gate_errors.py -->", "<!-- end of gate tables -->"),
    "kinds": ("<!-- tables: benchmarks/gate_errors.py --only kinds -->", "<!-- end of tables of kinds -->"),
}

Cell = tuple[str, str, int, str]
"""What was compared (a metric), by which judge, rows, and the true gain."""


@dataclass(frozen=True)
class Plan:
    """Repetitions by rows of the holdout."""

    independent: dict[int, int]
    """AUC and accuracy."""
    resampled: dict[int, int]
    """Log loss, by the bootstrap."""
    clustered: dict[int, int]
    """AUC of rows that share entities."""
    clustered_resampled: dict[int, int]
    """Accuracy of the same."""
    classes: dict[int, int]
    """Accuracy of several classes."""
    kinds_resampled: dict[int, int]
    """Macro F1 of several classes, and both metrics of numbers, by the bootstrap."""


FULL = Plan(
    independent=dict.fromkeys(HOLDOUTS, 2_000),
    resampled={rows: 200 if rows <= 5_000 else 50 for rows in HOLDOUTS},
    clustered={500: 2_000, 1_000: 2_000, 2_000: 2_000, 5_000: 2_000, 12_000: 1_000, 50_000: 500},
    clustered_resampled=dict.fromkeys((500, 2_000, 12_000), 200),
    classes=dict.fromkeys(HOLDOUTS, 2_000),
    kinds_resampled={500: 200, 2_000: 200, 5_000: 200, 12_000: 100, 50_000: 50},
)
QUICK = Plan({500: 400, 12_000: 150}, {500: 20}, {2_000: 200}, {500: 20}, {500: 200, 12_000: 50}, {500: 10})


# The world: models whose every metric is known.


def auc_of(strength: float) -> float:
    return float(ndtr(strength / np.sqrt(2)))


def accuracy_of(strength: float) -> float:
    """Answering yes from a probability of ``THRESHOLD``."""
    limit = strength / 2 + (logit(THRESHOLD) - logit(POSITIVE)) / strength
    return float(POSITIVE * ndtr(strength - limit) + (1 - POSITIVE) * ndtr(limit))


def log_loss_of(strength: float) -> float:
    def loss(noise: float, label: float) -> float:
        signed = _logits(strength * label + noise, strength) * (1 - 2 * label)
        return float(np.logaddexp(0, signed) * norm.pdf(noise))

    sides = [quad(loss, -12, 12, args=(label,), epsabs=1e-10)[0] for label in (0.0, 1.0)]
    return float((1 - POSITIVE) * sides[0] + POSITIVE * sides[1])


def class_accuracy_of(strength: float) -> float:
    """That the true class's number is the largest."""

    def largest(noise: float) -> float:
        return float(norm.pdf(noise) * ndtr(noise + strength) ** (CLASSES - 1))

    return float(quad(largest, -12, 12, epsabs=1e-10)[0])


TRUTH: dict[str, tuple[Callable[[float], float], int]] = {
    "roc_auc": (auc_of, 1),
    "accuracy": (accuracy_of, 1),
    "log_loss": (log_loss_of, -1),
    "multiclass/accuracy": (class_accuracy_of, 1),
    "multiclass/f1_macro": (class_accuracy_of, 1),
    "regression/r2": (lambda error: 1 - error**2, 1),
    "regression/rmse": (lambda error: error, -1),
}
"""By metric: its true value, and +1 where more is better."""
CHAMPION = float(np.sqrt(2) * ndtri(AUC))


@cache
def champion_of(metric: str) -> float:
    """The strength of the champion of a metric's world; of numbers its error."""
    if metric.startswith("multiclass/"):
        return float(brentq(lambda strength: class_accuracy_of(strength) - ACCURACY, 0.2, 3.0, xtol=1e-12))
    return float(np.sqrt(1 - R2)) if metric.startswith("regression/") else CHAMPION


@cache
def strength_of(metric: str, gain: str) -> float:
    """The strength of a challenger that truly gains so much over the champion."""
    value, sign = TRUTH[metric]
    wanted = value(champion_of(metric)) + sign * GAINS[gain] * MARGIN
    return float(brentq(lambda strength: value(strength) - wanted, 0.2, 3.0, xtol=1e-12))


def _logits(seen: Any, strength: float) -> Any:
    return strength * seen - strength**2 / 2 + logit(POSITIVE)


@dataclass(frozen=True)
class Sample:
    """A holdout: labels, and what disturbs champion and challenger on each row."""

    labels: np.ndarray
    noises: tuple[np.ndarray, np.ndarray]
    groups: np.ndarray | None = None
    target: Target = BINARY

    def scores(self, metric: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Of the champion, and of the challengers by their true gain."""
        theirs, ours = self.noises
        challengers = {gain: self._scores(ours, strength_of(metric, gain)) for gain in GAINS}
        return self._scores(theirs, champion_of(metric)), challengers

    def _scores(self, noise: np.ndarray, strength: float) -> np.ndarray:
        if self.target.kind == "regression":
            return self.labels + strength * noise
        if self.target.kind == "multiclass":
            return softmax(strength * (strength * (self.labels[:, None] == np.arange(CLASSES)) + noise), axis=1)
        return expit(_logits(strength * self.labels + noise, strength))


def _correlated(random: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    one, other = random.normal(size=(2, *shape))
    return one, CORRELATION * one + np.sqrt(1 - CORRELATION**2) * other


def independent(rows: int, repetition: int) -> Sample:
    random = np.random.default_rng((SEED, rows, repetition))
    return Sample((random.random(rows) < POSITIVE).astype(float), _correlated(random, rows))


def clustered(rows: int, repetition: int) -> Sample:
    random = np.random.default_rng((SEED, 1, rows, repetition))
    entities = rows // ENTITY_ROWS
    groups = random.choice(entities, rows, p=random.dirichlet(np.ones(entities)))
    shares = random.beta(LABEL_UNITY * POSITIVE, LABEL_UNITY * (1 - POSITIVE), entities)
    labels = (random.random(rows) < shares[groups]).astype(float)
    own, rest = _correlated(random, entities), _correlated(random, rows)
    noises = [np.sqrt(OWN_NOISE) * a[groups] + np.sqrt(1 - OWN_NOISE) * b for a, b in zip(own, rest, strict=True)]
    return Sample(labels, (noises[0], noises[1]), groups)


def classes(rows: int, repetition: int) -> Sample:
    random = np.random.default_rng((SEED, 2, rows, repetition))
    labels = random.integers(0, CLASSES, rows).astype(float)
    names = tuple("abcdefgh"[:CLASSES])
    return Sample(labels, _correlated(random, rows, CLASSES), target=Target(kind="multiclass", classes=names))


def numbers(rows: int, repetition: int) -> Sample:
    random = np.random.default_rng((SEED, 3, rows, repetition))
    target = Target(kind="regression", centre=0.0, spread=1.0)
    return Sample(random.normal(size=rows), _correlated(random, rows), target=target)


WORLDS = {"independent": independent, "clustered": clustered, "multiclass": classes, "regression": numbers}


# What one process measures. Each function returns plain numbers.


def separate(metric: str, labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The value of a metric, higher is better, and its standard error, of one model alone."""
    if metric in NAMES["kinds"]:
        return _separate_of_kinds(metric, labels, scores)
    if metric == "roc_auc":
        from clearway.paired import placements

        above, below = placements(labels, scores)
        return float(above.mean()), float(np.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below)))
    if metric == "accuracy":
        each = (scores >= THRESHOLD) == (labels == 1)
    else:
        each = np.where(labels == 1, np.log(scores), np.log1p(-scores))
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(labels)))


def _separate_of_kinds(metric: str, labels: np.ndarray, outputs: np.ndarray) -> tuple[float, float]:
    """By what each row adds to the metric, to first order."""
    from clearway.metrics import metric as known

    kind, name = metric.split("/")
    measured = known(name, kind=kind)
    value = measured.value(labels, outputs, THRESHOLD)
    if kind == "regression":
        squares, centred = (labels - outputs) ** 2, (labels - labels.mean()) ** 2
        spread = centred.mean()
        each = squares / (2 * value) if name == "rmse" else ((1 - value) * centred - squares) / spread
    else:
        asked, answered = (one[:, None] == np.arange(CLASSES) for one in (labels, outputs.argmax(axis=1)))
        both = asked.mean(axis=0) + answered.mean(axis=0)
        f1 = 2 * (asked & answered).mean(axis=0) / both
        rows = (2.0 * (asked & answered) - f1 * (asked.astype(float) + answered)) / both
        each = rows.mean(axis=1) if name == "f1_macro" else 1.0 * (asked & answered).any(axis=1)
    return measured.sign * value, float(each.std(ddof=1) / np.sqrt(len(labels)))


def judge(
    holdout: Any, metric: str, champion: np.ndarray, challengers: dict[str, np.ndarray]
) -> Iterator[tuple[str, str, float | None, float | None]]:
    """By true gain: the gate's status, its estimate, and the margin that it says these rows resolve."""
    from clearway.gates import champion_gate

    for gain, challenger in challengers.items():
        gate = champion_gate(holdout, metric.rpartition("/")[2], challenger, champion, MARGIN)
        resolved = None if gate.lower is None or gate.upper is None else (gate.upper - gate.lower) / 2
        yield gain, gate.status, gate.estimate, resolved


def measure(kind: str, metric: str, rows: int, repetitions: Sequence[int]) -> list[list[Any]]:
    """Each judgement: metric, judge, rows, true gain, status, estimate, resolved margin."""
    from clearway.gates import Holdout

    found: list[list[Any]] = []
    for repetition in repetitions:
        sample = WORLDS[kind](rows, repetition)
        champion, challengers = sample.scores(metric)
        holdout = Holdout(sample.labels, THRESHOLD, CONFIDENCE, RESAMPLES, repetition, target=sample.target)
        name = "gate" if sample.groups is None else "untold"
        found += [[metric, name, rows, *each] for each in judge(holdout, metric, champion, challengers)]
        if sample.groups is not None:
            holdout = replace(holdout, groups=sample.groups)
            found += [[metric, "told", rows, *each] for each in judge(holdout, metric, champion, challengers)]
        elif repetition < OTHERS:
            theirs, their_error = separate(metric, sample.labels, champion)
            for gain, challenger in challengers.items():
                ours, our_error = separate(metric, sample.labels, challenger)
                reach = ndtri(0.975) * (our_error + their_error)
                found.append([metric, "float", rows, gain, "pass" if ours >= theirs else "fail", None, None])
                found.append([metric, "overlap", rows, gain, "pass" if ours + reach >= theirs else "fail", None, None])
    return found


def summary(found: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """By cell: counts of each status, sum of estimates, median resolved margin."""
    cells: dict[Cell, list[Sequence[Any]]] = defaultdict(list)
    for metric, judged, rows, gain, *rest in found:
        cells[metric, judged, rows, gain].append(rest)
    return [
        [
            *cell,
            [sum(one[0] == status for one in all_of) for status in STATUSES],
            sum(one[1] or 0.0 for one in all_of),
            float(np.median([one[2] for one in all_of if one[2] is not None] or [np.nan])),
        ]
        for cell, all_of in cells.items()
    ]


def job(kind: str, metric: str, rows: int, repetitions: Sequence[int]) -> list[list[Any]]:
    return summary(measure(kind, metric, rows, repetitions))


# From what was measured to tables.


@dataclass
class Total:
    counts: np.ndarray
    """Of ``STATUSES``."""
    estimates: float
    resolved: list[float]

    @property
    def trials(self) -> int:
        return int(self.counts.sum())

    def rate(self, status: str) -> float:
        return float(self.counts[STATUSES.index(status)]) / self.trials


def merge(results: Sequence[Sequence[Any]]) -> dict[Cell, Total]:
    totals: dict[Cell, Total] = defaultdict(lambda: Total(np.zeros(3, int), 0.0, []))
    for metric, judged, rows, gain, counts, estimates, resolved in results:
        total = totals[metric, judged, rows, gain]
        total.counts += np.array(counts)
        total.estimates += estimates
        total.resolved.append(resolved)
    return dict(totals)


def table(totals: dict[Cell, Total], metric: str, judged: str, title: str) -> str:
    """A line for each size of holdout: shares that pass, fail and are unknown, by true gain."""
    shown = STATUSES if judged not in ("float", "overlap") else STATUSES[:2]
    sizes = sorted({rows for m, j, rows, _ in totals if (m, j) == (metric, judged)})
    lines = []
    for rows in sizes:
        cells = [totals[metric, judged, rows, gain] for gain in GAINS]
        line = [f"{rows:,}", *(" / ".join(f"{100 * cell.rate(s):.1f}" for s in shown) for cell in cells)]
        lines.append(
            [*line, *([f"{np.mean(cells[0].resolved):.4f}"] if len(shown) == 3 else []), f"{cells[0].trials:,}"]
        )
    header = ["rows", *GAINS, *(["resolves"] if len(shown) == 3 else []), "repetitions"]
    return markdown(f"{title}: {' / '.join(shown)}, %", header, lines)


def tables(totals: dict[Cell, Total], part: str) -> list[str]:
    titles = {
        "gate": "Clearway, {}",
        "float": "A float against a float, {}",
        "overlap": "Two separate 95% intervals that may overlap, {}",
        "told": "Clearway, {} of clustered rows",
        "untold": "The same rows taken as independent, {}",
    }
    made = {(m, j): None for m, j, _, _ in totals}
    return [
        table(totals, metric, judged, title.format(name))
        for judges in (("gate", "float", "overlap"), ("told", "untold"))
        for metric, name in NAMES[part].items()
        for judged, title in titles.items()
        if judged in judges and (metric, judged) in made
    ]


def _largest(totals: dict[Cell, Total]) -> Callable[..., float]:
    def largest(
        status: str, gain: str, judged: str, metrics: Sequence[str] = ("roc_auc", "accuracy"), least: int = 0
    ) -> float:
        return max(
            total.rate(status)
            for (m, j, rows, g), total in totals.items()
            if (j, g) == (judged, gain) and m in metrics and rows >= least
        )

    return largest


def record_kinds(totals: dict[Cell, Total], figures: Figures) -> None:
    largest, names = _largest(totals), list(NAMES["kinds"])
    figures.add("kinds_equal_fails_max", largest("fail", "equal", "gate", names))
    figures.add("kinds_twice_worse_passes_max", largest("pass", "worse by twice the margin", "gate", names))
    figures.add("kinds_equal_unknown_from_12000_max", largest("unknown", "equal", "gate", names, 12_000))
    classes = ["multiclass/accuracy"]
    figures.add("classes_margin_worse_passes_max", largest("pass", "worse by the margin", "gate", classes))
    figures.add("kinds_float_equal_fails_max", largest("fail", "equal", "float", names))
    figures.add("kinds_float_twice_worse_passes_max", largest("pass", "worse by twice the margin", "float", names))
    figures.add("kinds_overlap_twice_worse_passes_max", largest("pass", "worse by twice the margin", "overlap", names))
    figures.add("kinds_gain_error_max", _gain_error(totals, classes))


def _gain_error(totals: dict[Cell, Total], metrics: Sequence[str]) -> float:
    return max(
        abs(total.estimates / total.trials - GAINS[gain] * MARGIN)
        for (metric, judged, _, gain), total in totals.items()
        if judged == "gate" and metric in metrics
    )


def record(totals: dict[Cell, Total], figures: Figures) -> None:
    largest, names = _largest(totals), list(NAMES["binary"])
    figures.add("equal_fails_max", largest("fail", "equal", "gate", names))
    figures.add("twice_worse_passes_max", largest("pass", "worse by twice the margin", "gate", names))
    figures.add("margin_worse_passes_max", largest("pass", "worse by the margin", "gate"))
    figures.add("margin_worse_fails_max", largest("fail", "worse by the margin", "gate"))
    figures.add("equal_unknown_from_12000_max", largest("unknown", "equal", "gate", least=12_000))
    figures.add("clustered_equal_fails_max", largest("fail", "equal", "told"))
    figures.add("clustered_twice_worse_passes_max", largest("pass", "worse by twice the margin", "told"))
    figures.add("clustered_margin_worse_passes_max", largest("pass", "worse by the margin", "told", ["roc_auc"]))
    figures.add("untold_margin_worse_passes_max", largest("pass", "worse by the margin", "untold", ["roc_auc"]))
    figures.add("float_equal_fails_max", largest("fail", "equal", "float"))
    figures.add("float_twice_worse_passes_max", largest("pass", "worse by twice the margin", "float"))
    figures.add("overlap_twice_worse_passes_max", largest("pass", "worse by twice the margin", "overlap"))
    figures.add("gain_error_max", _gain_error(totals, ["roc_auc", "accuracy"]))
    surely = max(interval(int(t.counts[0]), t.trials)[0] for t in _at_margin(totals))
    figures.add("margin_worse_passes_surely", surely)


def _at_margin(totals: dict[Cell, Total]) -> list[Total]:
    return [
        t
        for (metric, judged, _, gain), t in totals.items()
        if metric in NAMES["binary"] and (judged, gain) == ("gate", "worse by the margin")
    ]


def quote(text: str, part: str) -> None:
    """Put the tables into the page that quotes them, between the two marks of the part."""
    first, last = MARKS[part]
    before, rest = PAGE.read_text(encoding="utf-8").split(first, 1)
    after = rest.split(last, 1)[1]
    PAGE.write_text(f"{before}{first}\n\n{text}\n{last}{after}", encoding="utf-8")


def jobs(plan: Plan, part: str) -> list[Callable[[], list[list[Any]]]]:
    """The longest first, so that the cores end together."""
    kinds = (
        ("regression", ("regression/r2", "regression/rmse"), plan.kinds_resampled, 100_000),
        ("multiclass", ("multiclass/f1_macro",), plan.kinds_resampled, 100_000),
        ("multiclass", ("multiclass/accuracy",), plan.classes, 2_000_000),
    )
    binary = (
        ("independent", ("log_loss",), plan.resampled, 100_000),
        ("clustered", ("accuracy",), plan.clustered_resampled, 200_000),
        ("independent", ("roc_auc", "accuracy"), plan.independent, 2_000_000),
        ("clustered", ("roc_auc",), plan.clustered, 2_000_000),
    )
    return [
        partial(job, kind, metric, rows, range(start, min(start + size, repetitions)))
        for kind, metrics, counts, chunk in (kinds if part == "kinds" else binary)
        for metric in metrics
        for rows, repetitions in sorted(counts.items(), reverse=True)
        for size in [max(chunk // rows, 5)]
        for start in range(0, repetitions, size)
    ]


def main() -> int:
    options = arguments((__doc__ or "").splitlines()[0], PARTS)
    parts = (options.only,) if options.only else PARTS
    plan = QUICK if options.quick else FULL
    results: list[list[Any]] = []
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
        waiting = [processes.submit(work) for part in parts for work in jobs(plan, part)]
        task = progress.add_task("repetitions", total=len(waiting))
        try:
            for done in as_completed(waiting):
                results += done.result()
                progress.advance(task)
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            raise
    totals = merge(results)
    figures = Figures("gate_errors")
    for part in parts:
        {"binary": record, "kinds": record_kinds}[part](totals, figures)
    texts = {part: "\n".join(tables(totals, part)) for part in parts}
    code = figures.finish(check=options.check, quick=options.quick, part=options.only)
    name = f"gate_errors_{options.only}" if options.only else "gate_errors"
    (HERE / "results" / f"{name}.md").write_text("\n".join(texts.values()), encoding="utf-8")
    details = [[*cell, total.counts.tolist(), total.estimates / total.trials] for cell, total in sorted(totals.items())]
    (HERE / "results" / f"{name}_details.json").write_text(json.dumps(details) + "\n", encoding="utf-8")
    for part, text in texts.items():
        if not options.quick:
            quote(text, part)
        print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
