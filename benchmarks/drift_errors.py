"""How often the drift check cries wolf, and what it finds: the tables of docs/error-rates.md.

False alarms, independent rows: ``POOL`` columns of 20 kinds are drawn with a reference, nothing changed, and measured
once by ``measure_drift``. Columns are independent and a test sees one column only, so the same tests serve families of
1 to ``POOL`` columns: each family has its own Holm correction and its own verdict. That the largest family gives
what ``measure_drift`` itself said is asserted in every repetition. Families of one repetition share no column.

False alarms, real rows: weeks of the flights are left out of the 20 weeks around them, which are calibrated as
training calibrates its reference; the left-out week is the current window. Neighbouring references share weeks, so the
interval, made for independent trials, is somewhat too narrow.

Power: one of 15 columns of a kind is shifted, each in its turn. Beside it a two-sample KS (χ² for categories) with
Bonferroni's correction, and Evidently's default test, on the same rows. As they come, the tools cry wolf unequally
often; so the limit of each is also moved to where it raises some alarm in 5% of unshifted families of 15 columns: the
limit that a single column passes with probability 1 − 0.95^(1/15), read from the scores of all unshifted columns of
the kind. With floors, the score of a shift that is not material is the least there is.

Intervals are those of Clopper & Pearson (1934), two-sided, 95%. A full run, about half an hour on two cores, writes the
tables into docs/error-rates.md.
"""

import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # every core has its own repetition

import numpy as np
import pandas as pd
from _figures import HERE, Figures, arguments
from _flights import CHANGES, SEED, year_of_features
from _peers import python, run
from _synthetic import COLUMNS, KINDS, SCENARIOS, pool, shifted
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

ALPHA = 0.05
POOL = 200
REFERENCE = 50_000
"""Rows of the reference in the tables of false alarms: what a bundle keeps."""
WINDOWS = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
FAMILIES = (1, 2, 5, 10, 20, 50, 100, 200)
REPETITIONS = {window: 40 if window <= 5_000 else 20 for window in WINDOWS}
EVIDENTLY_REPETITIONS = 1
POWER_REPETITIONS = {"mean_005": 8}
"""Fewer where the reference is large; 30 elsewhere."""
EVIDENTLY_POWER_REPETITIONS = {"mean_005": 1}
"""Fewer of Evidently, which takes half a minute for each of the largest; 2 elsewhere."""
DOMAIN_CELLS = [(window, columns) for window in (50, 200, 1_000, 20_000) for columns in (1, 15, 200)]
DOMAIN_REPETITIONS = 12
WEEKS = 52
AROUND = 20
"""Weeks of the reference around what is left out."""

PAGE = HERE.parent / "docs" / "error-rates.md"
MARKS = ("<!-- tables: benchmarks/drift_errors.py -->", "<!-- end of tables -->")

Count = tuple[int, int]
"""Alarms, of trials."""


@dataclass(frozen=True)
class Plan:
    """What is measured, in full or quickly."""

    pool: dict[int, int]
    """Repetitions by window."""
    evidently: dict[int, int]
    """The same, of Evidently."""
    power: dict[str, tuple[tuple[str, ...], int]]
    """Kinds of column and repetitions by scenario."""
    domain: list[tuple[int, int]]
    domain_repetitions: int
    blocks: list[tuple[int, int]]
    """First week and number of weeks of what is left out."""


def full() -> Plan:
    power = {key: (scenario.kinds, POWER_REPETITIONS.get(key, 30)) for key, scenario in SCENARIOS.items()}
    blocks = [(week, 1) for week in range(WEEKS)] + [(week, 4) for week in range(0, WEEKS, 4)]
    return Plan(
        REPETITIONS, dict.fromkeys(WINDOWS, EVIDENTLY_REPETITIONS), power, DOMAIN_CELLS, DOMAIN_REPETITIONS, blocks
    )


def quick() -> Plan:
    power = {"new_category": (("5 categories",), 4)}
    return Plan({50: 4, 1_000: 4}, {1_000: 1}, power, [(1_000, 15)], 2, [(30, 1)])


def interval(alarms: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a probability."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(alarms, trials - alarms + 1, tail)) if alarms else 0.0
    return low, float(betaincinv(alarms + 1, trials - alarms, 1 - tail)) if alarms < trials else 1.0


# What one process measures. Each function returns plain numbers.


def judge(features: Sequence[Any], *, floors: bool) -> set[str]:
    """The features of a family that drifted: Holm over all its aspects, with the limits of the effects or without."""
    from clearway.drift import holm

    aspects = [(feature.name, aspect) for feature in features for aspect in feature.aspects]
    adjusted = holm([aspect.p_value for _, aspect in aspects])
    return {
        name
        for (name, aspect), p in zip(aspects, adjusted, strict=True)
        if p <= ALPHA and (aspect.material if floors else aspect.effect > 0)
    }


def measure(reference: pd.DataFrame, current: pd.DataFrame, kinds: Sequence[str]) -> Any:
    from clearway.drift import measure_drift
    from clearway.params import DriftParams

    names = {True: [], False: []}
    for i, kind in enumerate(kinds):
        names[KINDS[kind].numeric].append(f"x{i}")
    return measure_drift(reference, current, names[True], names[False], DriftParams(alpha=ALPHA))


def pool_job(window: int, repetition: int) -> dict[str, Any]:
    """False alarms of families of every size, and of families of one kind."""
    from clearway.params import DriftParams

    kinds, reference, current = pool(POOL, (REFERENCE, window), (SEED, window, repetition))
    report = measure(reference, current, kinds)
    found = {feature.name: feature for feature in report.features}
    order = np.random.default_rng((SEED, repetition)).permutation(POOL)
    counts: Counter[tuple[str, Any]] = Counter()
    share = DriftParams().feature_share
    for size in FAMILIES:
        for start in range(0, POOL, size):
            family = [found[f"x{i}"] for i in order[start : start + size]]
            drifted = judge(family, floors=True)
            counts["verdict", size] += len(drifted) > 0 and len(drifted) / size >= share
            counts["any", size] += bool(drifted)
            counts["any, floors 0", size] += bool(judge(family, floors=False))
            counts["families", size] += 1
    assert drifted == set(report.drifted), "the families are not judged as measure_drift judges"
    assert bool(counts["verdict", POOL]) == report.drift
    for kind in KINDS:
        members = [found[f"x{i}"] for i in range(POOL) if kinds[i] == kind]
        counts["kind", kind] += bool(judge(members, floors=True))
        counts["kind, floors 0", kind] += bool(judge(members, floors=False))
        counts["unknown", kind] += all(feature.status == "unknown" for feature in members)
    return {"window": window, "counts": [[*key, n] for key, n in counts.items()]}


def evidently_pool_job(window: int, repetitions: int) -> dict[str, Any]:
    """The same of Evidently's defaults; a data set has drifted where half of its columns have."""
    scores = run("evidently", "evidently_scores.py", "pool", POOL, REFERENCE, window, SEED, repetitions)
    counts: Counter[tuple[str, Any]] = Counter()
    for repetition, row in enumerate(np.array(scores)):
        order = np.random.default_rng((SEED, repetition)).permutation(POOL)
        for size in FAMILIES:
            for start in range(0, POOL, size):
                drifted = int(np.count_nonzero(row[order[start : start + size]] >= 1))
                counts["verdict", size] += drifted / size >= 0.5
                counts["any", size] += drifted > 0
                counts["families", size] += 1
    return {"window": window, "counts": [[*key, n] for key, n in counts.items()]}


def domain_job(window: int, columns: int, repetition: int) -> dict[str, Any]:
    """Whether the domain classifier cries wolf."""
    from clearway.domain import measure_domain
    from clearway.params import DomainParams

    kinds, reference, current = pool(columns, (REFERENCE, window), (SEED, 7, window, repetition))
    names = [[f"x{i}" for i in range(columns) if KINDS[kinds[i]].numeric is numeric] for numeric in (True, False)]
    found = measure_domain(reference, current, *names, DomainParams(), None, repetition)
    return {"window": window, "columns": columns, "alarm": found.status == "drift"}


def power_job(key: str, kind: str, repetition: int) -> dict[str, Any]:
    """Scores of unshifted and shifted columns, smaller is more: of ours with and without floors, and of KS or χ²."""
    reference, current, moved = shifted(SCENARIOS[key], kind, (SEED, repetition))
    reports = [measure(reference, side, [kind] * COLUMNS) for side in (current, moved)]
    calm, hit = ({feature.name: feature for feature in report.features} for report in reports)
    result: dict[str, Any] = {"key": key, "kind": kind, "scores": {}, "as is": {}}
    for label, floors in (("floors 0", False), ("floors", True)):
        result["as is"][label] = sum(
            name in judge([hit[name] if other == name else calm[other] for other in calm], floors=floors)
            for name in calm
        )
        result["scores"][label] = [
            [
                min((a.p_value for a in side[name].aspects if a.material or (not floors and a.effect > 0)), default=1.0)
                for name in calm
            ]
            for side in (calm, hit)
        ]
    classic = [[_classic(reference[name], side[name], kind) for name in calm] for side in (current, moved)]
    result["scores"]["classic"] = classic
    result["as is"]["classic"] = sum(p <= ALPHA / COLUMNS for p in classic[1])
    return result


def _classic(reference: pd.Series, current: pd.Series, kind: str) -> float:
    """SciPy's two-sample KS, or χ², as anybody would call them."""
    from scipy.stats import chi2_contingency, ks_2samp

    sides = reference.dropna(), current.dropna()
    if KINDS[kind].numeric:
        return float(ks_2samp(*sides, method="asymp").pvalue)
    table = pd.DataFrame([side.value_counts() for side in sides]).fillna(0)
    return float(chi2_contingency(table).pvalue)


def evidently_power_job(key: str, kind: str, repetitions: int) -> dict[str, Any]:
    scores = run("evidently", "evidently_scores.py", key, kind, SEED, repetitions)
    return {"key": key, "kind": kind, "scores": scores}


def week_job(folder: str, first: int, weeks: int) -> dict[str, Any]:
    """Leave weeks out, calibrate the 20 weeks around them as training does, and check what was left out."""
    from _flights import check_left_out

    return check_left_out(Path(folder), first, weeks, around=AROUND, of=WEEKS)


# From what was measured to tables.


def rate(count: Count) -> str:
    low, high = interval(*count)
    return f"{100 * count[0] / count[1]:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def share(count: Count) -> str:
    return f"{100 * count[0] / count[1]:.1f}%"


def markdown(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def merge(results: Sequence[dict[str, Any]]) -> dict[int, Counter[tuple[str, Any]]]:
    merged: dict[int, Counter[tuple[str, Any]]] = {}
    for result in results:
        counts = merged.setdefault(result["window"], Counter())
        for what, which, number in result["counts"]:
            counts[what, which] += number
    return dict(sorted(merged.items()))


def false_alarms(results: dict[str, list[Any]], plan: Plan, figures: Figures) -> list[str]:
    ours, theirs = merge(results["pool"]), merge(results["evidently"])
    tables = []
    header = ["rows", *(f"{size} col." for size in FAMILIES)]
    for title, counts, what, text in (
        ("Clearway: the data set has drifted", ours, "verdict", rate),
        ("Clearway: any single column has drifted", ours, "any", rate),
        ("Clearway, floors 0: any single column has drifted", ours, "any, floors 0", rate),
        ("Evidently's defaults: the data set has drifted", theirs, "verdict", share),
        ("Evidently's defaults: any single column has drifted", theirs, "any", share),
    ):
        cells = {w: [(c[what, size], c["families", size]) for size in FAMILIES] for w, c in counts.items()}
        tables.append(markdown(title, header, ([f"{w:,}", *map(text, row)] for w, row in cells.items())))
        if counts is ours:
            name = {"verdict": "verdict", "any": "any_feature", "any, floors 0": "any_feature_floors_0"}[what]
            figures.add(f"false_alarm_{name}_max", max(a / n for row in cells.values() for a, n in row))
            surely = max(interval(a, n)[0] for row in cells.values() for a, n in row)
            figures.add(f"false_alarm_{name}_surely", surely)
    rows = []
    for kind in KINDS:
        cells = [kind]
        for window, counts in ours.items():
            trials = plan.pool[window]
            gone = counts["unknown", kind] > trials / 2
            cells.append("unknown" if gone else share((counts["kind, floors 0", kind], trials)))
        rows.append(cells)
    title = f"Clearway, floors 0: any of {POOL // len(KINDS)} columns of one kind has drifted"
    tables.append(markdown(title, ["kind", *(f"{window:,}" for window in ours)], rows))
    domain: dict[tuple[int, int], list[bool]] = {}
    for result in results["domain"]:
        domain.setdefault((result["window"], result["columns"]), []).append(result["alarm"])
    cells = [[f"{w:,}", str(c), rate((sum(a), len(a)))] for (w, c), a in sorted(domain.items())]
    tables.append(markdown("The domain classifier cries wolf", ["rows", "columns", "false alarms"], cells))
    figures.add("false_alarm_domain", sum(r["alarm"] for r in results["domain"]) / len(results["domain"]))
    return tables


def real_weeks(results: dict[str, list[Any]], folder: Path, figures: Figures) -> list[str]:
    checks = [check for result in results["week"] for check in result]
    said = run("evidently", "evidently_files.py", folder)
    rows = []
    for span, label in (("day", "a day"), ("week", "a week"), ("weeks", "four weeks")):
        some = [check for check in checks if check["span"] == span]
        if not some:
            continue
        counts = {
            key: (sum(bool(c[key]) for c in some), len(some)) for key in ("drift", "columns", "classifier", "any")
        }
        evidently = [said[c["name"]] for c in some if c["name"] in said]
        half = (sum(np.mean(np.array(scores) >= 1) >= 0.5 for scores in evidently), len(evidently))
        some_feature = (sum(max(scores) >= 1 for scores in evidently), len(evidently))
        texts = [share(half), share(some_feature)] if evidently else ["", ""]
        unknown = sum(c["unknown"] for c in some)
        size = f"{np.median([c['rows'] for c in some]):,.0f}"
        rows.append([label, size, str(len(some)), *(rate(counts[key]) for key in counts), str(unknown), *texts])
        if span == "week":
            figures.add("weeks_false_alarm", counts["drift"][0] / counts["drift"][1])
            figures.add("weeks_unknown", unknown)
    header = ["left out", "rows", "windows", "drift", "by columns", "by the classifier", "any column", "unknown"]
    header += ["Evidently: drift", "Evidently: any column"]
    weeks = [check for check in checks if check["span"] == "week"]
    changed = []
    for change, (column, _) in CHANGES.items():
        found = sum(check["found"][change] for check in weeks)
        before = sum(column in check["drifted"] for check in weeks)
        changed.append([change, column, rate((found, len(weeks))), share((before, len(weeks)))])
    columns = ["change", "column", "weeks in which it drifts", "unchanged"]
    return [
        markdown("Real flights, nothing done to them", header, rows),
        markdown("Real weeks, one column changed", columns, changed),
    ]


def power(results: dict[str, list[Any]], figures: Figures) -> list[str]:
    """Detections as the tools come, and with their limits moved to 5% false alarms."""
    level = 1 - (1 - ALPHA) ** (1 / COLUMNS)
    measured: dict[tuple[str, str], dict[str, tuple[Count | None, float]]] = {}
    theirs = {(result["key"], result["kind"]): -np.array(result["scores"]) for result in results["evidently power"]}
    for key, kind in sorted({(result["key"], result["kind"]) for result in results["power"]}):
        own = [r for r in results["power"] if (r["key"], r["kind"]) == (key, kind)]
        trials = len(own) * COLUMNS
        cell = measured[key, kind] = {}
        for method in ("floors 0", "floors", "classic"):
            scores = np.array([r["scores"][method] for r in own])
            cell[method] = (sum(r["as is"][method] for r in own), trials), _equal(scores, level)
        scores = theirs[key, kind]
        cell["evidently"] = (int((scores[:, 1] <= -1).sum()), scores[:, 1].size), _equal(scores, level)
    order = ("floors 0", "floors", "classic", "evidently")
    names = ("Clearway, floors 0", "Clearway", "KS or χ² + Bonferroni", "Evidently")
    text: Callable[[float], str] = lambda value: f"{100 * value:.1f}%"  # noqa: E731
    sure, equal = [], []
    for (key, kind), cell in measured.items():
        scenario = SCENARIOS[key]
        where = [scenario.name, kind, f"{scenario.rows[1]:,} against {scenario.rows[0]:,}"]
        sure.append([*where, *(rate(cell[method][0]) for method in order)])
        equal.append([*where, *(text(cell[method][1]) for method in order)])
    header = ["shift", "columns", "rows", *names]
    for key, method, figure in (
        ("mean_005", "floors 0", "power_005_floors_0"),
        ("mean_02", "floors", "power_02"),
        ("new_category", "floors", "power_new_category"),
    ):
        counts = [cell[method][0] for (scenario, _), cell in measured.items() if scenario == key]
        if counts:
            figures.add(figure, float(np.mean([found / trials for found, trials in counts])))
    for method, figure in (("classic", "power_over_ks_bonferroni"), ("evidently", "power_over_evidently")):
        figures.add(figure, min(cell["floors 0"][1] - cell[method][1] for cell in measured.values()))
    return [
        markdown("Power as the tools come", header, sure),
        markdown("Power at 5% false alarms of a family", header, equal),
    ]


def _equal(scores: np.ndarray, level: float) -> float:
    """Share of shifted columns beyond the limit that a share ``level`` of the unshifted ones passes; smaller is more.

    ``scores`` has the shape (repetitions, 2, columns): unshifted, shifted.
    """
    calm = np.sort(scores[:, 0].ravel())
    limit = calm[int(np.floor(level * len(calm)))]  # so many unshifted scores lie below it
    return float(np.mean(scores[:, 1] < limit))


def quote(text: str) -> None:
    """Put the tables into the page that quotes them, between its two marks."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(MARKS[0], 1)
    after = rest.split(MARKS[1], 1)[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def jobs(plan: Plan, folder: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """The longest first, so that the cores end together."""
    work: list[tuple[str, Callable[[], Any]]] = []
    for key, (kinds, repetitions) in plan.power.items():
        fewer = min(repetitions, EVIDENTLY_POWER_REPETITIONS.get(key, 2))
        work += [("evidently power", partial(evidently_power_job, key, kind, fewer)) for kind in kinds]
    for window, repetitions in sorted(plan.evidently.items(), reverse=True):
        work.append(("evidently", partial(evidently_pool_job, window, repetitions)))
    work += [("week", partial(week_job, str(folder), *block)) for block in plan.blocks]
    for window in sorted(plan.pool, reverse=True):
        work += [("pool", partial(pool_job, window, repetition)) for repetition in range(plan.pool[window])]
    for key, (kinds, repetitions) in plan.power.items():
        work += [("power", partial(power_job, key, kind, i)) for kind in kinds for i in range(repetitions)]
    for window, columns in plan.domain:
        work += [("domain", partial(domain_job, window, columns, i)) for i in range(plan.domain_repetitions)]
    return work


def main() -> int:
    options = arguments((__doc__ or "").splitlines()[0])
    plan = quick() if options.quick else full()
    python("evidently")  # made once, before two processes want it
    folder = Path(tempfile.mkdtemp(prefix="clearway-errors-"))
    results: dict[str, list[Any]] = {}
    try:
        year_of_features(folder)
        work = jobs(plan, folder)
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns) as progress, ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
            task = progress.add_task("repetitions", total=len(work))
            waiting = {processes.submit(job): kind for kind, job in work}
            try:
                for done in as_completed(waiting):
                    results.setdefault(waiting[done], []).append(done.result())
                    progress.advance(task)
            except BaseException:
                processes.shutdown(wait=False, cancel_futures=True)
                raise
        figures = Figures("drift_errors")
        tables = [
            *false_alarms(results, plan, figures),
            *real_weeks(results, folder, figures),
            *power(results, figures),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    code = figures.finish(check=options.check, quick=options.quick)
    text = "\n".join(tables)
    (HERE / "results" / "drift_errors.md").write_text(text, encoding="utf-8")
    if not options.quick:
        quote(text)
    details = {"quick": options.quick, "week": results["week"], "domain": results["domain"]}
    details |= {"pool": results["pool"], "evidently": results["evidently"]}
    (HERE / "results" / "drift_errors_details.json").write_text(json.dumps(details) + "\n", encoding="utf-8")
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
