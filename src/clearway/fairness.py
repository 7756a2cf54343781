"""Does the challenger treat groups alike? Pure: rows, labels and scores in, gates out. Point values are Fairlearn's.

Three shares are compared between the groups of an attribute: of all rows answered yes (**demographic parity**), and
of the positive and of the negative rows answered yes (true and false positive rate; alike in both is **equalized
odds**, Hardt, Price & Srebro, NeurIPS 2016). The **difference** is that of the highest and the lowest group, the
**ratio** is the lowest over the highest.

The highest of many groups is high by luck too: of groups that are all alike, one always leads. So the bounds are not
percentiles of resampled differences, which are further apart still. Every pair of groups has an interval; the upper
bound is the largest of the pairs' (to stay below a limit is to stay below it in each pair: Berger, Technometrics 24,
1982), and the lower bound is the largest of simultaneous ones (Hothorn, Bretz & Westfall, Biometrical Journal 50,
2008).

Of several classes each is taken for the yes in turn, against the rest. A number has no such shares: there the **mean
error** (predicted minus label: who is over- and who is underestimated) and the **mean absolute error** of the groups
are compared, in spreads of the training labels, by their difference alone.

Rows are resampled, or entities with all their rows. A resample is only ever counted, group by group, so the counts are
drawn and not the rows: those of rows are multinomial (Efron & Tibshirani 1993, chapter 5).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import ndtri, stdtrit

from clearway.gates import Gate, Holdout, Interval, Status
from clearway.metrics import Floats
from clearway.params import FairnessGates
from clearway.slices import Level, levels

FEWEST = 10
"""Fewer rows of the answer that a rate is about, in a group, or fewer entities, and there is no interval."""
_NAMES = {
    "selection_rate": "share answered yes",
    "true_positive_rate": "true positive rate",
    "false_positive_rate": "false positive rate",
}
_ABOUT = {"selection_rate": [0, 1], "true_positive_rate": [1], "false_positive_rate": [0]}
"""The labels of the rows that a rate is about."""
_ERRORS = {"mean_error": "mean error", "mean_absolute_error": "mean absolute error"}
"""What is compared of numbers, in spreads of the training labels."""
_FAIRLEARN: dict[str, Callable[..., float]] = {
    "selection_rate": selection_rate,
    "true_positive_rate": true_positive_rate,
    "false_positive_rate": false_positive_rate,
}


@dataclass(frozen=True)
class _Answers:
    """What a model answered in the groups judged, by rate."""

    by_group: pd.DataFrame
    difference: Mapping[str, float]
    ratio: Mapping[str, float]
    """These three are Fairlearn's; columns and keys are the names of rates."""
    counts: Mapping[str, "_Counts"]
    answers: NDArray[np.bool_]
    changed: Mapping[str, Floats]
    """By rate, the rows of each group that the other model answers otherwise."""


@dataclass(frozen=True)
class _Counts:
    """Rows answered yes among the rows that a rate is about: of shape (groups,), drawn ones (resamples, groups)."""

    yes: Floats
    of: Floats
    yes_drawn: Floats
    of_drawn: Floats


@dataclass(frozen=True)
class _Judged:
    """The rows that are judged, all in groups that are large enough."""

    labels: Floats
    codes: NDArray[np.intp]
    groups: Sequence[str]
    """The group of each code."""
    entities: NDArray[np.intp] | None
    units: int
    """Rows or entities of the group that has the fewest."""
    confidence: float
    resamples: int
    seed: int


def fairness_gates(
    frame: pd.DataFrame,
    holdout: Holdout,
    scores: Floats,
    champion: Floats | None,
    params: FairnessGates,
    *,
    champion_threshold: float | None = None,
    trained_on: Mapping[str, Sequence[str]] | None = None,
) -> list[Gate]:
    """Gates for every attribute: groups judged, and per rate what ``params`` asks of difference and ratio.

    Parameters
    ----------
    frame : DataFrame of shape (rows, columns)
        The holdout rows as they came, text as text.
    holdout : Holdout
        Labels, threshold, confidence, resamples, seed and groups (entities) of the same rows.
    scores, champion : float64 arrays of shape (rows,), or (rows, classes)
    params : FairnessGates
    champion_threshold : float, optional
        Where it is not the challenger's.
    trained_on : mapping of str to sequence of str, optional
        Column → the values training had; one that the holdout lacks is a group nothing is known of.

    Returns
    -------
    list of Gate
        ``fairness_sex_groups``; ``fairness_sex_selection_rate_difference``, ``…_ratio``, and the same with
        ``…_to_champion``. Each rate is judged by itself: equalized odds holds if both its rates pass. Of several
        classes ``fairness_sex_selection_rate_of_A_difference``, of numbers ``fairness_sex_mean_error_difference``.

    Raises
    ------
    ClearwayError
        ``params.classes`` names one that training never saw.
    """
    gates = []
    wanted = [(name, holdout.target.position(name)) for name in params.classes or holdout.target.classes]
    for attribute in dict.fromkeys((a,) if isinstance(a, str) else tuple(a) for a in params.attributes):
        name = f"fairness_{'&'.join(attribute)}"
        absent = [column for column in attribute if column not in frame.columns]
        if absent:
            gates.append(Gate(name, "fail", f"the holdout has no column {', '.join(absent)}", n=holdout.rows))
        elif not _whole(scores, holdout):
            gates.append(Gate(name, "fail", "the challenger's scores are not finite, one a row", n=holdout.rows))
        elif champion is not None and not _whole(champion, holdout):
            gates.append(Gate(name, "fail", "the champion's scores are not finite, one a row", n=holdout.rows))
        else:
            theirs_from = holdout.threshold if champion_threshold is None else champion_threshold
            answers = [
                (each, at) for each, at in ((scores, holdout.threshold), (champion, theirs_from)) if each is not None
            ]
            gates += _attribute_gates(name, attribute, frame, holdout, answers, wanted, params, trained_on or {})
    return gates


def _attribute_gates(
    name: str,
    attribute: tuple[str, ...],
    frame: pd.DataFrame,
    holdout: Holdout,
    given: Sequence[tuple[Floats, float]],
    classes: Sequence[tuple[str, int]],
    params: FairnessGates,
    trained_on: Mapping[str, Sequence[str]],
) -> list[Gate]:
    found = levels(frame, attribute, params.bins)
    kept = [level for level in found if int(level.rows.sum()) >= params.min_rows]
    small = [level for level in found if int(level.rows.sum()) < params.min_rows]
    seen = {level.value for level in found}
    lost = [value for value in trained_on.get(attribute[0], ()) if len(attribute) == 1 and value not in seen]
    gates = [_groups_gate(name, len(kept), small, lost, params, holdout)]
    if len(kept) < 2:
        return gates
    code_of = np.full(holdout.rows, -1, dtype=np.intp)
    for code, level in enumerate(kept):
        code_of[level.rows] = code
    rows = code_of >= 0
    codes = code_of[rows]
    entities = None if holdout.groups is None else np.unique(holdout.groups[rows], return_inverse=True)[1]
    alone = np.arange(len(codes)) if entities is None else entities
    units = [len(np.unique(alone[codes == code])) for code in range(len(kept))]
    judged = _Judged(
        labels=holdout.labels[rows],
        codes=codes,
        groups=[level.value for level in kept],
        entities=entities,
        units=min(units),
        confidence=holdout.confidence,
        resamples=holdout.resamples,
        seed=holdout.seed,
    )
    if holdout.target.kind == "regression":
        spread = holdout.target.spread or 1.0
        errors = [(outputs[rows] - judged.labels) / spread for outputs, _ in given]
        for kind, shown in _ERRORS.items():
            gates += _error_gates(
                f"{name}_{kind}", shown, judged, [e if kind == "mean_error" else abs(e) for e in errors], params
            )
        return gates
    answered = [holdout.target.answers(outputs, threshold)[rows] for outputs, threshold in given]
    for of_class, yes in classes or [("", 1)]:
        one = replace(judged, labels=(judged.labels == yes).astype(np.float64))
        ours, *theirs = (answers == yes for answers in answered)
        mine, other = _answers(one, ours, theirs[0] if theirs else None)
        said = f" of {of_class!r}" if of_class else ""
        for rate in _NAMES:
            named = f"{name}_{rate}_of_{of_class}" if of_class else f"{name}_{rate}"
            gates += _rate_gates(named, rate, one, mine, other, params, said)
    return gates


def _groups_gate(
    name: str, kept: int, small: Sequence[Level], lost: Sequence[str], params: FairnessGates, holdout: Holdout
) -> Gate:
    said = [f"{kept} groups of at least {params.min_rows:,} rows are judged, two are needed"]
    if small:
        said.append("too small to judge: " + ", ".join(f"{one.value} ({int(one.rows.sum()):,} rows)" for one in small))
    if lost:
        said.append(f"in training and not in the holdout: {', '.join(lost)}")
    status: Status = "pass" if kept >= 2 and not small and not lost else "unknown"
    return Gate(f"{name}_groups", status, "; ".join(said), kept, threshold=2, n=holdout.rows)


def _rate_gates(
    name: str,
    rate: str,
    judged: _Judged,
    mine: _Answers,
    other: _Answers | None,
    params: FairnessGates,
    of_class: str = "",
) -> list[Gate]:
    """What is asked of one rate; of a champion that is not there, nothing."""
    asked: dict[str, float | None] = {"difference": params.max_difference, "ratio": params.min_ratio}
    if other is not None:
        kept = None if params.ratio_margin is None else 1 - params.ratio_margin
        asked |= {"difference_to_champion": params.margin, "ratio_to_champion": kept}
    few = [f"{g} ({int(of)})" for g, of in zip(judged.groups, mine.counts[rate].of, strict=True) if of < FEWEST]
    shares = mine.by_group[rate]
    ends = f"from {shares.min():.4f} ({shares.idxmin()}) to {shares.max():.4f} ({shares.idxmax()})"
    called = f"{_NAMES[rate]}{of_class}" if rate != "selection_rate" or not of_class else f"share answered{of_class}"
    gates = []
    for kind, limit in asked.items():
        if limit is None:
            continue
        measure, _, compared = kind.partition("_to_")
        if few or judged.units < FEWEST:
            where = f"in {', '.join(few)}" if few else "entities in a group"
            detail = f"{called} {ends}: too few rows or entities to judge {where}, {FEWEST} are needed"
            gates.append(Gate(f"{name}_{kind}", "unknown", detail, threshold=limit, n=len(judged.codes)))
            continue
        if compared and other is not None:
            found = _change(measure, rate, judged, mine, other)
            if measure == "difference":
                what = f"difference is {_shown(found)} above the champion's {other.difference[rate]:.4f}"
            else:
                what = f"ratio is {_shown(found)} times the champion's {other.ratio[rate]:.4f}"
        else:
            found = _spread(measure, rate, judged, mine)
            what = f"{measure} is {_shown(found)}"
        most = measure == "difference"
        detail = f"{called} {ends}: {what}, at {'most' if most else 'least'} {limit:g} is needed"
        estimate = found.estimate if math.isfinite(found.estimate) else None
        status = _status(found, limit, most=most)
        gates.append(
            Gate(f"{name}_{kind}", status, detail, estimate, found.lower, found.upper, limit, len(judged.codes))
        )
    return gates


def _error_gates(name: str, shown: str, judged: _Judged, errors: Sequence[Floats], params: FairnessGates) -> list[Gate]:
    """What is asked of the mean error of each group: the difference between groups, and that to the champion's.

    ``errors`` are ours and, if there is a champion, its; of shape (rows,), in spreads of the labels.
    """
    asked = {"difference": params.max_difference, **({"difference_to_champion": params.margin} if errors[1:] else {})}
    ours, *theirs = _means(judged, errors)
    ends = f"from {ours.found.min():+.4f} ({judged.groups[int(ours.found.argmin())]}) to "
    ends += f"{ours.found.max():+.4f} ({judged.groups[int(ours.found.argmax())]}) spreads of the labels"
    gates = []
    for kind, limit in asked.items():
        if limit is None:
            continue
        if judged.units < FEWEST:
            detail = f"{shown} {ends}: too few rows or entities in a group, {FEWEST} are needed"
            gates.append(Gate(f"{name}_{kind}", "unknown", detail, threshold=limit, n=len(judged.codes)))
            continue
        if kind == "difference":
            estimate = float(np.ptp(ours.found))
            lower, upper = (bound(ours, judged, judged.confidence) for bound in (_least_apart, _most_apart))
            what = "difference is"
        else:
            before = float(np.ptp(theirs[0].found))
            estimate = float(np.ptp(ours.found)) - before
            lower, upper = _wider(ours, theirs[0], judged) if np.any(errors[0] != errors[1]) else (0.0, 0.0)
            what = f"difference above the champion's {before:.4f} is"
        found = Interval(estimate, min(lower, estimate), max(upper, estimate))
        status = _status(found, limit, most=True)
        detail = f"{shown} {ends}: {what} {_shown(found)}, at most {limit:g} is needed"
        gates.append(
            Gate(f"{name}_{kind}", status, detail, estimate, found.lower, found.upper, limit, len(judged.codes))
        )
    return gates


def _means(judged: _Judged, errors: Sequence[Floats]) -> "list[_Scaled]":
    """The mean of each group, of every model on the same resamples of rows, or of entities with all their rows."""
    random = np.random.default_rng(judged.seed)
    units = np.arange(len(judged.codes)) if judged.entities is None else judged.entities
    count, groups = int(units.max()) + 1, len(judged.groups)
    rows = np.bincount(judged.codes, minlength=groups).astype(np.float64)
    drawn = np.empty((len(errors), judged.resamples, groups))
    for resample in range(judged.resamples):
        weights = np.bincount(random.integers(0, count, count), minlength=count)[units]
        of = np.maximum(np.bincount(judged.codes, weights, groups), 1)
        for model, error in enumerate(errors):
            drawn[model, resample] = np.bincount(judged.codes, weights * error, groups) / of
    made = []
    for error, each in zip(errors, drawn, strict=True):
        found = np.bincount(judged.codes, error, groups) / rows
        made.append(_Scaled(found, each, rows, np.ones(groups), np.zeros(groups)))
    return made


def _wider(after: "_Scaled", before: "_Scaled", judged: _Judged) -> tuple[float, float]:
    """Bounds of how much further apart groups are after than before."""
    half = 1 - (1 - judged.confidence) / 2  # two bounds, each with half of the error
    lower = _least_apart(after, judged, half) - _most_apart(before, judged, half)
    return lower, _most_wider(after, before, np.zeros_like(after.of), judged)


def _status(found: Interval, limit: float, *, most: bool) -> Status:
    if found.lower is None or found.upper is None:
        return "unknown"
    if most:
        return "pass" if found.upper <= limit else "fail" if found.lower > limit else "unknown"
    return "pass" if found.lower >= limit else "fail" if found.upper < limit else "unknown"


def _answers(
    judged: _Judged, ours: NDArray[np.bool_], theirs: NDArray[np.bool_] | None
) -> tuple[_Answers, _Answers | None]:
    """Both models on the same resamples. Counts are by group, label, our answer and the champion's."""
    other = np.zeros_like(ours) if theirs is None else theirs
    shape = (len(judged.groups), 2, 2, 2)
    cells = np.ravel_multi_index(
        (judged.codes, (judged.labels == 1).astype(int), ours.astype(int), other.astype(int)), shape
    )
    found = np.bincount(cells, minlength=math.prod(shape)).astype(np.float64)
    drawn = _draw(judged, cells, found)
    table, tables = found.reshape(shape), drawn.reshape(-1, *shape)
    differ = table[..., 0, 1] + table[..., 1, 0]
    changed = {rate: differ[:, labels].sum(axis=1) for rate, labels in _ABOUT.items()}
    mine = _of_model(judged, ours, table.sum(axis=3), tables.sum(axis=4), changed)
    if theirs is None:
        return mine, None
    return mine, _of_model(judged, theirs, table.sum(axis=2), tables.sum(axis=3), changed)


def _draw(judged: _Judged, cells: NDArray[np.intp], found: Floats) -> Floats:
    """The count of each cell in every resample: float64 array of shape (resamples, cells)."""
    random = np.random.default_rng(judged.seed)
    if judged.entities is None:
        return random.multinomial(len(cells), found / found.sum(), size=judged.resamples).astype(np.float64)
    entities = int(judged.entities.max()) + 1
    each = csr_array((np.ones(len(cells)), (judged.entities, cells)), shape=(entities, len(found)))
    drawn = np.empty((judged.resamples, len(found)))
    for resample in range(judged.resamples):
        drawn[resample] = np.bincount(random.integers(0, entities, entities), minlength=entities) @ each
    return drawn


def _of_model(
    judged: _Judged, answers: NDArray[np.bool_], table: Floats, tables: Floats, changed: Mapping[str, Floats]
) -> _Answers:
    """Of counts by group, label and answer: (groups, 2, 2), and (resamples, groups, 2, 2)."""
    group, label, answer = (index.ravel() for index in np.indices(table.shape))
    frame = MetricFrame(  # each row stands for all that are like it
        metrics=_FAIRLEARN,
        y_true=label,
        y_pred=answer,
        sensitive_features=np.array(judged.groups, dtype=object)[group],
        sample_params={rate: {"sample_weight": table.ravel()} for rate in _FAIRLEARN},
    )
    counts = {}
    for rate, labels in _ABOUT.items():
        part, parts = table[:, labels].sum(axis=1), tables[:, :, labels].sum(axis=2)
        counts[rate] = _Counts(part[:, 1], part.sum(axis=1), parts[:, :, 1], parts.sum(axis=2))
    return _Answers(
        by_group=frame.by_group,
        difference=dict(frame.difference(method="between_groups")),
        ratio=dict(frame.ratio(method="between_groups")),
        counts=counts,
        answers=answers,
        changed=changed,
    )


def _spread(measure: str, rate: str, judged: _Judged, model: _Answers) -> Interval:
    """The largest difference, or the smallest ratio, of two groups."""
    estimate = (model.difference if measure == "difference" else model.ratio)[rate]
    if not math.isfinite(estimate):  # of a ratio, where nobody was answered yes
        return Interval(math.nan, None, None)
    scaled = _scaled(measure, model.counts[rate])
    lower, upper = (bound(scaled, judged, judged.confidence) for bound in (_least_apart, _most_apart))
    if measure == "difference":
        return Interval(estimate, min(lower, estimate), min(1.0, max(upper, estimate)))
    return Interval(estimate, min(math.exp(-upper), estimate), max(math.exp(-lower), estimate))


def _change(measure: str, rate: str, judged: _Judged, mine: _Answers, other: _Answers) -> Interval:
    """By how much the difference is above the champion's, or the ratio over the champion's, on the same resamples."""
    ours, theirs = ((model.difference if measure == "difference" else model.ratio)[rate] for model in (mine, other))
    if np.array_equal(mine.answers, other.answers):
        return Interval(0.0, 0.0, 0.0) if measure == "difference" else Interval(1.0, 1.0, 1.0)
    estimate = ours - theirs if measure == "difference" else ours / theirs if theirs > 0 else math.nan
    if not math.isfinite(estimate):
        return Interval(math.nan, None, None)
    after, before = (_scaled(measure, model.counts[rate]) for model in (mine, other))
    upper = _most_wider(after, before, mine.changed[rate] + 1, judged)
    half = 1 - (1 - judged.confidence) / 2  # two bounds, each with half of the error
    lower = _least_apart(after, judged, half) - _most_apart(before, judged, half)
    if measure == "difference":
        return Interval(estimate, min(lower, estimate), max(upper, estimate))
    return Interval(estimate, min(math.exp(-upper), estimate), max(math.exp(-lower), estimate))


def _most_apart(scaled: "_Scaled", judged: _Judged, confidence: float) -> float:
    """Upper bound of the largest difference: the largest of the pairs', each by itself."""
    pairs = _pairs(scaled.found, scaled.drawn, scaled.least)
    return float(np.max(np.abs(pairs.apart) + _student(judged, confidence) * pairs.error))


def _least_apart(scaled: "_Scaled", judged: _Judged, confidence: float) -> float:
    """Lower bound of the largest difference: that of any pair, all held at once."""
    pairs = _pairs(scaled.found, scaled.drawn, scaled.least)
    return max(0.0, float(np.max(np.abs(pairs.apart) - _together(pairs, judged, confidence) * pairs.error)))


def _most_wider(after: "_Scaled", before: "_Scaled", changed: Floats, judged: _Judged) -> float:
    """Upper bound of how much further apart groups are after than before.

    Before, they are at least as far apart as in the pair that is furthest apart after: so the answer is at most the
    change in that pair. Which pair it is, and which of its groups leads, is not known for sure: all that may be count,
    and a tenth of the error is spent on that, another on who surely led before (Berger & Boos, JASA 89, 1994).
    ``changed`` is one more than the rows of each group that moved: of few such rows, resamples show too little.
    """
    error = 1 - judged.confidence
    own, theirs = (_pairs(each.found, each.drawn, each.least) for each in (after, before))
    reach, their_reach = (_together(each, judged, 1 - error / 10) * each.error for each in (own, theirs))
    may_be_widest = np.abs(own.apart) + reach >= np.max(np.abs(own.apart) - reach)
    moved = changed / (after.of + 2) / after.of * np.maximum(after.steep, before.steep) ** 2
    change = _pairs(after.found - before.found, after.drawn - before.drawn, moved)
    turn = _pairs(after.found + before.found, after.drawn + before.drawn, after.least + before.least)
    student, widest = _student(judged, 1 - 0.8 * error), -math.inf
    for leads in (1, -1):
        possible = may_be_widest & ((np.abs(own.apart) <= reach) | (np.sign(own.apart) == leads))
        turned = (np.abs(theirs.apart) > their_reach) & (np.sign(theirs.apart) == -leads)
        wider = leads * np.where(turned, turn.apart, change.apart) + student * np.where(
            turned, turn.error, change.error
        )
        widest = max(widest, float(np.max(wider[possible], initial=-math.inf)))
    return widest


@dataclass(frozen=True)
class _Pairs:
    """Of every pair of groups the difference of their values, of shape (pairs,)."""

    apart: Floats
    error: Floats
    """Standard error."""
    moved: Floats
    """What each resample differs by, in standard errors of the resamples: (resamples, pairs)."""


def _pairs(values: Floats, drawn: Floats, least: Floats) -> _Pairs:
    """Values of shape (groups,), drawn ones (resamples, groups), and the smallest variance of each value."""
    first, second = np.triu_indices(len(values), k=1)
    moved = drawn[:, first] - drawn[:, second]
    seen = moved.std(axis=0, ddof=1)
    moved = (moved - moved.mean(axis=0)) / np.where(seen > 0, seen, 1.0)
    return _Pairs(values[first] - values[second], np.maximum(seen, np.sqrt(least[first] + least[second])), moved)


def _together(pairs: _Pairs, judged: _Judged, confidence: float) -> float:
    """How many standard errors hold all pairs at once."""
    single = _student(judged, confidence)
    furthest = float(np.quantile(np.abs(pairs.moved).max(axis=1), confidence))
    return max(single, furthest * single / float(ndtri(confidence)))


@dataclass(frozen=True)
class _Scaled:
    """Shares, or their logarithms for a ratio; of shape (groups,), drawn ones (resamples, groups)."""

    found: Floats
    drawn: Floats
    of: Floats
    steep: Floats
    """By how much a change of the share is stretched."""
    least: Floats
    """Smallest variance: of few events, resamples show too little (Agresti & Caffo, American Statistician 54, 2000)."""


def _scaled(measure: str, counts: _Counts) -> _Scaled:
    likely = (counts.yes + 1) / (counts.of + 2)
    least = likely * (1 - likely) / counts.of
    if measure == "difference":
        found, drawn = counts.yes / counts.of, counts.yes_drawn / np.maximum(counts.of_drawn, 1)
        return _Scaled(found, drawn, counts.of, np.ones_like(likely), least)
    found, drawn = (counts.yes + 0.5) / (counts.of + 1), (counts.yes_drawn + 0.5) / (counts.of_drawn + 1)
    return _Scaled(np.log(found), np.log(drawn), counts.of, 1 / likely, least / likely**2)


def _student(judged: _Judged, confidence: float) -> float:
    return float(stdtrit(max(judged.units - 1, 1), confidence))


def _whole(scores: Floats, holdout: Holdout) -> bool:
    return len(scores) == holdout.rows and bool(np.isfinite(scores).all())


def _shown(found: Interval) -> str:
    if found.lower is None or found.upper is None:
        return "undefined"
    return f"{found.estimate:.4f} [{found.lower:.4f}, {found.upper:.4f}]"
