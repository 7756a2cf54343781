"""From the rows of a request to answers: routed to a version, features looked up, scored, logged."""

import asyncio
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearway.errors import ClearwayError
from clearway.params import ServingParams
from clearway.prediction_log import PredictionLog
from clearway.routing import Role
from clearway.serving.batching import TooManyWaitingError
from clearway.serving.metrics import Traffic
from clearway.serving.requests import (
    NOBODY,
    Columns,
    Envelope,
    RequestError,
    as_columns,
    read_envelope,
    read_envelopes,
    strip_envelope,
)
from clearway.serving.state import Active, Loaded

SHADOWED = (200, 500)
"""Statuses of rows that a version answered or failed to: of those a shadow gets a copy."""
FEWEST_BY_COLUMN = 8
"""Rows from which on columns cost less than rows."""


@dataclass(slots=True)
class Question:
    """One row of a request, with the version that will answer it."""

    envelope: Envelope
    id: str
    role: Role
    loaded: Loaded
    row: dict[str, Any]
    """Its features; of a row by key, once they are looked up."""
    asked_at: str | None
    unit: str | None
    """Who or what it was routed by; None if that was its id."""
    inputs: dict[str, Any] | None = None
    """What a row by key carries: join keys and request fields."""
    outcomes: dict[str, str] | None = None
    """Of a row by key: what became of each view that does not give a present value."""


@dataclass(slots=True)
class Group:
    """The questions of one request that one version answers, and their places in the request."""

    loaded: Loaded
    places: list[int]
    questions: list[Question]
    matrix: NDArray[np.float32]


class ModelError(Exception):
    """A version failed to answer."""

    status = 500

    def __init__(self, digest: str, cause: str) -> None:
        super().__init__(f"version {digest} failed: {cause}")
        self.digest = digest


class Overloaded(ModelError):  # noqa: N818  # the name says what happened
    """A version has more to score than it can."""

    status = 503


class LookupFailed(Exception):  # noqa: N818  # the name says what happened
    """Features could not be looked up: the HTTP status (5xx), and one line naming the view and the cause."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Answerer:
    """Answers rows by an active table: each is routed, looked up where it comes by key, encoded, scored and logged.

    The stable version scores on the event loop, where it costs least; a canary scores in a thread of its own, so that
    one that is slow, or never ends, keeps only its own callers waiting. A version without ONNX scores in a thread
    anyway, rows that wait together in one batch.
    """

    def __init__(self, settings: ServingParams, log: PredictionLog, traffic: Traffic | None = None) -> None:
        self._settings = settings
        self._log = log
        self.traffic = traffic or Traffic()
        self._logs_inputs = "inputs" not in settings.log.leave_out
        self._logs_features = "features" not in settings.log.leave_out
        self.without_key = 0
        """Rows that were routed by their id, because they had no routing key."""
        self._tried, self._trial = "", ThreadPoolExecutor(max_workers=1, thread_name_prefix="canary")
        self._batches = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")  # no thread before its first

    def close(self) -> None:
        """Let go of the threads."""
        for lane in (self._trial, self._batches):
            lane.shutdown(wait=False, cancel_futures=True)

    async def answer_one(
        self, row: Any, wanted: str | None, active: Active, started: float, identity: str
    ) -> tuple[dict[str, Any], str]:
        """The answer to one row, and the digest of the version that gave it.

        ``wanted`` is the digest that a tester asked for, ``started`` when the request began by ``perf_counter``, and
        ``identity`` what the row is called if it has no id of its own.

        Raises
        ------
        RequestError
            The row is refused; 422, naming the field.
        LookupFailed
            Its features could not be looked up.
        ModelError
            The version failed to answer.
        """
        question = self._assign(row, wanted, active, identity)
        tester = wanted is not None
        if question.inputs is not None:
            await self._look_up([question], active, started, tester=tester)
        group = self._encoded(question, active, started, tester=tester)
        answers, failure = await self._score(group, active, started, tester=tester)
        if failure is not None:
            raise failure
        return answers[0], question.loaded.digest

    def answer_at_once(
        self, row: Any, wanted: str | None, active: Active, started: float, identity: str
    ) -> tuple[dict[str, Any], str] | None:
        """As :meth:`answer_one`, without a wait; None, and nothing has happened, where there is something to wait for.

        Raises
        ------
        RequestError, ModelError
            As :meth:`answer_one`.
        """
        question = self._assign(row, wanted, active, identity)
        loaded, tester = question.loaded, wanted is not None
        if question.inputs is not None or not _scores_here(loaded, question.role):
            self.without_key -= question.unit is None
            return None
        group = self._encoded(question, active, started, tester=tester)
        try:
            scored: NDArray[np.float64] | Exception = _timed_output(loaded, group.matrix)
        except Exception as error:
            scored = error
        answers, failure = self._tell(group, scored, active, started, tester=tester)
        if failure is not None:
            raise failure
        return answers[0], loaded.digest

    def _encoded(self, question: Question, active: Active, started: float, *, tester: bool) -> Group:
        """The group of a single row, encoded.

        Raises
        ------
        RequestError
            The row is refused.
        """
        matrix = _matrix_for(question)
        try:
            _encode_into(matrix[0], question)
        except RequestError:
            self._write_refused([question], active, started, tester=tester)
            raise
        return Group(question.loaded, [0], [question], matrix)

    async def answer_many(
        self, asked: Sequence[Any] | Columns, wanted: str | None, active: Active, started: float, identity: str
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The answers to all rows in their order, and the digests of the versions that gave them.

        Rows without an id of their own are called ``identity/0``, ``identity/1`` and so on. Rows of the same fields
        that carry their features are encoded by columns, with the same result as one by one.

        Raises
        ------
        RequestError, LookupFailed, ModelError
            As :meth:`answer_one`, of any row: the caller gets all answers or none.
        """
        tester = wanted is not None
        rows, columns = (asked.rows(), asked) if isinstance(asked, Columns) else (asked, None)
        if columns is None and len(rows) >= FEWEST_BY_COLUMN:
            columns = as_columns(rows)
        questions = None if columns is None else self._assign_columns(columns, rows, wanted, active, identity)
        if questions is None:
            columns, questions = None, []
            for place, row in enumerate(rows):
                with _naming(place):
                    questions.append(self._assign(row, wanted, active, f"{identity}/{place}"))
            if any(question.inputs is not None for question in questions):
                await self._look_up(questions, active, started, tester=tester)
        groups = _grouped(questions)
        if columns is None or not _encode_columns(groups, columns):
            self._encode_rows(questions, groups, active, started, tester=tester)
        predictions: list[Any] = [None] * len(rows)
        failures = []
        for group in groups:
            answers, failure = await self._score(group, active, started, tester=tester)
            if failure is not None:
                failures.append(failure)
                continue
            for place, answer in zip(group.places, answers, strict=True):
                predictions[place] = answer
        # Each version's rows are logged as that version fared, but the caller gets all of its answers or none.
        if failures:
            raise failures[0]
        return predictions, [group.loaded.digest for group in groups]

    def _encode_rows(
        self, questions: Sequence[Question], groups: Sequence[Group], active: Active, started: float, *, tester: bool
    ) -> None:
        """Encode each row into its group's matrix, in the order of the request: the first that is refused is named."""
        vectors = {place: group.matrix[row] for group in groups for row, place in enumerate(group.places)}
        for place, question in enumerate(questions):
            try:
                with _naming(place):
                    _encode_into(vectors[place], question)
            except RequestError:
                self._write_refused([question], active, started, tester=tester)
                raise

    def _assign(self, row: Any, wanted: str | None, active: Active, identity: str) -> Question:
        """Route by the routing key, else by id; or to the version that a tester named."""
        envelope = read_envelope(row)
        name = envelope.id or identity
        unit = active.unit(row, envelope)
        if unit is None:
            self.without_key += 1
        role, loaded = active.chosen(wanted) if wanted is not None else active.route(unit or name)
        inputs = None
        if loaded.keyed is not None:
            inputs = loaded.keyed.read(row)
        elif active.looks_by_key(row) and not row.keys() >= set(loaded.encoder.names):
            raise RequestError(
                422, f"version {loaded.digest[:12]} was not trained from the feature store: send all its features"
            )
        return Question(envelope, name, role, loaded, row, envelope.asked_at, unit, inputs)

    def _assign_columns(
        self, columns: Columns, rows: Sequence[dict[str, Any]], wanted: str | None, active: Active, identity: str
    ) -> list[Question] | None:
        """What :meth:`_assign` makes of each row; None where some is by key or is refused: rows must be walked then."""
        try:
            envelopes = read_envelopes(columns)
            names = [one.id or f"{identity}/{place}" for place, one in enumerate(envelopes)]
            units = [active.unit(row, one) for row, one in zip(rows, envelopes, strict=True)]
            if wanted is not None:
                sides = [active.chosen(wanted)] * columns.count
            else:
                sides = active.route_many([unit or name for unit, name in zip(units, names, strict=True)])
            for loaded in {id(loaded): loaded for _, loaded in sides}.values():
                # whether a row is by key depends on its fields alone
                by_key = loaded.keyed is not None and loaded.keyed.read(rows[0]) is not None
                if by_key or not loaded.encoder.fits(columns.values):
                    return None
        except RequestError:
            return None
        self.without_key += units.count(None)
        return [
            Question(envelope, name, role, loaded, row, envelope.asked_at, unit)
            for envelope, name, unit, (role, loaded), row in zip(envelopes, names, units, sides, rows, strict=True)
        ]

    async def _score(
        self, group: Group, active: Active, started: float, *, tester: bool
    ) -> tuple[list[dict[str, Any]], ModelError | None]:
        """Score one version's rows and log each; the answers, or why there are none."""
        try:
            scored: NDArray[np.float64] | Exception = await self._output(group)
        except Exception as error:  # whatever the runtime raises is this version's failure, never the server's
            scored = error
        return self._tell(group, scored, active, started, tester=tester)

    async def _output(self, group: Group) -> NDArray[np.float64]:
        """What the model says of each row of a group."""
        loaded, stable = group.loaded, group.questions[0].role == "stable"
        lane = self._batches if stable else self._lane(loaded.digest)
        if loaded.batcher is not None:
            return await loaded.batcher.output(group.matrix, lane, self._settings.batching)
        if stable or (loaded.single is not None and group.matrix is loaded.single.matrix):
            return _timed_output(loaded, group.matrix)
        return await asyncio.get_running_loop().run_in_executor(lane, _timed_output, loaded, group.matrix)

    def _tell(
        self,
        group: Group,
        scored: NDArray[np.float64] | Exception,
        active: Active,
        started: float,
        *,
        tester: bool,
    ) -> tuple[list[dict[str, Any]], ModelError | None]:
        """The answers to rows that were scored, each logged; or why there are none."""
        digest, model = group.loaded.digest, group.loaded.version.model
        failure: ModelError | None = None
        told: list[dict[str, Any]] | list[None] = [None] * len(group.questions)
        try:
            if isinstance(scored, Exception):
                raise scored
            found = model.target.told(scored, model.threshold)
            if not all(math.isfinite(one["score"]) for one in found):
                raise ArithmeticError("it answered a score that is not finite")
            told = found
        except TooManyWaitingError as error:
            failure = Overloaded(digest, str(error))
        except Exception as error:
            failure = ModelError(digest, f"{type(error).__name__}: {error}")
        status = 200 if failure is None else failure.status
        self._write(group.questions, told, status, active, started, tester=tester)
        answers = []
        for question, one in zip(group.questions, told, strict=True):
            if one is not None:
                answer = {"id": question.id, "version": digest, "role": question.role, **one}
                if question.outcomes is not None:
                    answer["features"] = question.outcomes
                answers.append(answer)
        return answers, failure

    def _write(
        self,
        questions: Sequence[Question],
        told: Sequence[Mapping[str, Any] | None],
        status: int,
        active: Active,
        started: float,
        *,
        tester: bool,
    ) -> None:
        """Log what became of each question; features only of those that got as far as having them.

        ``told`` is what was answered: see :meth:`clearway.target.Target.told`.
        """
        copies = None if tester or status not in SHADOWED else active.copies
        seconds = perf_counter() - started
        elapsed = seconds * 1000.0
        now = datetime.now(UTC)
        revision = active.table.revision
        records = []
        for question, one in zip(questions, told, strict=True):
            by_key = question.inputs is not None
            record = {
                "id": question.id,
                "revision": revision,
                "version": question.loaded.digest,
                # a tester chose the version, so that its requests are no sample of either side
                "role": "tester" if tester else question.role,
                "entity": question.unit,
                "asked_at": question.asked_at,
                "served_at": now,
                "status": status,
                "latency_ms": elapsed,
                "score": None if one is None else one["score"],
            }
            if one is not None and "probabilities" in one:
                record["probabilities"] = one["probabilities"]
            if by_key and self._logs_inputs:
                record["inputs"] = question.inputs
            if self._logs_features and (not by_key or question.outcomes is not None):
                row = question.row
                record["features"] = row if question.envelope is NOBODY else strip_envelope(row)
            records.append(record)
            if copies is not None and question.role == "stable" and (not by_key or question.outcomes is not None):
                copies.offer(record, question.row, question.inputs)
        self._log.extend(records)
        for (digest, role), places in _by_version(records).items():
            target = questions[places[0]].loaded.version.model.target
            scores = [None if (one := told[place]) is None else one["score"] for place in places]
            self.traffic.of(digest, role, target).add(status, seconds, scores)

    async def _look_up(self, questions: Sequence[Question], active: Active, started: float, *, tester: bool) -> None:
        """Read the features of those questions that are by key, all at once.

        Raises
        ------
        LookupFailed
            The feature store does not answer, or a function of the project fails; all questions of the
            versions that need it are logged as failed.
        """
        by_reader: dict[int, list[Question]] = {}
        for question in questions:
            if question.inputs is not None:
                by_reader.setdefault(id(question.loaded.reader), []).append(question)
        for together in by_reader.values():
            await self._look_up_together(together, questions, active, started, tester=tester)

    async def _look_up_together(
        self, by_key: list[Question], questions: Sequence[Question], active: Active, started: float, *, tester: bool
    ) -> None:
        reader = by_key[0].loaded.reader
        assert reader is not None  # else no row is by key
        at = []
        for question in by_key:
            time = datetime.now(UTC) if question.asked_at is None else datetime.fromisoformat(question.asked_at)
            question.asked_at = question.asked_at or time.isoformat()
            at.append(time.timestamp())
        try:
            lookups = await reader.read([question.inputs or {} for question in by_key], at)
        except ClearwayError as error:
            from clearway.feature_store.online import StoreUnavailable  # here, because it imports Feast: the reader did

            status = 503 if isinstance(error, StoreUnavailable) else 500
            failed = [question for question in questions if question.loaded.reader is reader]  # the others never fared
            self._write(failed, [None] * len(failed), status, active, started, tester=tester)
            raise LookupFailed(status, str(error)) from None
        for question, lookup in zip(by_key, lookups, strict=True):
            question.row = {name: lookup.features[name] for name in question.loaded.encoder.names}
            question.outcomes = {view: outcome for view, outcome in lookup.outcomes.items() if outcome != "present"}

    def _write_refused(self, questions: Sequence[Question], active: Active, started: float, *, tester: bool) -> None:
        """Log the rows by key whose features the model refuses: these are the store's, no caller can mend them."""
        by_key = [question for question in questions if question.outcomes is not None]
        self._write(by_key, [None] * len(by_key), 422, active, started, tester=tester)

    def _lane(self, digest: str) -> ThreadPoolExecutor:
        """The thread of this canary: one that never ends must not keep the next one's callers waiting."""
        if digest != self._tried:  # what the last one began goes on in its own, which ends with its work
            self._tried, self._trial = digest, ThreadPoolExecutor(max_workers=1, thread_name_prefix="canary")
        return self._trial


def _scores_here(loaded: Loaded, role: Role) -> bool:
    """Whether a row of a version is scored on the event loop: stable's, and that of a canary known as quick."""
    return loaded.batcher is None and (role == "stable" or loaded.pace.quick)


def _matrix_for(question: Question) -> NDArray[np.float32]:
    """What one row is encoded into: where it is scored here, no await may lie between the two."""
    loaded = question.loaded
    if loaded.single is not None and _scores_here(loaded, question.role):
        return loaded.single.matrix
    return np.empty((1, loaded.encoder.width), dtype=np.float32)


def _timed_output(loaded: Loaded, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """What a model says of each row, and how long it takes for that."""
    began, single = perf_counter(), loaded.single
    outputs = single.output() if single and matrix is single.matrix else loaded.version.model.output(matrix)
    loaded.pace.add(perf_counter() - began, len(matrix))
    return outputs


def _by_version(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[int]]:
    """The places of the records of each version in each role."""
    if len(records) == 1:
        return {(records[0]["version"], records[0]["role"]): [0]}
    places: dict[tuple[str, str], list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault((record["version"], record["role"]), []).append(place)
    return places


def _grouped(questions: Sequence[Question]) -> list[Group]:
    """The questions by version, with a matrix for each."""
    by_role: dict[Role, Group] = {}
    for place, question in enumerate(questions):
        group = by_role.get(question.role)
        if group is None:
            group = by_role[question.role] = Group(question.loaded, [], [], np.empty((0, 0), dtype=np.float32))
        group.places.append(place)
        group.questions.append(question)
    for group in by_role.values():
        group.matrix = np.empty((len(group.places), group.loaded.encoder.width), dtype=np.float32)
    return list(by_role.values())


def _encode_columns(groups: Sequence[Group], columns: Columns) -> bool:
    """Encode by columns; False if a value is refused, and then nothing was counted."""
    counts = [(group.loaded.encoder, group.loaded.encoder.counted()) for group in groups]
    try:
        for group in groups:
            values = columns.values
            if len(groups) > 1:
                values = {name: [column[place] for place in group.places] for name, column in values.items()}
            group.loaded.encoder.encode_columns(values, group.matrix)
    except RequestError:
        for encoder, counted in counts:
            encoder.count(counted)
        return False
    return True


def _encode_into(vector: NDArray[np.float32], question: Question) -> None:
    """Encode a question's features; of what was looked up and is refused, say where it comes from.

    Raises
    ------
    RequestError
        A feature is refused.
    """
    try:
        question.loaded.encoder.encode_into(question.row, vector)
    except RequestError as error:
        name = question.loaded.encoder.refused(question.row) if question.outcomes is not None else None
        reader = question.loaded.reader
        view = reader.source(name) if name is not None and reader is not None else None
        if name is None or view is None or question.outcomes is None:
            raise
        outcome = question.outcomes.get(view, "present")
        value = "null" if question.row[name] is None else "this value"
        raise RequestError(error.status, f"{error}: view {view} had {value} for it (outcome: {outcome})") from None


@contextlib.contextmanager
def _naming(place: int) -> Iterator[None]:
    """Say which row is refused."""
    try:
        yield
    except RequestError as error:
        raise RequestError(error.status, f"rows[{place}]: {error}") from None
