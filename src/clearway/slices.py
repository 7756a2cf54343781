"""Does the challenger hold in every part of the holdout? Pure: rows, labels and scores in, one gate per part out.

Two kinds of parts. **Declared** ones are the levels of columns that ``params.yaml`` names. **Discovered** ones are
where a shallow tree finds the challenger's log loss (of numbers the squared error) furthest above the champion's: it
searches one half of the holdout, and what it finds is judged on the other half alone, so that searching for bad luck
does not find any (Athey & Imbens, PNAS 113(27), 2016: honest trees; Chung et al., IEEE TKDE 32(12), 2020: slices by
trees).

A part fails if it is surely worse than allowed after Holm's correction over all parts judged (Holm, Scandinavian
Journal of Statistics 6, 1979). It passes only if, by itself, it is surely good enough: to pass all is to pass each, so
no correction is due (Berger, Technometrics 24, 1982). Else it is unknown, as small parts mostly are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit
from sklearn.tree import DecisionTreeRegressor

from clearway.columns import RESERVED
from clearway.drift import holm
from clearway.errors import UsageError
from clearway.gates import Gate, Holdout, Interval, Status, constant_outputs
from clearway.metrics import RANKINGS, Floats, Metric, metric
from clearway.params import SliceGates

Gain = Callable[[Holdout, Metric, Floats, Floats, float], tuple[Interval, str]]
"""Holdout, metric, our scores, theirs, and the score from which theirs mean yes → the paired gain, and how it was
found."""

DEPTH, DISCOVERED = 3, 3
"""Conditions of a discovered part, and how many are judged, at most."""
MISSING, OTHER = "missing", "other"
_LEAST_SCORE = 1e-6
"""A score nearer to 0 or 1 counts as this far from it: one row must not make a part."""
_MOST_SQUARED = 100.0
"""An error of more than ten spreads counts as ten, for the same reason."""


@dataclass(frozen=True)
class Level:
    """Rows with the same value, or values of one range, of a column or of each of several columns."""

    name: str
    """Short, for the name of a gate: ``origin=EWR&weekday=[2,4)``."""
    value: str
    """Shorter still: ``EWR & [2,4)``."""
    words: str
    """For a person: ``origin = EWR and 2 ≤ weekday < 4``."""
    rows: NDArray[np.bool_]
    """Bool array of shape (rows,)."""


@dataclass(frozen=True)
class _Part:
    name: str
    words: str
    rows: NDArray[np.bool_]
    note: str = ""
    too_small: str = ""
    """Why it cannot be judged."""


@dataclass(frozen=True)
class _Judged:
    part: _Part
    found: Interval
    how: str
    p_value: float | None
    """Chance of such a gain, or less, if the part were just good enough; None without an interval."""


def check_columns(wanted: Sequence[str | Sequence[str]], known: Sequence[str], key: str) -> None:
    """Refuse a column that the features do not have.

    Raises
    ------
    UsageError
        Names ``key``, the column and those there are.
    """
    for name in _names(wanted):
        if name not in known:
            raise UsageError(f"params.yaml: {key}: {name!r} is no column of the features (known: {', '.join(known)})")


def levels(frame: pd.DataFrame, columns: Sequence[str], bins: int) -> list[Level]:
    """The levels of one column, or the combinations of several that occur.

    Parameters
    ----------
    frame : DataFrame
    columns : sequence of str
        Each in ``frame``. Missing values are a level of their own.
    bins : int
        Ranges that numbers are cut into at their quantiles.

    Returns
    -------
    list of Level
        Every row is in exactly one. Sorted by value.
    """
    cut = [_column_levels(frame[name], bins) for name in columns]
    codes = np.stack([each for each, _ in cut], axis=1)
    found, inverse = np.unique(codes, axis=0, return_inverse=True)
    made = []
    for position, combination in enumerate(found):
        said = [(name, *names[code]) for name, code, (_, names) in zip(columns, combination, cut, strict=True)]
        made.append(
            Level(
                name="&".join(f"{name}={value}" for name, value, _ in said),
                value=" & ".join(value for _, value, _ in said),
                words=" and ".join(words.format(name) for name, _, words in said),
                rows=inverse.reshape(-1) == position,
            )
        )
    return made


def slice_gates(
    frame: pd.DataFrame,
    holdout: Holdout,
    scores: Floats,
    champion: Floats | None,
    params: SliceGates,
    *,
    compared: str,
    constant: float | Sequence[float],
    gain: Gain,
    champion_threshold: float | None = None,
    trained_on: Mapping[str, Sequence[str]] | None = None,
) -> list[Gate]:
    """One gate per part of the holdout.

    Parameters
    ----------
    frame : DataFrame of shape (rows, columns)
        Features of the holdout rows as they came, text as text.
    holdout : Holdout
        Labels, threshold, confidence, resamples, seed and groups of the same rows.
    scores, champion : float64 arrays of shape (rows,), or (rows, classes)
        Without a champion ``params.floor`` is what is needed; without that either, nothing is judged.
    params : SliceGates
    compared : str
        The champion gate's metric, judged unless ``params.metric`` names another.
    constant : float or sequence of float
        The answer that ignores the question, as of :func:`clearway.gates.constant_gate`: without a champion, parts are
        searched for where the challenger is worse than that.
    gain : Gain
        The paired comparison.
    champion_threshold : float, optional
        Where it is not the challenger's.
    trained_on : mapping of str to sequence of str, optional
        Column → the values training had; of one that the holdout lacks nothing is known.

    Returns
    -------
    list of Gate
        Named ``slice_carrier=UA``; ``slice_discovered_1`` for what was found, worst first. A level too small to judge
        is named in the detail of the pooled one (``slice_carrier=other``), which is judged if it is large enough;
        levels that the holdout lacks are in that of ``slice_carrier``, which is unknown.

    Raises
    ------
    UsageError
        There is no metric of that name.
    """
    measured = metric(params.metric or compared, "params.yaml: gates.slices.metric", holdout.target.kind)
    if champion is None and params.floor is None:
        return []
    if not _whole(scores, holdout):
        return [Gate("slices", "fail", "the challenger's scores are not finite numbers, one a row", n=holdout.rows)]
    if champion is not None and not _whole(champion, holdout):
        return [Gate("slices", "fail", "the champion's scores are not finite numbers, one a row", n=holdout.rows)]
    absent = [name for name in _names(params.declared) if name not in frame.columns]
    gates = [Gate(f"slice_{name}", "fail", f"the holdout has no column {name}") for name in dict.fromkeys(absent)]
    wanted = [_tuple(columns) for columns in params.declared]
    for name in dict.fromkeys(columns[0] for columns in wanted if len(columns) == 1 and columns[0] not in absent):
        lost = sorted(set((trained_on or {}).get(name, ())) - set(_texts(frame[name]).tolist()))
        if lost:
            more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
            detail = f"in training and not in the holdout, so not judged: {', '.join(lost[:5])}{more}"
            gates.append(Gate(f"slice_{name}", "unknown", detail, n=0))
    parts = [
        part
        for columns in dict.fromkeys(wanted)
        if not set(columns) & set(absent)
        for part in _declared(frame, columns, holdout.labels, params, both=measured.name in RANKINGS)
    ]
    if params.discover:
        theirs = constant_outputs(constant, scores) if champion is None else champion
        whose = "a constant answer's" if champion is None else "the champion's"
        parts += _discovered(frame, holdout, _losses(holdout, scores, theirs), params, whose)

    judged = []
    for part in parts:
        if part.too_small:
            gates.append(Gate(f"slice_{part.name}", "unknown", part.too_small, n=int(part.rows.sum())))
            continue
        judged.append(_judge(part, measured, holdout, scores, champion, params, gain, champion_threshold))
    known = [one.p_value for one in judged if one.p_value is not None]
    adjusted = iter(holm(known))
    for one in judged:
        p = None if one.p_value is None else next(adjusted)
        gates.append(_gate(one, p, len(known), measured, champion is not None, holdout, params))
    return gates


def _judge(
    part: _Part,
    measured: Metric,
    holdout: Holdout,
    scores: Floats,
    champion: Floats | None,
    params: SliceGates,
    gain: Gain,
    champion_threshold: float | None,
) -> _Judged:
    groups = None if holdout.groups is None else holdout.groups[part.rows]
    inside = replace(holdout, labels=holdout.labels[part.rows], groups=groups)
    if measured.name in RANKINGS and not inside.answers_differ:
        return _Judged(part, Interval(math.nan, None, None), "one answer only", None)
    if champion is None:
        assert params.floor is not None  # asked before
        found = inside.interval(measured, scores[part.rows])
        how = "bootstrap" if measured.counted is None or groups is not None else "exact"
        needed, seen = measured.sign * params.floor, _turned(found) if measured.sign < 0 else found
    else:
        theirs_from = holdout.threshold if champion_threshold is None else champion_threshold
        found, how = gain(inside, measured, scores[part.rows], champion[part.rows], theirs_from)
        needed, seen = -params.margin, found
    return _Judged(part, found, how, _p_value(seen, needed, inside, ranking=measured.name in RANKINGS))


def _p_value(found: Interval, needed: float, inside: Holdout, *, ranking: bool) -> float | None:
    """Chance of such an estimate, or a lower one, where the truth is ``needed``.

    It turns the upper bound round: the bound is a quantile of Student's t away, so the distance to ``needed`` is
    another. Below ``1 - confidence`` exactly where the upper bound is below ``needed``.
    """
    if found.lower is None or found.upper is None:
        return None
    reach = found.upper - found.estimate
    if reach <= 0:
        return 1.0 if found.upper >= needed else 0.0
    both = ranking and inside.target.binary
    answers = [inside.labels == 1, inside.labels == 0] if both else [np.ones(inside.rows, bool)]
    units = [len(np.unique(inside.groups[a])) if inside.groups is not None else int(a.sum()) for a in answers]
    freedom = max(min(units) - 1, 1)
    away = (needed - found.estimate) / reach * float(stdtrit(freedom, inside.confidence))
    return float(stdtr(freedom, -away))


def _gate(
    one: _Judged,
    p: float | None,
    family: int,
    measured: Metric,
    paired: bool,
    holdout: Holdout,
    params: SliceGates,
) -> Gate:
    found, rows = one.found, int(one.part.rows.sum())
    needed = -params.margin if paired else params.floor
    assert needed is not None  # asked before
    status: Status = "unknown"
    if p is not None and found.lower is not None and found.upper is not None:
        sign = 1 if paired else measured.sign
        good = found.lower > needed if sign > 0 else found.upper < needed
        status = "fail" if p < 1 - holdout.confidence else "pass" if good else "unknown"
    what = f"gain in {measured.name} over the champion is" if paired else f"{measured.name} is"
    side = "above" if paired or measured.higher_is_better else "below"
    shown = (
        f"{what} {found.estimate:+.4f} [{found.lower:.4f}, {found.upper:.4f}]"
        if found.lower is not None and found.upper is not None
        else f"{what} unknown: too few rows of one answer, or entities, for an interval"
    )
    corrected = f", Holm p = {p:.2g} of {family} parts" if p is not None else ""
    note = f"; {one.part.note}" if one.part.note else ""
    detail = f"where {one.part.words}: {shown}, {side} {needed:g} is needed ({one.how}{corrected}){note}"
    estimate = found.estimate if math.isfinite(found.estimate) else None
    return Gate(f"slice_{one.part.name}", status, detail, estimate, found.lower, found.upper, needed, rows)


def _declared(
    frame: pd.DataFrame, columns: tuple[str, ...], labels: Floats, params: SliceGates, *, both: bool
) -> Iterator[_Part]:
    """Each level that is large enough, then the rest as one."""
    small = []
    for level in levels(frame, columns, params.bins):
        if _enough(level.rows, labels, params.min_rows, both=both):
            yield _Part(level.name, level.words, level.rows)
        else:
            small.append(level)
    if not small:
        return
    pooled = np.any([level.rows for level in small], axis=0)
    listed = ", ".join(f"{level.value} ({int(level.rows.sum()):,})" for level in small)
    why = f"fewer than {params.min_rows:,} rows" + (" or one answer only" if both else "")
    note = f"not judged one by one, {why}: {listed}"
    named = "&".join(columns) + f"={OTHER}"
    words = f"{' and '.join(columns)} is any of {len(small):,} small levels"
    enough = _enough(pooled, labels, params.min_rows, both=both)
    yield _Part(named, words, pooled, note, "" if enough else note)


def _enough(rows: NDArray[np.bool_], labels: Floats, least: int, *, both: bool) -> bool:
    return int(rows.sum()) >= least and (not both or bool(labels[rows].min() < labels[rows].max()))


def _discovered(frame: pd.DataFrame, holdout: Holdout, losses: Floats, params: SliceGates, whose: str) -> list[_Part]:
    """The leaves of a tree over one half with the highest mean of ``losses``, as rows of the other half."""
    units = np.arange(holdout.rows) if holdout.groups is None else holdout.groups
    codes = np.unique(units, return_inverse=True)[1]
    drawn = np.random.default_rng(holdout.seed).permutation(int(codes.max(initial=0)) + 1)
    searched = (drawn < len(drawn) / 2)[codes]
    features = frame[[name for name in frame.columns if name not in RESERVED]]
    matrix, asked = _matrix(features, searched, params.min_rows)
    if int(searched.sum()) < 2 * params.min_rows or not asked:
        why = f"too few rows or no features to search for weak parts: {2 * params.min_rows:,} in either half are needed"
        return [_Part("discovered_1", "", np.ones(holdout.rows, bool), too_small=why)]
    tree = DecisionTreeRegressor(max_depth=DEPTH, min_samples_leaf=params.min_rows, random_state=holdout.seed)
    tree.fit(matrix[searched], losses[searched])
    leaf_of = tree.apply(matrix)
    leaves = _leaves(tree.tree_, asked)
    if len(leaves) < 2:
        why = "no part stands out: the search found nothing to split the holdout by"
        return [_Part("discovered_1", "", np.ones(holdout.rows, bool), too_small=why)]
    mean = {leaf: float(losses[searched & (leaf_of == leaf)].mean()) for leaf in leaves}
    worst = sorted(leaves, key=lambda leaf: -mean[leaf])[:DISCOVERED]
    chosen = [leaf for leaf in worst if mean[leaf] > 0] or worst[:1]
    what = "squared error, in spreads of the labels," if holdout.target.kind == "regression" else "log loss"
    note = f"found on the other half, where its {what} is {{:+.4f}} a row against {{}}"
    return [
        _Part(f"discovered_{place}", leaves[leaf], ~searched & (leaf_of == leaf), note.format(mean[leaf], whose))
        for place, leaf in enumerate(chosen, start=1)
    ]


@dataclass(frozen=True)
class _Question:
    """One column of the tree's matrix: a number, or whether a category is this one."""

    column: str
    category: str | None = None
    gaps: bool = False
    """Whether values are missing."""


def _matrix(
    frame: pd.DataFrame, searched: NDArray[np.bool_], least: int
) -> tuple[NDArray[np.float32], list[_Question]]:
    columns, asked = [], []
    limit = np.finfo(np.float32).max
    for name in frame.columns:
        if _is_number(frame[name]):
            values = np.clip(_numbers(frame[name]), -limit, limit).astype(np.float32)
            columns.append(values)
            asked.append(_Question(str(name), gaps=bool(np.isnan(values).any())))
            continue
        texts = _texts(frame[name])
        found, counts = np.unique(texts[searched], return_counts=True)
        for category in found[counts >= least]:  # no other can be a leaf
            columns.append((texts == category).astype(np.float32))
            asked.append(_Question(str(name), category=str(category)))
    made = np.stack(columns, axis=1) if columns else np.empty((len(frame), 0), np.float32)
    return made, asked


def _leaves(tree: Any, asked: Sequence[_Question]) -> dict[int, str]:
    """Each leaf of a fitted tree, and the conditions that lead there in words."""
    found: dict[int, str] = {}
    ways: list[tuple[int, dict[int, _Range]]] = [(0, {})]
    while ways:
        node, ranges = ways.pop()
        left, right = int(tree.children_left[node]), int(tree.children_right[node])
        if left == right:
            found[node] = _said(ranges, asked)
            continue
        position, at, gaps_left = int(tree.feature[node]), float(tree.threshold[node]), tree.missing_go_to_left[node]
        before = ranges.get(position, _Range(gaps=asked[position].gaps))
        ways.append((left, {**ranges, position: replace(before, below=at, gaps=before.gaps and bool(gaps_left))}))
        ways.append((right, {**ranges, position: replace(before, least=at, gaps=before.gaps and not gaps_left)}))
    return found


@dataclass(frozen=True)
class _Range:
    """What a way down the tree has said of one question: a later answer is the narrower one."""

    gaps: bool
    least: float | None = None
    below: float | None = None


def _said(ranges: dict[int, _Range], asked: Sequence[_Question]) -> str:
    one_of = {asked[p].column for p, each in ranges.items() if asked[p].category is not None and each.least is not None}
    said = []
    for position, each in ranges.items():
        question = asked[position]
        if question.category is not None:
            if each.least is not None or question.column not in one_of:  # what is UA is not B6: no need to say it
                said.append(f"{question.column} {'≠' if each.least is None else '='} {question.category}")
            continue
        gaps = " (or missing)" if each.gaps else ""
        if each.least is None:
            said.append(f"{question.column} < {each.below:.4g}{gaps}")
        elif each.below is None:
            said.append(f"{question.column} ≥ {each.least:.4g}{gaps}")
        else:
            said.append(f"{each.least:.4g} ≤ {question.column} < {each.below:.4g}{gaps}")
    return " and ".join(said)


def _column_levels(column: "pd.Series[Any]", bins: int) -> tuple[NDArray[np.intp], list[tuple[str, str]]]:
    """The code of each row, and for each code its short name and its words, with {} for the column's name."""
    if not _is_number(column):
        found, codes = np.unique(_texts(column), return_inverse=True)
        return codes, [(text, f"{{}} {'is' if text == MISSING else '='} {_escaped(text)}") for text in found]
    values = _numbers(column)
    gaps = np.isnan(values)
    distinct = np.unique(values[~gaps])
    if len(distinct) <= bins:
        codes = np.searchsorted(distinct, values)
        names = [(f"{value:g}", f"{{}} = {value:g}") for value in distinct]
    else:
        edges = np.unique(np.quantile(values[~gaps], np.linspace(0, 1, bins + 1)[1:-1], method="higher"))
        edges = edges[edges > distinct[0]]
        edges = edges if len(edges) else distinct[1:2]  # nearly all are the smallest: that one, and the rest
        codes = np.searchsorted(edges, values, side="right")
        low, high = edges[0], edges[-1]
        names = [(f"<{low:g}", f"{{}} < {low:g}")]
        names += [(f"[{a:g},{b:g})", f"{a:g} ≤ {{}} < {b:g}") for a, b in pairwise(edges)]
        names += [(f"≥{high:g}", f"{{}} ≥ {high:g}")]
    codes = np.where(gaps, len(names), codes).astype(np.intp)
    return codes, [*names, (MISSING, f"{{}} is {MISSING}")]


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _is_number(column: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _numbers(column: "pd.Series[Any]") -> Floats:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _texts(column: "pd.Series[Any]") -> NDArray[np.str_]:
    return np.where(column.isna(), MISSING, column.astype("object").astype(str)).astype(str)


def _losses(holdout: Holdout, ours: Floats, theirs: Floats) -> Floats:
    """Row by row, how much more ours loses."""
    loss, labels = [], holdout.labels
    for scores in (ours, theirs):
        if holdout.target.kind == "regression":
            errors = (scores - labels) / (holdout.target.spread or 1.0)
            loss.append(np.minimum(errors**2, _MOST_SQUARED))
            continue
        clipped = np.clip(scores, _LEAST_SCORE, 1 - _LEAST_SCORE)
        if holdout.target.kind == "multiclass":
            loss.append(-np.log(clipped[np.arange(len(labels)), labels.astype(np.intp)]))
        else:
            loss.append(-np.where(labels == 1, np.log(clipped), np.log1p(-clipped)))
    difference: Floats = loss[0] - loss[1]
    return difference


def _whole(scores: Floats, holdout: Holdout) -> bool:
    return len(scores) == holdout.rows and bool(np.isfinite(scores).all())


def _turned(found: Interval) -> Interval:
    """The interval of the negative."""
    lower = None if found.upper is None else -found.upper
    return Interval(-found.estimate, lower, None if found.lower is None else -found.lower)


def _tuple(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _names(wanted: Sequence[str | Sequence[str]]) -> Iterator[str]:
    return (name for columns in wanted for name in _tuple(columns))
