"""The deployment history of one environment: append-only JSON lines, each holding the hash of the line before it.

>>> entries = read_ledger(workspace.environment("production"), "production")   # doctest: +SKIP
>>> stable_digest(entries)                                                     # doctest: +SKIP
'1f3c9a…'

Two files. ``ledger.jsonl`` holds the entries; ``head.json``, the anchor, holds number and hash of the last one, so that
a ledger whose tail was cut (whose remaining chain is whole) is found out. The chain is keyless: it finds damage, loss,
reordering and edits; whoever may write both files could forge both, which is why the deliveries on GitHub push them,
non-forced, to a branch with a history of its own.

A kill can leave two traces, and both are healed by the next writer:

- *a torn last line*, without a line break: the entry was never acknowledged and nothing followed from it: dropped.
- *one whole line beyond the anchor*: the entry was written and synced, the anchor not yet moved: accepted. This is
  safe because the line must carry on the chain from the anchored entry, and because no writer appends before it has
  moved the anchor up: more than one line beyond the anchor cannot come from a kill and is refused.

A disk that is full or fails is told from a kill, because its writer lives: a line that did not reach it whole is taken
back, and the command says that nothing was recorded.

Time never runs backwards in a ledger: where the clock reads earlier than the last entry, the new entry gets the last
one's time and keeps the reading as evidence. It is not refused, because a wrong clock must not stand in the way of a
rollback. The order is the sequence's, and no decision is taken from the time.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from clearway.errors import ClearwayError
from clearway.files import canonical_json, fsync_directory, held, sha256_bytes, write_json
from clearway.params import describe

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Action = Literal["deploy", "canary", "promote", "hold", "rollback", "quarantine", "release", "shadow"]

GENESIS = "0" * 64
"""``previous_hash`` of the first entry, and the head of an empty ledger."""
LOCK_SECONDS = 30.0
CLOCK = "clock"
"""Evidence of an entry whose writer's clock read earlier than the entry before: what it read."""
_LEFT_OUT = ("warm_minutes",)
"""Fields that a line has only if they say something, so that lines from before there were any still hash alike."""


class Change(BaseModel):
    """What a writer decides; the ledger adds number, time and hashes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Action
    stable: Digest
    """Digest that answers by default from here on."""
    canary: Digest | None = None
    """Digest under trial from here on."""
    canary_weight: int = Field(0, ge=0, le=100)
    shadow: Digest | None = None
    """Digest that gets copies of the traffic from here on, and answers nobody."""
    quarantines: tuple[Digest, ...] = ()
    """Digests that may not be deployed from here on."""
    releases: tuple[Digest, ...] = ()
    """Digests that may be deployed again."""
    warm_minutes: float | None = Field(None, gt=0)
    """How long servers keep the version before in memory (strategy blue-green)."""
    actor: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    evidence: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _weight_needs_canary(self) -> Self:
        if (self.canary is None) != (self.canary_weight == 0):
            raise ValueError("a canary needs a weight above 0, and a weight needs a canary")
        if self.canary == self.stable:
            raise ValueError("the canary is the stable version")
        if self.shadow is not None and self.shadow in (self.stable, self.canary):
            raise ValueError("the shadow is a version that answers")
        return self

    @model_serializer(mode="wrap")
    def _without_no_shadow(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No shadow is written as nothing: the lines of ledgers that never had one stay as they are."""
        content: dict[str, Any] = serialize(self)
        if content.get("shadow") is None:
            content.pop("shadow", None)
        return content


class Entry(Change):
    """One line of the ledger."""

    sequence: int = Field(ge=1)
    at: AwareDatetime
    """Wall time, UTC."""
    environment: str
    previous_stable: Digest | None
    """``stable`` of the entry before."""
    previous_hash: Digest
    hash: Digest
    """SHA-256 of the canonical JSON of all other fields."""


class Anchor(BaseModel):
    """``head.json``: the last acknowledged entry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    sequence: int = Field(ge=1)
    hash: Digest


def ledger_file(folder: Path) -> Path:
    return folder / "ledger.jsonl"


def anchor_file(folder: Path) -> Path:
    return folder / "head.json"


def read_ledger(folder: Path, environment: str) -> list[Entry]:
    """Read and verify the ledger in ``folder``; an environment without one has an empty history.

    Raises
    ------
    ClearwayError
        The chain, the order, the environment's name or the anchor does not hold; names the line and the difference.
    """
    return _read(folder, environment)[0]


def anchor_is_late(folder: Path, environment: str) -> bool:
    """Whether a writer was killed between its entry and the anchor, or within its line; the next one heals it.

    Raises
    ------
    ClearwayError
        The ledger does not verify.
    """
    entries, whole_bytes, anchor = _read(folder, environment)
    path = ledger_file(folder)
    return (anchor.sequence if anchor else 0) < len(entries) or (path.exists() and path.stat().st_size > whole_bytes)


def append(folder: Path, environment: str, change: Change, *, expected_head: str) -> Entry:
    """Add an entry after the one whose hash is ``expected_head`` (:data:`GENESIS` for an empty ledger).

    The whole line is synced before the anchor moves. Of two writers that decided on the same head, one wins.

    Raises
    ------
    ClearwayError
        The ledger moved on since the caller read it, is broken, is locked by another writer for too long, or cannot be
        written. Nothing was recorded, unless the message says that this is not certain.
    """
    with locked(folder):
        entries, whole_bytes, anchor = _read(folder, environment)
        try:
            _heal(folder, environment, entries, whole_bytes, anchor)
        except OSError as error:
            raise ClearwayError(_not_recorded(folder, error)) from None
        found = head_hash(entries)
        if found != expected_head:
            raise ClearwayError(
                f"{ledger_file(folder)}: the head moved while this command decided: expected {expected_head[:12]}, "
                f"found {found[:12]} (entry {len(entries)}): look at what changed and run the command again"
            )
        entry, line = next_line(entries, environment, change)
        _add(folder, line, whole_bytes)
        with contextlib.suppress(OSError):  # the entry stands; the next writer moves the anchor up, or writes nothing
            _write_anchor(folder, entry)
        return entry


def next_line(entries: Sequence[Entry], environment: str, change: Change) -> tuple[Entry, bytes]:
    """The entry that ``change`` becomes after ``entries``, and its line; for a ledger that is kept elsewhere."""
    content = _content(change, entries, environment, datetime.now(UTC))
    return Entry.model_validate(content), canonical_json(content) + b"\n"


def _content(change: Change, before: Sequence[Entry], environment: str, now: datetime) -> dict[str, Any]:
    """The fields of the line that ``change`` becomes after ``before``."""
    content: dict[str, Any] = {
        **change.model_dump(mode="json"),
        "sequence": len(before) + 1,
        "at": _iso(now),
        "environment": environment,
        "previous_stable": before[-1].stable if before else None,
        "previous_hash": head_hash(before),
    }
    if before and before[-1].at > now:
        content["at"] = _iso(before[-1].at)
        content["evidence"] = {**content["evidence"], CLOCK: _iso(now)}
    content = {key: value for key, value in content.items() if value is not None or key not in _LEFT_OUT}
    return {**content, "hash": sha256_bytes(canonical_json(content))}


def _add(folder: Path, line: bytes, size: int) -> None:
    """Write the line behind ``size`` bytes and sync it; or leave the file as it was.

    Raises
    ------
    ClearwayError
        It cannot be written; says whether the file is as it was.
    """
    path = ledger_file(folder)
    try:
        with path.open("ab", buffering=0) as stream:
            if stream.write(line) != len(line):  # what a disk does whose last block this was
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(stream.fileno())
        fsync_directory(folder)
    except OSError as error:
        try:
            if path.exists():
                _cut(path, size)
        except OSError:
            raise ClearwayError(
                f"{path} cannot be written ({error.strerror}), nor what was begun be taken back: once it can, see "
                f"whether the entry stands (scripts/ledger.py show --env {folder.name}) before this command runs again"
            ) from None
        raise ClearwayError(_not_recorded(folder, error)) from None


def _not_recorded(folder: Path, error: OSError) -> str:
    return (
        f"{ledger_file(folder)} cannot be written ({error.strerror}): nothing was recorded; make room or correct the "
        "folder, and run the command again"
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the environment's write lock.

    Raises
    ------
    ClearwayError
        Another command holds it for more than ``LOCK_SECONDS``.
    """
    with held(folder / "ledger.lock", LOCK_SECONDS):
        yield


def head(entries: Sequence[Entry]) -> Entry | None:
    """The last entry; None if nothing was ever deployed."""
    return entries[-1] if entries else None


def head_hash(entries: Sequence[Entry]) -> str:
    """What :func:`append` expects of a caller that decided on ``entries``."""
    return entries[-1].hash if entries else GENESIS


def stable_digest(entries: Sequence[Entry]) -> str | None:
    """The version that answers by default; None if nothing was ever deployed."""
    return entries[-1].stable if entries else None


def canary_digest(entries: Sequence[Entry]) -> str | None:
    """The version under trial, if any."""
    return entries[-1].canary if entries else None


def shadow_digest(entries: Sequence[Entry]) -> str | None:
    """The version that gets copies of the traffic, if any."""
    return entries[-1].shadow if entries else None


def quarantined(entries: Sequence[Entry]) -> frozenset[str]:
    """Digests that may not be deployed."""
    barred: set[str] = set()
    for entry in entries:
        barred = (barred | set(entry.quarantines)) - set(entry.releases)
    return frozenset(barred)


def kept_warm(entries: Sequence[Entry]) -> tuple[str, datetime] | None:
    """The version that servers keep in memory though it answers nobody, and until when; None if there is none."""
    switched = next((entry for entry in reversed(entries) if entry.stable != entry.previous_stable), None)
    if switched is None or switched.warm_minutes is None or switched.previous_stable is None:
        return None
    if switched.previous_stable in quarantined(entries):
        return None
    return switched.previous_stable, switched.at + timedelta(minutes=switched.warm_minutes)


def stable_history(entries: Sequence[Entry]) -> list[str]:
    """Each version in the order in which it became stable; one that came back stands there again."""
    return [entry.stable for entry in entries if entry.stable != entry.previous_stable]


def _read(folder: Path, environment: str) -> tuple[list[Entry], int, Anchor | None]:
    """Entries, the number of bytes in whole lines, and the anchor as it stands."""
    while True:
        anchor = _read_anchor(folder, environment)
        try:
            content = ledger_file(folder).read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise ClearwayError(f"{ledger_file(folder)} cannot be read ({error.strerror}); {_RESTORE}") from None
        # A writer between the two reads would look like damage: only a pair from one moment is judged.
        if anchor == _read_anchor(folder, environment):
            break
    whole_bytes = content.rfind(b"\n") + 1
    path = ledger_file(folder)
    entries: list[Entry] = []
    for line in content[:whole_bytes].split(b"\n")[:-1]:
        entries.append(_verify(line, entries, environment, f"{path} line {len(entries) + 1}"))
    _check_anchor(path, entries, anchor, torn=whole_bytes < len(content))
    return entries, whole_bytes, anchor


def _verify(line: bytes, before: Sequence[Entry], environment: str, where: str) -> Entry:
    try:
        content = json.loads(line)
        entry = Entry.model_validate(content)
    except ValidationError as error:
        raise ClearwayError(f"{where} is no ledger entry ({describe(error)}); {_RESTORE}") from None
    except (ValueError, RecursionError) as error:
        raise ClearwayError(f"{where} is not valid JSON ({error}); {_RESTORE}") from None
    if canonical_json(content) != line:
        raise ClearwayError(f"{where} is not written in canonical JSON: it was edited; {_RESTORE}")
    expected: dict[str, object] = {
        "sequence": len(before) + 1,
        "environment": environment,
        "previous_hash": head_hash(before),
        "previous_stable": stable_digest(before),
        "hash": sha256_bytes(canonical_json({key: value for key, value in content.items() if key != "hash"})),
    }
    for field, value in expected.items():
        found = getattr(entry, field)
        if found != value:
            raise ClearwayError(f"{where}: {field} is {found!r}, expected {value!r}; {_RESTORE}")
    return entry


def _check_anchor(path: Path, entries: Sequence[Entry], anchor: Anchor | None, *, torn: bool) -> None:
    anchored = 0 if anchor is None else anchor.sequence
    name = path.parent / "head.json"
    if len(entries) < anchored:
        raise ClearwayError(
            f"{path} ends at entry {len(entries)}, but {name} says {anchored}: its tail was cut; {_RESTORE}"
        )
    if anchor is not None and entries[anchored - 1].hash != anchor.hash:
        found = entries[anchored - 1].hash
        raise ClearwayError(
            f"{path} line {anchored}: hash is {found[:12]}, but {name} says {anchor.hash[:12]}: "
            f"the history was rewritten; {_RESTORE}"
        )
    if len(entries) > anchored + (0 if torn else 1):
        raise ClearwayError(
            f"{path} has {len(entries)} entries{' and a torn line' if torn else ''}, but {name} says {anchored}: "
            f"lines were added by something other than this program; {_RESTORE}"
        )


def _heal(folder: Path, environment: str, entries: Sequence[Entry], whole_bytes: int, anchor: Anchor | None) -> None:
    """Remove what a killed writer left: a torn line, or an anchor one entry behind."""
    path = ledger_file(folder)
    if path.exists() and path.stat().st_size > whole_bytes:
        _cut(path, whole_bytes)
    if entries and (anchor is None or anchor.sequence < entries[-1].sequence):
        _write_anchor(folder, entries[-1])


def _cut(path: Path, size: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(size)
        os.fsync(stream.fileno())


def _read_anchor(folder: Path, environment: str) -> Anchor | None:
    path = anchor_file(folder)
    try:
        anchor = Anchor.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}); {_RESTORE}") from None
    if anchor.environment != environment:
        raise ClearwayError(f"{path}: environment is {anchor.environment!r}, expected {environment!r}; {_RESTORE}")
    return anchor


def _write_anchor(folder: Path, entry: Entry) -> None:
    anchor = Anchor(environment=entry.environment, sequence=entry.sequence, hash=entry.hash)
    write_json(anchor_file(folder), anchor.model_dump(mode="json"))


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


_RESTORE = "restore the folder from its last good copy (on GitHub: the branch clearway-state)"
