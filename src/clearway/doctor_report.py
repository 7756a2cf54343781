"""What the doctor found, for a terminal and for the summary of a run."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from clearway.cli import markdown_cell
from clearway.doctor import Finding

COLOURS = {"ok": "green", "change": "red", "advice": "yellow", "unknown": "dim"}


def terminal_table(findings: Sequence[Finding], address: str) -> Table:
    """A line for each setting, and below it where and how to change it; ``address`` is the repository's."""
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "status", "found"):
        table.add_column(column, no_wrap=column != "found")
    for finding in findings:
        remedy = f"\n→ {finding.remedy}: {address}/{finding.page}" if finding.remedy else ""
        table.add_row(finding.name, finding.status, escape(f"{finding.found}{remedy}"), style=COLOURS[finding.status])
    return table


def markdown(findings: Sequence[Finding], address: str) -> str:
    """The protections that are inactive or unknown as Markdown; what is right is only counted."""
    open_ = [finding for finding in findings if finding.status != "ok"]
    head = f"### Settings: {len(findings) - len(open_)} of {len(findings)} as they should be"
    if not open_:
        return head
    rows = [
        f"| {markdown_cell(one.name)} | {one.status} | {markdown_cell(one.found)} | "
        f"[{markdown_cell(one.remedy)}]({address}/{one.page}) |"
        for one in open_
    ]
    return "\n".join([head, "", "| setting | status | found | change |", "| --- | --- | --- | --- |", *rows])
