"""Tell people of what the ledger says happened, through Apprise: chat, mail, pagers, any of its hundred services.

The addresses hold tokens, so they stand in ``$CLEARWAY_ALERT_URLS`` and are never written or said. What was told is
kept in ``alerted.json``: an entry that no receiver took, or whose command was killed before it, is told with the next
one. Commands do this in a process of its own (:mod:`clearway.aftermath`).
"""

import logging
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clearway.deployment import BOOTSTRAP_REASON, SHOWN
from clearway.errors import ClearwayError, UsageError
from clearway.files import held, write_json
from clearway.ledger import Entry, read_ledger
from clearway.params import Params, describe
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from apprise import NotifyBase

MOST = 20
"""Entries told at once; of more, the newest."""
OLDEST = timedelta(hours=24)
"""What happened longer ago is no news."""
NotifyKind = Literal["info", "success", "warning", "failure"]
_TYPES: dict[str, NotifyKind] = {
    "rollback": "failure",
    "quarantine": "warning",
    "hold": "warning",
    "promote": "success",
}
_LOCK_SECONDS = 10.0


class Alerted(BaseModel):
    """``alerted.json``: the last entry that people were told of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int = Field(ge=0)


def tell(
    params: Params, workspace: Workspace, environment: str, urls: str, now: datetime, after: int | None = None
) -> list[Entry]:
    """Tell the receivers at ``urls`` of every entry that they were not told of, and return those entries.

    Parameters
    ----------
    urls : str
        Addresses of Apprise, parted by spaces or commas.
    now : datetime
        Wall time, UTC.
    after : int, optional
        Where nobody was ever told of anything, to begin after the entry of this number; the last one by default.

    Raises
    ------
    UsageError
        The environment is unknown, or an address is none that Apprise knows.
    ClearwayError
        The ledger is damaged, or a receiver did not take an alert; names its kind, not its address.
    """
    params.environment(environment)
    folder = workspace.environment(environment)
    with held(folder / "alerts.lock", _LOCK_SECONDS):
        entries = read_ledger(folder, environment)
        told = _read(folder)
        begin = _begin(entries, after) if told is None else told
        receivers = _receivers(urls)
        found = untold(entries, begin, params.alerts.events, now)
        for entry in found:
            title, body = message(entry, params.project.name)
            kind = _TYPES.get(entry.action, "info")
            silent = [name for name, receiver in receivers if not _notify(receiver, title, body, kind)]
            if len(silent) < len(receivers):  # whom one dead receiver would tell everything again, and again
                write_json(folder / "alerted.json", {"sequence": entry.sequence})
            if silent:
                again = "; the next alert repeats it" if len(silent) == len(receivers) else ""
                raise ClearwayError(
                    f"{' and '.join(silent)} did not take the alert of entry {entry.sequence} of {environment}: "
                    f"see whether they run and the addresses in $CLEARWAY_ALERT_URLS still hold{again}"
                )
    return found


def announce(urls: str, title: str, body: str, kind: NotifyKind) -> None:
    """Tell the receivers at ``urls`` of what no ledger holds: how a run ended, an alarm of the monitor.

    Raises
    ------
    UsageError
        An address is none that Apprise knows.
    ClearwayError
        No receiver took it, or some did not; names their kinds, not their addresses.
    """
    silent = [name for name, receiver in _receivers(urls) if not _notify(receiver, title, body, kind)]
    if silent:
        raise ClearwayError(
            f"{' and '.join(silent)} did not take {title!r}: see whether they run and the addresses in "
            "$CLEARWAY_ALERT_URLS still hold"
        )


def untold(entries: Sequence[Entry], told: int, events: Collection[str], now: datetime) -> list[Entry]:
    """The entries beyond number ``told`` that people want to know of, oldest first."""
    new = [entry for entry in entries[told:] if entry.action in events and now - entry.at <= OLDEST]
    return new[-MOST:]


def message(entry: Entry, project: str) -> tuple[str, str]:
    """Title and text: what happened, what answers now, why, and who did it."""
    title = f"{project}: {entry.action} in {entry.environment}"
    live = f"{entry.stable[:SHOWN]} answers everything"
    if entry.canary is not None:
        live = f"canary {entry.canary[:SHOWN]} answers {entry.canary_weight}%, {entry.stable[:SHOWN]} the rest"
    lines = [
        live,
        *([f"before: {entry.previous_stable[:SHOWN]}"] if entry.previous_stable not in (None, entry.stable) else []),
        *(f"quarantined: {digest[:SHOWN]}" for digest in entry.quarantines),
        *(f"released: {digest[:SHOWN]}" for digest in entry.releases),
        f"why: {entry.reason}",
        f"who: {entry.actor}, {entry.at.isoformat(timespec='seconds')}, entry {entry.sequence}",
        *([f"run: {entry.evidence['run']}"] if "run" in entry.evidence else []),
    ]
    return title, "\n".join(lines)


def _begin(entries: Sequence[Entry], after: int | None) -> int:
    begin = max(len(entries) - 1, 0) if after is None else after
    while 0 < begin <= len(entries) and entries[begin - 1].reason == BOOTSTRAP_REASON:
        begin -= 1  # one command wrote both
    return begin


def _read(folder: Path) -> int | None:
    path = folder / "alerted.json"
    try:
        return Alerted.model_validate_json(path.read_bytes()).sequence
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): delete it, and the next entry is told") from None


def _receivers(urls: str) -> "list[tuple[str, NotifyBase]]":
    """Each receiver with the name of its kind."""
    import apprise  # costs a second
    from apprise.utils.parse import parse_urls

    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its words hold addresses
    found = []
    for number, url in enumerate(parse_urls(urls), 1):  # type: ignore[no-untyped-call]
        made = apprise.Apprise.instantiate(url)
        if made is None:
            raise UsageError(
                f"$CLEARWAY_ALERT_URLS: address {number} is none that Apprise knows (it is not shown, for it may hold "
                "a token): see https://github.com/caronc/apprise/wiki"
            )
        found.append((f"receiver {number} ({made.service_name or url.partition(':')[0]})", made))
    if not found:
        raise UsageError("$CLEARWAY_ALERT_URLS holds no address of Apprise: nobody is told")
    return found


def _notify(receiver: "NotifyBase", title: str, body: str, kind: NotifyKind) -> bool:
    try:
        return bool(receiver.notify(title=title, body=body, notify_type=kind))
    except Exception:  # a plug-in may raise what it likes; the others are told all the same
        return False
