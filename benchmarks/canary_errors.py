"""How often the canary judge rolls back the healthy, finds the harmful and cannot tell: docs/error-rates.md.

Each rollout is simulated request by request in sums and judged by the judge's own functions (``proves_harm``,
``proves_harmless``, ``decide`` of :mod:`clearway.canary`) at every look, through the default steps or at one weight.
What one version answers: errors and slow answers at a rate of their own, and a score of eight levels.

*Independent* requests each have a routing key of their own. *Sticky* ones come from 2,000 keys, some of which ask a
hundred times as often as others; half of the errors are those of a few keys, which fail at three requests in ten and
for as long as they ask, and most of the score is a key's own. What a key is stays when it moves from stable to the
canary with the weight.

Beside it, on the same traffic at one weight: a judge of fixed thresholds, as Flagger and Argo Rollouts come (at each
interval the canary's errors must be below 2% and slow answers below 5%; five failed intervals roll back), and one of
Mann and Whitney's test, as Kayenta comes (the intervals' rates of both versions so far, 98% confidence, judged at every
interval).

Intervals are those of Clopper and Pearson, 95%. A full run, 2,000 rollouts a cell, writes the tables into
docs/error-rates.md.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # every core has its own rollouts

import numpy as np
from _figures import HERE, Figures, arguments
from drift_errors import interval, markdown
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from clearway.canary import Situation, decide, harm_rule, proves_harm, proves_harmless, score_rule, split_evidence
from clearway.params import CanaryParams, CanaryStep
from clearway.sequences import Arm, Contrast, design_effect

SEED = 2013
ROLLOUTS, CHUNK = 2_000, 250
"""In a cell, and simulated at once."""
LEVELS = np.array([0.05, 0.15, 0.25, 0.35, 0.45, 0.6, 0.75, 0.95])
CHANCES = np.array([0.16, 0.22, 0.2, 0.15, 0.11, 0.09, 0.05, 0.02])
"""Scores and how often they are given; a shifted canary gives each, larger by the shift, up to 1."""
KEYS, OWN_ERRORS, UNEQUAL = 2_000, 0.5, 1.2
"""Sticky keys; the part of errors that are a key's own; the spread of the logarithm of how often keys ask."""
FAILS = 0.3
"""How often a failing key fails."""
METRICS = ("errors", "slow", "score")
VERDICTS = ("rollback", "promote", "hold")
OURS, THRESHOLD, RANKS = "Clearway", "fixed thresholds", "Mann–Whitney"

PAGE = HERE.parent / "docs" / "error-rates.md"
MARKS = ("<!-- tables: benchmarks/canary_errors.py -->", "<!-- end of canary tables -->")


@dataclass(frozen=True)
class Cell:
    """One kind of rollout."""

    group: str
    errors: tuple[float, float] = (0.01, 0.01)
    """Stable's and the canary's share."""
    slow: tuple[float, float] = (0.02, 0.02)
    shift: float = 0.0
    weight: int | None = None
    """Percent of one step alone; None for the default steps."""
    requests: int = 60_000
    """Of both versions together, after which it is held."""
    looks: int = 120
    sticky: bool = False
    peers: bool = False
    margin: float = 0.01
    """Of the one step."""
    told: bool = True
    """Whether the judge is told which requests share a key."""

    @property
    def label(self) -> str:
        said = [
            f"{name} {pair[0]:.4g} → {pair[1]:.4g}"
            for name, pair in (("errors", self.errors), ("slow", self.slow))
            if pair[0] != pair[1]
        ]
        said += [f"score {self.shift:+g}"] if self.shift else []
        return ", ".join(said) or f"healthy, {self.errors[0]:.1%} errors, {self.slow[0]:.1%} slow"

    def params(self) -> CanaryParams:
        if self.weight is None:
            return CanaryParams()
        return CanaryParams(steps=(CanaryStep(weight=self.weight, margin=self.margin),))


def cells() -> list[Cell]:
    healthy = [Cell("healthy", errors=(rate, rate)) for rate in (0.0005, 0.01, 0.05)]
    healthy += [Cell("healthy", slow=(0.0, 0.0), errors=(0.0, 0.0)), Cell("healthy", looks=1_000)]
    sticky = [replace(cell, sticky=True, group="healthy, sticky", looks=40) for cell in healthy[1:3]]
    sticky += [replace(cell, told=False, group="healthy, sticky, not told") for cell in sticky]
    weights = [Cell("healthy at one weight", weight=weight) for weight in (1, 5, 10, 25, 50)]
    harms = [
        {"errors": (0.01, 0.03)},
        {"errors": (0.01, 0.02)},
        {"errors": (0.001, 0.01)},
        {"slow": (0.02, 0.05)},
        {"shift": 0.3},
        {"shift": -0.3},
    ]
    harmful = [Cell("harmful", **harm) for harm in harms]  # type: ignore[arg-type]
    harmful += [
        Cell("harmful, sticky", sticky=True, looks=40, **harm)  # type: ignore[arg-type]
        for harm in ({"errors": (0.01, 0.03)}, {"slow": (0.02, 0.05)}, {"shift": 0.3})
    ]
    least = [
        Cell("found with", errors=(0.01, 0.03), weight=50, requests=2 * each, looks=40, peers=True)
        for each in (500, 1_000, 2_000, 4_000, 8_000)
    ]
    least += [Cell("found with", slow=(0.02, 0.06), weight=50, requests=2 * each, looks=40) for each in (2_000, 8_000)]
    least += [Cell("found with", shift=0.25, weight=50, requests=2 * each, looks=40) for each in (500, 2_000)]
    least += [Cell("found with", errors=(0.01, 0.03), weight=w, requests=16_000, looks=40) for w in (1, 5, 10, 25)]
    peers = [
        Cell("beside others", weight=weight, requests=requests, looks=20, peers=True, errors=(0.01, bad))
        for weight, requests in ((10, 2_000), (10, 20_000), (50, 20_000))
        for bad in (0.01, 0.03)
    ]
    at_margin = [Cell("at the margin", errors=(0.01, 0.021), weight=50, requests=40_000)]
    return healthy + sticky + weights + harmful + least + peers + at_margin


# The world.


class Independent:
    """Sums of requests of which each has a routing key of its own; arrays of shape (rollouts, strata)."""

    def __init__(self, cell: Cell, strata: int, rollouts: int, random: np.random.Generator) -> None:
        self._cell, self._random = cell, random
        self.counts = np.zeros((2, rollouts, strata))
        self.errors = np.zeros((2, rollouts, strata))
        self.slow = np.zeros((2, rollouts, strata))
        self.scores = np.zeros((2, rollouts, strata))
        self.squares = np.zeros((2, rollouts, strata))

    def answer(self, requests: int, weights: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, ...]:
        """So many more requests of each rollout at its step; what came of them, of the canary and of stable."""
        random, cell, rows = self._random, self._cell, np.arange(len(step))
        canary = random.binomial(requests, weights / 100)
        said = []
        for arm, count in enumerate((canary, requests - canary)):
            failed = random.binomial(count, cell.errors[1 - arm])
            late = random.binomial(count, cell.slow[1 - arm])
            levels = (
                np.minimum(LEVELS + (cell.shift if arm == 0 else 0), 1)
                if cell.shift >= 0 or arm
                else (np.maximum(LEVELS + cell.shift, 0))
            )
            drawn = random.multinomial(count - failed, CHANCES)
            for sums, more in (
                (self.counts, count),
                (self.errors, failed),
                (self.slow, late),
                (self.scores, drawn @ levels),
                (self.squares, drawn @ levels**2),
            ):
                sums[arm, rows, step] += more
            said += [count, failed, late]
        return tuple(said)

    def contrasts(self) -> list[Contrast]:
        one = np.ones(self.counts.shape[1])

        def arm(side: int, count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> Arm:
            return Arm(count[side], total[side], squares[side], one, count[side].sum(axis=-1))

        scored = self.counts - self.errors
        return [
            Contrast("rate", *(arm(side, self.counts, self.errors, self.errors) for side in (0, 1))),
            Contrast("rate", *(arm(side, self.counts, self.slow, self.slow) for side in (0, 1))),
            Contrast("mean", *(arm(side, scored, self.scores, self.squares) for side in (0, 1))),
        ]

    def new_keys(self) -> tuple[np.ndarray, np.ndarray]:
        return self.counts[0], self.counts[1]


class Sticky:
    """Sums of requests of keys that come again and again; arrays of shape (rollouts, keys, strata)."""

    def __init__(self, cell: Cell, strata: int, rollouts: int, random: np.random.Generator) -> None:
        self._cell, self._random = cell, random
        shape = (rollouts, KEYS)
        asks = np.exp(random.normal(0, UNEQUAL, shape))
        self._asks = asks / asks.sum(axis=1, keepdims=True)
        self._bucket = random.random(shape)
        self._lots = random.random((2, *shape))
        """Whether a key is one that fails, or is slow, by itself: the same under either version, and more under one."""
        self._score = random.choice(LEVELS, shape, p=CHANCES)
        self.requests, self.errors, self.slow = (np.zeros((2, *shape, strata)) for _ in range(3))
        self.first = np.full((2, *shape), -1)
        self.scored = np.zeros((2, *shape))

    def answer(self, requests: int, weights: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, ...]:
        random, cell, rows = self._random, self._cell, np.arange(len(step))
        asked = random.poisson(requests * self._asks)
        canary = self._bucket < (weights / 100)[:, None]
        for arm, here in enumerate((canary, ~canary)):
            count = np.where(here, asked, 0)
            for sums, rate, lots in (
                (self.errors, cell.errors[1 - arm], self._lots[0]),
                (self.slow, cell.slow[1 - arm], self._lots[1]),
            ):
                own = lots < OWN_ERRORS * rate / FAILS
                sums[arm, rows, :, step] += random.binomial(count, np.where(own, FAILS, (1 - OWN_ERRORS) * rate))
            self.requests[arm, rows, :, step] += count
            new = (count > 0) & (self.first[arm] < 0)
            self.first[arm] = np.where(new, step[:, None], self.first[arm])
            shifted = np.clip(self._score + (cell.shift if arm == 0 else 0), 0, 1)
            noise = random.choice(np.array([-0.05, 0.0, 0.05]), shifted.shape)
            self.scored[arm] = np.where(new, np.clip(shifted + noise, 0, 1), self.scored[arm])
        return ()

    def contrasts(self) -> list[Contrast]:
        strata = range(self.requests.shape[-1])
        found = []
        for events in (self.errors, self.slow):
            arms = []
            for side in (0, 1):
                n, x = self.requests[side], events[side]
                count, total = n.sum(axis=1), x.sum(axis=1)
                rate = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
                deviation = (x - rate[:, None] * n).sum(axis=-1)
                asked = n.sum(axis=-1)
                design = design_effect(
                    (deviation**2).sum(axis=1),
                    (total * (1 - rate)).sum(axis=-1),
                    asked.sum(axis=1),
                    (asked**2).sum(axis=1),
                    (asked > 0).sum(axis=1),
                )
                if not self._cell.told:
                    design = np.ones_like(design)
                arms.append(Arm(count, total, total, design, (asked > 0).sum(axis=1)))
            found.append(Contrast("rate", *arms))
        arms = []
        for side in (0, 1):
            at = [self.first[side] == stratum for stratum in strata]
            sums = [
                np.stack([np.where(here, value, 0).sum(axis=1) for here in at], axis=-1)
                for value in (np.ones_like(self.scored[side]), self.scored[side], self.scored[side] ** 2)
            ]
            arms.append(Arm(*sums, np.ones(len(sums[0])), sums[0].sum(axis=-1)))
        return [*found, Contrast("mean", *arms)]

    def new_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """A key counts for the version that it saw first: the canary's keys were stable's before, never the reverse."""
        strata = range(self.requests.shape[-1])
        canary = (self.first[0] >= 0) & (self.first[1] < 0)
        return tuple(  # type: ignore[return-value]
            np.stack([(who & (first == stratum)).sum(axis=1) for stratum in strata], axis=-1).astype(float)
            for who, first in ((canary, self.first[0]), (self.first[1] >= 0, self.first[1]))
        )


# The judges, each on rollouts at once: a verdict for each, and the requests it took.


def roll_out(cell: Cell, rollouts: int, seed: int) -> dict[str, list[list[float]]]:
    """By judge: for each rollout its verdict (an index of ``VERDICTS``), and requests until then."""
    params = cell.params()
    weights = np.array(params.weights(), dtype=float)
    random = np.random.default_rng((SEED, seed))
    world = (Sticky if cell.sticky else Independent)(cell, len(weights), rollouts, random)
    step, verdict = np.zeros(rollouts, dtype=int), np.full(rollouts, 2)
    requests = np.full(rollouts, float(cell.requests))
    each = cell.requests // cell.looks
    series = []
    tests = len(METRICS)
    for look in range(1, cell.looks + 1):
        open_ = verdict == 2
        series.append(world.answer(each, weights[step], step))
        contrasts = world.contrasts()
        keys = world.new_keys()
        split = split_evidence(*keys, weights) <= np.log(1 / params.split_alpha)
        answered = _answered(world)
        said = np.full(rollouts, "hold", dtype=object)
        for number, rules in enumerate(params.steps):
            at = np.flatnonzero(step == number)
            if not at.size:
                continue
            made = [_upto(contrast, at, number + 1) for contrast in contrasts]
            harm_of = harm_rule(rules, params, tests)
            all_rules = (harm_of, harm_of, score_rule(params, tests))
            harm = [proves_harm(one, rule) for one, rule in zip(made, all_rules, strict=True)]
            safe = [proves_harmless(one, rule) for one, rule in zip(made, all_rules, strict=True)]
            own = answered[:, at, number]
            now = Situation(own[0], own[1], np.full(at.size, np.inf), split[at])
            said[at] = decide(harm, safe, [False] * tests, now, rules)
        last = step == len(weights) - 1
        for index, ended in enumerate(((said == "rollback"), (said == "promote") & last)):
            now_ = open_ & ended
            verdict[now_], requests[now_] = index, look * each
        step = np.where(open_ & (said == "promote") & ~last, step + 1, step)
    found = {OURS: [verdict.tolist(), requests.tolist()]}
    if cell.peers:
        found |= others(np.array(series), each)
    return found


def _answered(world: Independent | Sticky) -> np.ndarray:
    return world.counts if isinstance(world, Independent) else world.requests.sum(axis=2)


def _upto(contrast: Contrast, rollouts: np.ndarray, strata: int) -> Contrast:
    arms = [
        Arm(*(sums[rollouts, :strata] for sums in (a.count, a.total, a.squares)), a.design[rollouts], a.keys[rollouts])
        for a in (contrast.canary, contrast.stable)
    ]
    return Contrast(contrast.kind, *arms)


def others(series: np.ndarray, each: int) -> dict[str, list[list[float]]]:
    """The two other judges on intervals of shape (looks, 6, rollouts)."""
    from scipy.stats import mannwhitneyu

    looks = len(series)
    rates = np.stack([series[:, k] / np.maximum(series[:, 0 if k < 3 else 3], 1) for k in (1, 2, 4, 5)])
    failed = np.cumsum((rates[0] > 0.02) | (rates[1] > 0.05), axis=0) >= 5
    worse = np.zeros(failed.shape, dtype=bool)
    for look in range(4, looks):  # fewer intervals cannot reach 98%
        for canary, stable in ((0, 2), (1, 3)):
            with np.errstate(invalid="ignore", divide="ignore"):
                p = mannwhitneyu(
                    rates[canary, : look + 1], rates[stable, : look + 1], axis=0, method="asymptotic"
                ).pvalue
            above = np.median(rates[canary, : look + 1], axis=0) > np.median(rates[stable, : look + 1], axis=0)
            worse[look] |= (p < 0.02) & above
    found = {}
    for name, alarm in ((THRESHOLD, failed), (RANKS, np.maximum.accumulate(worse, axis=0))):
        verdict = np.where(alarm[-1], 0, 1)  # what is not rolled back by the end is promoted
        found[name] = [
            verdict.tolist(),
            np.where(alarm[-1], (np.argmax(alarm, axis=0) + 1) * each, looks * each).tolist(),
        ]
    return found


# From what was measured to tables.


@dataclass
class Total:
    """All rollouts of a cell under one judge."""

    verdicts: np.ndarray
    requests: np.ndarray

    def count(self, verdict: str) -> int:
        return int((self.verdicts == VERDICTS.index(verdict)).sum())

    def rate(self, verdict: str) -> float:
        return self.count(verdict) / self.verdicts.size

    def said(self, verdict: str) -> str:
        low, high = interval(self.count(verdict), self.verdicts.size)
        return f"{100 * self.rate(verdict):.1f}% ({100 * low:.1f} to {100 * high:.1f})"

    def median(self, verdict: str) -> float | None:
        some = self.requests[self.verdicts == VERDICTS.index(verdict)]
        return float(np.median(some)) if some.size >= 20 else None


Totals = dict[tuple[int, str], Total]


def tables(totals: Totals, made: Sequence[Cell]) -> list[str]:
    groups: dict[str, list[int]] = {}
    for index, cell in enumerate(made):
        groups.setdefault(cell.group, []).append(index)
    titles = {
        "healthy": "A canary as good as stable, through the default steps",
        "healthy, sticky": "The same, routing keys that come again and again",
        "healthy, sticky, not told": "The same rollouts, were requests taken as independent",
        "healthy at one weight": "A healthy canary that stays at one weight, margin 1%",
        "harmful": "A harmful canary, through the default steps",
        "harmful, sticky": "The same, routing keys that come again and again",
        "found with": "A harmful canary at one weight, given so many requests",
        "at the margin": "A canary that is worse by just over the margin",
    }
    header = [
        "what",
        "weight",
        "requests",
        "looks",
        "rolled back",
        "promoted",
        "held",
        "median to rollback",
        "median to promotion",
    ]
    found = []
    for group, title in titles.items():
        rows = []
        for index in groups.get(group, []):
            cell, total = made[index], totals[index, OURS]
            rows.append(
                [
                    *_row(cell),
                    *(total.said(v) for v in VERDICTS),
                    *map(_number, (total.median("rollback"), total.median("promote"))),
                ]
            )
        if rows:
            found.append(markdown(title, header, rows))
    rows = [
        [*_row(made[i]), judge_, totals[i, judge_].said("rollback"), _number(totals[i, judge_].median("rollback"))]
        for i in (i for i, cell in enumerate(made) if cell.peers)
        for judge_ in (OURS, THRESHOLD, RANKS)
    ]
    if rows:
        head = ["what", "weight", "requests", "looks", "judge", "rolled back", "median to rollback"]
        found.append(markdown("Other judges on the same traffic", head, rows))
    if (speed := _durations(totals, made)) is not None:
        found.append(speed)
    return found


def _row(cell: Cell) -> list[str]:
    return [cell.label, "steps" if cell.weight is None else f"{cell.weight}%", f"{cell.requests:,}", f"{cell.looks:,}"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _durations(totals: Totals, made: Sequence[Cell]) -> str | None:
    """How long the median takes, by traffic."""
    rows = []
    for index, cell in enumerate(made):
        if cell.group not in ("healthy", "harmful"):
            continue
        verdict = "promote" if cell.group == "healthy" else "rollback"
        if (median := totals[index, OURS].median(verdict)) is None:
            continue
        rates = {"10/min": 10 / 60, "1/s": 1.0, "10/s": 10.0, "100/s": 100.0, "1,000/s": 1000.0}
        rows.append([cell.label, verdict, *(_duration(median / rate) for rate in rates.values())])
    heads = ["what", "verdict", "10/min", "1/s", "10/s", "100/s", "1,000/s"]
    return markdown("How long half of the rollouts take, by traffic", heads, rows) if rows else None


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def record(totals: Totals, made: Sequence[Cell], figures: Figures) -> None:
    def of(group: str) -> list[tuple[Cell, Total]]:
        return [(cell, totals[i, OURS]) for i, cell in enumerate(made) if cell.group == group]

    def largest(verdict: str, *groups: str) -> float:
        return max((total.rate(verdict) for group in groups for _, total in of(group)), default=float("nan"))

    figures.add("healthy_rolled_back_max", largest("rollback", "healthy", "healthy at one weight"))
    figures.add("healthy_sticky_rolled_back_max", largest("rollback", "healthy, sticky"))
    typical = [t for c, t in of("healthy") if c.errors[0] == 0.01 and c.looks == 120]
    figures.add("healthy_promoted", min((t.rate("promote") for t in typical), default=float("nan")))
    figures.add("healthy_median_requests", max((t.median("promote") or np.inf for t in typical), default=float("nan")))
    figures.add("harmful_promoted_max", largest("promote", "harmful", "harmful, sticky", "found with"))
    figures.add("at_margin_promoted", largest("promote", "at the margin"))
    for name, wanted in (("errors_1_to_3", "errors"), ("slow_2_to_6", "slow"), ("score_025", "shift")):
        given = [
            (cell.requests, total.rate("rollback"))
            for cell, total in of("found with")
            if cell.weight == 50 and getattr(cell, wanted) not in ((0.01, 0.01), (0.02, 0.02), 0.0)
        ]
        if given:
            figures.add(f"{name}_found", max(given)[1])


def quote(text: str) -> None:
    """Put the tables into the page that quotes them, between its two marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0], 1)
    after = rest.split(MARKS[1], 1)[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def job(index: int, cell: Cell, rollouts: int, seed: int) -> tuple[int, dict[str, list[list[float]]]]:
    return index, roll_out(cell, rollouts, seed)


def jobs(made: Sequence[Cell], rollouts: int) -> list[Callable[[], tuple[int, dict[str, list[list[float]]]]]]:
    """The longest first, so that the cores end together."""
    order = sorted(range(len(made)), key=lambda i: -made[i].looks * (10 if made[i].sticky else 1))
    return [
        partial(job, i, made[i], min(size, rollouts - start), 1_000 * i + start // size)
        for i in order
        for size in [CHUNK // 5 if made[i].sticky else CHUNK]
        for start in range(0, rollouts, size)
    ]


def main() -> int:
    options = arguments((__doc__ or "").splitlines()[0])
    made = cells()
    rollouts = ROLLOUTS
    if options.quick:
        rollouts = 60
        made = [replace(cell, looks=min(cell.looks, 20)) for cell in made]
    parts: dict[tuple[int, str], list[list[list[float]]]] = {}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
        waiting = [processes.submit(work) for work in jobs(made, rollouts)]
        task = progress.add_task("rollouts", total=len(waiting))
        try:
            for done in as_completed(waiting):
                index, found = done.result()
                for judged, said in found.items():
                    parts.setdefault((index, judged), []).append(said)
                progress.advance(task)
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            raise
    totals = {
        key: Total(*(np.concatenate(column) for column in zip(*some, strict=True))) for key, some in parts.items()
    }
    figures = Figures("canary_errors")
    record(totals, made, figures)
    text = "\n".join(tables(totals, made))
    code = figures.finish(check=options.check, quick=options.quick)
    (HERE / "results" / "canary_errors.md").write_text(text, encoding="utf-8")
    details = [
        [made[i].group, made[i].label, judged, *(t.rate(v) for v in VERDICTS)] for (i, judged), t in totals.items()
    ]
    (HERE / "results" / "canary_errors_details.json").write_text(json.dumps(details) + "\n", encoding="utf-8")
    if not options.quick:
        quote(text)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
