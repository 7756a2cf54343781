"""The workers of one server as one: what each says on the board, and what the server as a whole says from it.

A worker that died is remembered: its supervisor adds its last counts to those of all that died before, and names the
worker, so that a reader who still finds its slot does not count it twice.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clearway.serving.board import Board
from clearway.serving.metrics import KEPT_SAMPLES, Family, add_up


@dataclass(frozen=True)
class Said:
    """What one worker said last."""

    pid: int
    life: int
    """How many workers the server had started before it."""
    accepting: bool
    """Whether it takes requests."""
    state: Mapping[str, Any]
    """What it would say of itself alone: :meth:`clearway.serving.app.Endpoint.describe`."""
    families: Sequence[Family]

    def plain(self) -> list[Any]:
        """As JSON can hold it."""
        return [self.pid, self.life, self.accepting, self.state, [family.plain() for family in self.families]]

    @classmethod
    def of_plain(cls, plain: Sequence[Any]) -> "Said":
        """What :meth:`plain` made, from JSON."""
        pid, life, accepting, state, families = plain
        return cls(pid, life, accepting, state, [Family.of_plain(one) for one in families])


@dataclass
class Past:
    """What is left of the workers that ended: what they counted."""

    pid: int
    """Of the process that started the workers, which is to be signalled."""
    restarts: int = 0
    counted: list[int] = field(default_factory=list)
    """Lives of the latest workers whose counts are in here."""
    log: dict[str, int] = field(default_factory=dict)
    families: list[Family] = field(default_factory=list)

    def add(self, said: Said, workers: int) -> None:
        """Count a worker that has ended, of a server with so many."""
        self.counted = [*self.counted, said.life][-4 * workers :]
        self.log = _sums([self.log, said.state.get("log") or {}])
        self.families = add_up([*self.families, *said.families], kinds=("counter", "histogram"))
        for family in self.families:
            family.samples = family.samples[-KEPT_SAMPLES:]

    def plain(self) -> list[Any]:
        """As JSON can hold it."""
        return [self.pid, self.restarts, self.counted, self.log, [family.plain() for family in self.families]]

    @classmethod
    def of_plain(cls, plain: Sequence[Any]) -> "Past":
        """What :meth:`plain` made, from JSON."""
        pid, restarts, counted, log, families = plain
        return cls(pid, restarts, counted, log, [Family.of_plain(one) for one in families])


class Desk:
    """Where one worker says how it fares, and reads how the others do.

    Parameters
    ----------
    board
        One slot for each worker, and the last for the past of all.
    slot, life
        This worker's.
    """

    def __init__(self, board: Board, slot: int = 0, life: int = 0) -> None:
        self._board = board
        self._slot = slot
        self._life = life
        self.accepting = False
        """Whether this worker takes requests."""

    @classmethod
    def alone(cls) -> "Desk":
        """Of the only worker of a server, which nobody supervises."""
        board = Board.made(2)
        os.close(board.descriptor)  # nobody else reads it
        desk = cls(board)
        desk.accepting = True
        return desk

    def say(self, state: Mapping[str, Any], families: Iterable[Family]) -> None:
        """Replace what this worker says."""
        self._board.write(self._slot, Said(os.getpid(), self._life, self.accepting, state, list(families)).plain())

    def hold(self, callers: int | None) -> bool:
        """Say how many callers this worker holds, None where it takes none; whether another that takes some has fewer.

        What others say may be old: they say it when they look for callers.
        """
        self._board.hold(self._slot, callers)
        return callers is not None and any(
            held < callers for slot, held in enumerate(self._board.held()) if held is not None and slot != self._slot
        )

    def hear(self) -> tuple[list[Said], Past]:
        """What the workers say that live, and what is left of the others."""
        said = [Said.of_plain(plain) for plain in self._board.read_all()[:-1] if plain is not None]
        past = read_past(self._board)  # after the slots: who was counted in between is then known to be
        return [one for one in said if one.life not in past.counted], past

    def others_answer(self) -> bool:
        """Whether another worker takes requests, and has a version to answer them."""
        said, _ = self.hear()
        return any(one.accepting and one.state.get("revision") is not None for one in said if one.life != self._life)


def read_past(board: Board) -> Past:
    """What the last slot says; of a worker without a supervisor, itself."""
    plain = board.read(board.slots - 1)
    return Past(os.getpid()) if plain is None else Past.of_plain(plain)


def describe_whole(said: Sequence[Said], past: Past) -> dict[str, Any]:
    """What ``GET /`` says: what the worker says that is furthest behind, with what all have counted.

    ``revision`` is what every worker that takes requests serves or has passed; ``error`` that of any worker.

    Parameters
    ----------
    said : sequence of at least one
    past
        Of the workers that ended.
    """
    answering = [one for one in said if one.accepting] or list(said)
    last = min(answering, key=lambda one: -1 if one.state["revision"] is None else one.state["revision"])
    states = [one.state for one in said]
    content = {**last.state, "pid": past.pid, "error": next((s["error"] for s in states if s["error"]), None)}
    content["unseen_categories"] = sum(state["unseen_categories"] for state in states)
    content["schema_warnings"] = _sums(state["schema_warnings"] for state in states)
    content["log"] = _sums([past.log, *(state["log"] for state in states)])
    content["routing"] = {
        **last.state["routing"],
        "without_key": sum(state["routing"]["without_key"] for state in states),
    }
    content["shadow"] = _shadow_of([state["shadow"] for state in states], last.state["shadow"])
    features = [state["features"] for state in states if state["features"] is not None]
    if features:
        content["features"] = _features_of(features)
    content["restarts"] = past.restarts
    content["workers"] = [
        {
            "pid": one.pid,
            "revision": one.state["revision"],
            "error": one.state["error"],
            "accepting": one.accepting,
        }
        for one in sorted(said, key=lambda one: one.life)
    ]
    return content


def families_of_whole(said: Sequence[Said], past: Past) -> list[Family]:
    """What ``GET /metrics`` says."""
    workers = Family("clearway_workers", "gauge", "Worker processes that take requests.")
    restarts = Family("clearway_worker_restarts", "counter", "Worker processes started in place of one that ended.")
    return [
        *add_up([*past.families, *(family for one in said for family in one.families)]),
        workers.add([], sum(one.accepting for one in said)),
        restarts.add([], past.restarts),
    ]


def _shadow_of(shadows: Sequence[Mapping[str, Any] | None], last: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What is said of the shadow by the worker that fares worst with it, with what all have counted."""
    own = [one for one in shadows if one is not None and last is not None and one["digest"] == last["digest"]]
    if not own:
        return last
    worst = min(own, key=lambda one: _READINESS.index(one["state"]))
    return {**worst, **{name: sum(one[name] for one in own) for name in ("answered", "failed", "dropped")}}


_READINESS = ("down", "closed", "starting", "up")
_WORST = ("down", "degraded", "up")


def _features_of(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the worker with the worst store says of it, with what all have counted; some without it is ``degraded``."""
    worst = min(features, key=lambda one: _WORST.index(one["status"]))
    content = dict(worst)
    if worst["status"] == "down" and any(one["status"] != "down" for one in features):
        content["status"] = "degraded"
    for name in ("failures", "cache_entries", "cache_hits"):
        content[name] = sum(one[name] for one in features)
    views = dict.fromkeys(view for one in features for view in one["outcomes"])
    content["outcomes"] = {view: _sums(one["outcomes"].get(view, {}) for one in features) for view in views}
    return content


def _sums(counted: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts by name, added up."""
    sums: dict[str, int] = {}
    for one in counted:
        for name, count in one.items():
            sums[name] = sums.get(name, 0) + count
    return sums
