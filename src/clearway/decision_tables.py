"""A decision as it is shown: a table in the terminal, job outputs, Markdown on the run's page, and the history."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from clearway.cli import markdown_text
from clearway.decision import Decision, TriggerResult
from clearway.decision_history import Record


def trigger_table(decision: Decision) -> Table:
    """Every trigger with its state and what it saw."""
    table = Table(box=None, pad_edge=False)
    for column in ("trigger", "state", "what it saw"):
        table.add_column(column, no_wrap=column != "what it saw")
    colours = {"fired": "yellow", "suppressed": "dim yellow", "waiting": "dim yellow", "silent": "green"}
    for trigger in decision.triggers:
        state = _state(trigger)
        table.add_row(trigger.name, state, escape(_saw(trigger)), style=colours.get(state, "dim"))
    return table


def outputs(decision: Decision) -> dict[str, str]:
    """The decision as outputs of a job: ``retrain`` (true or false), ``outcome``, ``reasons`` and ``sentence``."""
    return {
        "retrain": str(decision.retrain).lower(),
        "outcome": decision.outcome,
        "reasons": ",".join(decision.reasons),
        "sentence": decision.sentence,
    }


def history_lines(history: Sequence[Record], last: int) -> Iterator[RenderableType]:
    """The ``last`` recorded decisions in the order in which they were taken, for any width of terminal."""
    last = max(last, 1)
    if not history:
        yield Text("no decision was taken yet")
    elif len(history) > last:
        yield Text(f"the last {last:,} of {len(history):,} decisions (--history {len(history)} shows all)", style="dim")
    colours = {"retrain": "yellow", "vetoed": "red", "stopped": "red", "skip": "bold"}
    for record in history[-last:]:
        decision = record.decision
        as_of = decision.evidence.as_of
        reasons = f": {', '.join(decision.reasons)}" if decision.reasons else ""
        head = Text(f"{record.at:%Y-%m-%d %H:%M}  ")
        head.append(f"as of {as_of:%Y-%m-%d}  " if as_of else "")
        head.append(decision.outcome + reasons, style=colours[decision.outcome])
        head.append("  veto overridden" if decision.veto_overridden else "", style="bold red")
        head.append(f"  ({decision.evidence.trigger})", style="dim")
        yield head
        yield Padding(Text(decision.sentence), (0, 0, 0, 4))


def markdown(decision: Decision) -> str:
    """The decision for a job summary."""
    lines = [
        f"### Decision: {'retrain' if decision.retrain else 'do not retrain'}",
        "",
        markdown_text(decision.sentence),
        "",
        *(["**The data is broken, and its veto was overridden.**", ""] if decision.veto_overridden else []),
        "| trigger | state | what it saw |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {t.name} | {_state(t)} | {markdown_text(_saw(t))} |" for t in decision.triggers]
    return "\n".join(lines)


def _state(trigger: TriggerResult) -> str:
    """One word; ``waiting`` crossed its limit in too few windows yet."""
    if trigger.fired is None:
        return "unknown" if trigger.enabled else "disabled"
    if not trigger.enabled:
        return "disabled"
    if not trigger.fired:
        return "waiting" if trigger.crossed else "silent"
    return "suppressed" if trigger.suppressed else "fired"


def _saw(trigger: TriggerResult) -> str:
    return f"{trigger.sentence}; suppressed: {trigger.suppressed}" if trigger.suppressed else trigger.sentence
