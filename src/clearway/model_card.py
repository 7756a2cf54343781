"""A model card: what a model is for, what it was made from, how good it is and what nobody knows yet, in Markdown.

Sections as by Mitchell et al. (Model Cards for Model Reporting, FAccT 2019), with the front matter that model hubs
read. What only people know comes from ``params.yaml: model_card``; all else from what the stages have measured. It is
evidence beside a bundle and names its digest: the digest does not cover it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from clearway.bundle import CHALLENGER
from clearway.cli import markdown_cell
from clearway.comparison import flatten
from clearway.lineage import DIRTY, Lineage
from clearway.paired import Interval, resolution
from clearway.params import Params
from clearway.secretless import shown
from clearway.snapshot import Snapshot

MB = 2**20
_SHOWN_FEATURES = 10
_UNSAID = "*Not said: write it under `model_card:` in params.yaml.*"
_ANSWERS = {
    "binary": "a probability of yes; it answers yes from {threshold}",
    "multiclass": "a probability of each of several classes; it answers the likeliest",
    "regression": "a number",
}
_RUNTIMES = {"onnx": "ONNX Runtime", "scikit-learn": "scikit-learn: it has no ONNX, so answers are slower"}
_TRAINING = ("data", "split", "seed", "train")
"""The sections of params.yaml that make a model; the others judge or serve it."""


@dataclass(frozen=True)
class CardContent:
    """All that a card is written from."""

    params: Params
    digest: str
    lineage: Lineage
    snapshot: Snapshot
    fitted: Mapping[str, Any]
    """What ``params.json`` of the payload says of the fit: estimator and arguments, found by a search or not."""
    validation: Mapping[str, Any]
    """``model_validation.json``."""
    training: Mapping[str, Any]
    """``training.json``."""
    payload_bytes: int
    runtime: str
    """What answers: ``onnx`` or ``scikit-learn``."""
    numeric: int
    """Features that are numbers."""
    categorical: int


def render(content: CardContent) -> str:
    """The card, Markdown.

    Text that came with data or from ``params.yaml`` cannot become markup or break a table.
    """
    lineage = content.lineage
    parts = [
        _front_matter(content),
        f"# {_text(content.params.project.name)}: {lineage.role} `{content.digest[:12]}`",
        _details(content),
        _use(content),
        _data(content),
        _procedure(content),
        _metrics(content),
        *([_parts(content)] if _measured(content).get("parts") else []),
        *([_importances(content)] if _measured(content).get("importances") and lineage.role == CHALLENGER else []),
    ]
    if lineage.role == CHALLENGER:
        parts += [_calibration(content), _fairness(content), _behaviour(content), _gates(content)]
    else:
        parts.append("## Gates\n\nThe simple model that the gates compare with: a control, held to no gate.")
    parts += [_footprint(content), _reproduction(content), _unknowns(content)]
    return "\n\n".join(parts) + "\n"


def _front_matter(content: CardContent) -> str:
    card = content.params.model_card
    front = {
        "license": card.licence or "unknown",
        "library_name": "sklearn",
        "pipeline_tag": f"tabular-{'regression' if content.params.target.kind == 'regression' else 'classification'}",
        "tags": ["clearway", content.lineage.role],
        "metrics": list(content.lineage.metrics),
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}\n---"


def _details(content: CardContent) -> str:
    lineage, card, train = content.lineage, content.params.model_card, content.params.train
    fitted = content.fitted
    written = yaml.safe_dump(fitted["arguments"], default_flow_style=True, width=10_000).strip()
    found = f" (found by a search of {fitted['tune']['trials']} trials)" if fitted.get("tune") else ""
    owners = ", ".join(map(_text, card.owners)) or "not said"
    said = [
        ("digest", f"`{content.digest}`"),
        ("estimator", f"`{fitted['estimator']}`, arguments: {_text(written)}{found}"),
        ("answer", _ANSWERS[content.params.target.kind].format(threshold=f"{train.threshold:g}")),
        *(
            (name.replace("_", " "), _text(f"{fitted[name]}"))
            for name in ("class_weights", "calibration")
            if fitted.get(name)
        ),
        ("served by", _RUNTIMES[content.runtime]),
        ("inputs", f"{content.numeric + content.categorical} features, {content.categorical} of them categories"),
        ("owners", owners),
        ("licence", _text(card.licence or "not said")),
        ("trained because", f"{_text(lineage.trigger)} ({_text(', '.join(lineage.reasons)) or 'no reason recorded'})"),
    ]
    return "## Details\n\n" + "\n".join(f"- {name}: {value}" for name, value in said)


def _use(content: CardContent) -> str:
    card = content.params.model_card
    control = "" if content.lineage.role == CHALLENGER else "As a control: it answers only beside a challenger.\n\n"
    return (
        f"## Intended use\n\n{control}{_said(card.intended_use)}\n\n"
        f"### Out of scope\n\n{_said(card.out_of_scope)}\n\n"
        f"### Limitations\n\n{_listed(card.limitations)}\n\n"
        f"### Ethical considerations\n\n{_listed(card.ethical_considerations)}"
    )


def _data(content: CardContent) -> str:
    lineage = content.lineage
    when = f"{lineage.as_of:%Y-%m-%d %H:%M} UTC" if lineage.as_of else "no time in the data"
    until = f", answers known until {lineage.trained_until:%Y-%m-%d %H:%M} UTC" if lineage.trained_until else ""
    held = content.validation["rows"]
    share = content.training.get("positive_share")
    positive = f", {share:.1%} of them positive" if isinstance(share, float) else ""
    tables = [
        (name, f"{table.rows:,}", shown(table.source), f"`{table.sha256}`")
        for name, table in content.snapshot.tables.items()
    ]
    return "\n".join(
        [
            "## Data",
            "",
            f"- as of: {when}; snapshot `{lineage.snapshot_sha256}`",
            f"- training: {lineage.training_rows:,} rows{positive}{until}",
            f"- holdout: {held:,} rows that no model has learned from",
            "",
            _table(("table", "rows", "source", "sha256"), tables),
        ]
    )


def _procedure(content: CardContent) -> str:
    mine = content.training[content.lineage.role]
    params = shown(content.params.model_dump(mode="json", by_alias=True, include=set(_TRAINING)))
    flat = flatten({key: value for key, value in params.items() if value is not None})
    peak = content.training["peak_memory_mb"]
    warned = "".join(f"\n- warned: {_text(one)}" for one in mine.get("warnings", ()))
    return (
        f"## Training\n\n- took {mine['seconds']:.3g} s; the training process needed at most {peak:,.0f} MB{warned}\n\n"
        "Effective parameters, defaults filled in; `params.yaml` beside this card has those of gates and serving.\n\n"
        + _table(("parameter", "value"), [(key, str(value)) for key, value in flat.items()])
    )


def _metrics(content: CardContent) -> str:
    measured = _measured(content)
    role = content.lineage.role
    intervals = measured.get("intervals", {}) if role == CHALLENGER else {}
    trained = measured.get("training", {}).get(role, {})
    other = content.validation["metrics"].get("champion") or {}
    rows = [
        (name, f"{value:.4f}", _bounds(intervals.get(name)), _number(trained.get(name)), _number(other.get(name)))
        for name, value in content.lineage.metrics.items()
    ]
    level = measured.get("confidence")
    note = "" if level is None or not intervals else f"\n\nEach bound is one-sided, of {level:g}."
    columns = ("metric", "holdout", "interval", "training", "champion, holdout")
    return f"## Metrics\n\n{_table(columns, rows)}{note}\n\n{_resolves(content)}".rstrip()


def _resolves(content: CardContent) -> str:
    """What margin the holdout can tell."""
    if content.lineage.role != CHALLENGER:
        return ""
    margin, name = content.params.gates.champion.margin, content.params.gates.champion.metric
    compared = next((gate for gate in content.validation["gates"] if gate["name"] == "champion"), None)
    if compared is None or compared["estimate"] is None:
        return f"There was no champion to compare with, so what margin in {name} this holdout resolves is not known."
    interval = Interval(compared["estimate"], compared["lower"], compared["upper"])
    found = resolution(interval, compared["n"] or 0, margin)
    if found is None:
        return f"This holdout resolves no margin in {name} against the champion: it has too few rows of one answer."
    smallest, needed = found
    more = f"; about {needed:,} rows resolve {margin:g}" if needed is not None and smallest > margin else ""
    return f"Against the champion this holdout resolves a margin of {smallest:.2g} in {name} at best{more}."


def _parts(content: CardContent) -> str:
    measured = _measured(content)
    name, role = measured["metric"], content.lineage.role
    rows = [
        (
            part["column"],
            part["value"],
            f"{part['rows']:,}",
            _number(part["metrics"].get(role, {}).get(name)),
            _bounds(part["interval"]) if role == CHALLENGER else "–",
        )
        for part in measured["parts"]
    ]
    left = f"\n\n{measured['left_out']:,} smaller parts are left out." if measured.get("left_out") else ""
    return f"## {name} by part of the holdout\n\n{_table(('column', 'value', 'rows', name, 'interval'), rows)}{left}"


def _importances(content: CardContent) -> str:
    measured = _measured(content)
    first = measured["importances"][:_SHOWN_FEATURES]
    rows = [(one["feature"], f"{one['mean']:.4f}", f"{one['spread']:.4f}") for one in first]
    table = _table(("feature", f"loss in {measured['metric']}", "standard deviation"), rows)
    others = len(measured["importances"]) - len(first)
    left = f"\n\n{others} others matter less; all are in `plots/importances.csv`." if others else ""
    return f"## Importance of features\n\nWhat is lost on the holdout where one is shuffled.\n\n{table}{left}"


def _calibration(content: CardContent) -> str:
    found = content.validation.get("calibration")
    if not found:
        return "## Calibration\n\nNot measured."
    meanings = {
        "error": "expected calibration error; 0 is best",
        "brier": "Brier score; lower is better",
        "slope": "slope of the log-odds; below 1: too extreme",
        "intercept": "intercept of the log-odds; 0 is best",
    }
    rows = [(said, _number(found[key]["estimate"]), _bounds(found[key])) for key, said in meanings.items()]
    return f"## Calibration\n\n{_table(('what', 'estimate', 'interval'), rows)}"


def _fairness(content: CardContent) -> str:
    groups = content.params.gates.fairness.attributes
    if not groups:
        return "## Fairness\n\nNo groups are named in `params.yaml: gates.fairness.attributes`: nothing was compared."
    named = ", ".join(_text(one if isinstance(one, str) else " and ".join(one)) for one in groups)
    wanted = {one if isinstance(one, str) else "&".join(one) for one in groups}
    parts = [part for part in _measured(content).get("parts", ()) if part["column"] in wanted]
    shown_metrics = list(dict.fromkeys(name for part in parts for name in _ours(part)))
    rows = [
        (
            part["column"],
            part["value"],
            f"{part['rows']:,}",
            *(_number(_ours(part).get(name)) for name in shown_metrics),
        )
        for part in parts
    ]
    table = f"\n\n{_table(('column', 'group', 'rows', *shown_metrics), rows)}" if rows else ""
    return f"## Fairness\n\nGroups by: {named}.{table}\n\n{_gate_table(content, 'fairness_')}"


def _ours(part: Mapping[str, Any]) -> Mapping[str, float]:
    found: Mapping[str, float] = part["metrics"].get(CHALLENGER, {})
    return found


def _behaviour(content: CardContent) -> str:
    return f"## Robustness and behaviour\n\n{_gate_table(content, 'noise_', 'behaviour_')}"


def _gates(content: CardContent) -> str:
    verdict = f"{content.validation['verdict']}: {_text(content.validation['reason'])}"
    return f"## Gates\n\n{verdict}\n\n{_gate_table(content, '')}"


def _footprint(content: CardContent) -> str:
    said = [f"- the model's files: {content.payload_bytes / MB:.3g} MB"]
    if content.lineage.role == CHALLENGER:
        names = ("memory", "latency_p95_ms", "served_latency_p95_ms", "served_memory_mb")
        costs = [gate for gate in content.validation["gates"] if gate["name"] in names]
        said += [f"- {gate['name']}: {_text(gate['detail'])}" for gate in costs]
    return "## Footprint\n\n" + "\n".join(said)


def _reproduction(content: CardContent) -> str:
    lineage = content.lineage
    packages = ", ".join(f"{name} {version}" for name, version in lineage.packages.items())
    return "\n".join(
        [
            "## How to reproduce",
            "",
            f"`python scripts/reproduce.py {content.digest}` rebuilds it from commit and lock, and compares digests.",
            "",
            f"- project's commit: `{lineage.git_commit or 'no git'}`",
            f"- line's commit: `{lineage.code_commit or 'no git'}`",
            f"- recipe: `{lineage.recipe_sha256}`",
            f"- dvc.lock: `{lineage.lock_sha256 or 'none'}`",
            f"- packages: {_text(packages)}; all that were installed are in `packages.txt`",
        ]
    )


def _unknowns(content: CardContent) -> str:
    return "## What is not known\n\n" + "\n".join(f"- {one}" for one in _not_known(content))


def _not_known(content: CardContent) -> Iterator[str]:
    lineage, params = content.lineage, content.params
    if lineage.as_of:
        yield f"How good it is on what came after {lineage.as_of:%Y-%m-%d}."
    else:
        yield "How good it is on rows from another time: the data knows no time, and the holdout is part of the file."
    if lineage.role == CHALLENGER:
        for gate in content.validation["gates"]:
            if gate["status"] == "unknown":
                yield f"`{_text(gate['name'])}`: {_text(gate['detail'])}."
        if not params.gates.fairness.attributes:
            yield "Whether it treats groups alike: none are named."
        if not params.gates.slices.declared:
            yield "How good it is in the parts that people care for: none are named."
        if not params.gates.through_server:
            yield "Its memory, and its latency through the server: measured in the gate's own process."
    for who, commit in (("project", lineage.git_commit), ("line", lineage.code_commit)):
        if commit is None:
            yield f"From which code of the {who} it was made: it was not under git."
        elif commit.endswith(DIRTY):
            yield f"From which code of the {who} it was made: files differed from the commit."


def _gate_table(content: CardContent, *prefixes: str) -> str:
    gates = [gate for gate in content.validation["gates"] if gate["name"].startswith(prefixes)]
    if not gates:
        return "Nothing was judged."
    rows = [
        (
            gate["name"],
            gate["status"],
            _number(gate["estimate"]),
            _bounds(gate),
            "–" if gate["threshold"] is None else f"{gate['threshold']:g}",
            gate["detail"],
        )
        for gate in gates
    ]
    return _table(("gate", "status", "estimate", "interval", "needed", "detail"), rows)


def _measured(content: CardContent) -> Mapping[str, Any]:
    found: Mapping[str, Any] = content.validation.get("measured") or {}
    return found


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(_text, columns))} |", f"| {' | '.join('---' for _ in columns)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_text, row))} |" for row in rows)])


def _text(value: str) -> str:
    """A text that stays one: no tag, no cell, no line of its own."""
    return markdown_cell(value.replace("<", "&lt;"))


def _said(value: str | None) -> str:
    return _text(value) if value else _UNSAID


def _listed(values: Sequence[str]) -> str:
    return "\n".join(f"- {_text(value)}" for value in values) or _UNSAID


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _bounds(found: Mapping[str, Any] | None) -> str:
    if found is None or found["lower"] is None or found["upper"] is None:
        return "–"
    return f"[{found['lower']:.4g}, {found['upper']:.4g}]"
