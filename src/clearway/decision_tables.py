"""A decision as people see it: a table in the terminal, Markdown on the run's page, and the history."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from clearway.decision import Decision, TriggerResult


def trigger_table(decision: Decision) -> Table:
    """Every trigger with its state and what it saw."""
    table = Table(box=None, pad_edge=False)
    for column in ("trigger", "state", "what it saw"):
        table.add_column(column, no_wrap=column != "what it saw")
    colours = {"fired": "yellow", "suppressed": "dim yellow", "unknown": "dim", "disabled": "dim", "silent": "green"}
    for trigger in decision.triggers:
        state = _state(trigger)
        table.add_row(trigger.name, state, escape(_saw(trigger)), style=colours[state])
    return table


def history_table(history: Sequence[dict[str, Any]]) -> Table:
    """Recorded decisions, oldest first."""
    table = Table(box=None, pad_edge=False)
    for column in ("at", "as of", "trigger", "decision", "why"):
        table.add_column(column, no_wrap=column != "why")
    for record in history:
        decision = Decision.model_validate(record["decision"])
        as_of = decision.evidence.as_of
        table.add_row(
            record["at"],
            f"{as_of:%Y-%m-%d}" if as_of else "-",
            escape(decision.evidence.trigger),
            decision.outcome,
            escape(decision.sentence),
        )
    return table


def markdown(decision: Decision) -> str:
    """The decision for a job summary."""
    lines = [
        f"### Decision: {'retrain' if decision.retrain else 'do not retrain'}",
        "",
        _cell(decision.sentence),
        "",
        "| trigger | state | what it saw |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {t.name} | {_state(t)} | {_cell(_saw(t))} |" for t in decision.triggers]
    return "\n".join(lines)


def _state(trigger: TriggerResult) -> str:
    if trigger.fired is None:
        return "unknown" if trigger.enabled else "disabled"
    if not trigger.enabled:
        return "disabled"
    if not trigger.fired:
        return "silent"
    return "suppressed" if trigger.suppressed else "fired"


def _saw(trigger: TriggerResult) -> str:
    return f"{trigger.sentence}; suppressed: {trigger.suppressed}" if trigger.suppressed else trigger.sentence


def _cell(text: str) -> str:
    """Text that stays inside one Markdown table cell, whatever the data put into it."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ").replace("\r", " ")
