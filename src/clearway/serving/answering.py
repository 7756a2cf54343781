"""From the rows of a request to answers: routed to a version, features looked up, scored, logged."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearway.errors import ClearwayError
from clearway.params import ServingParams
from clearway.prediction_log import PredictionLog
from clearway.routing import Role
from clearway.serving.batching import TooManyWaitingError
from clearway.serving.metrics import Traffic
from clearway.serving.requests import (
    ENVELOPE,
    Columns,
    RequestError,
    as_columns,
    read_envelope,
    read_envelopes,
    strip_envelope,
)
from clearway.serving.state import Active, Loaded
from clearway.target import Told

if TYPE_CHECKING:
    from clearway.feature_store.online import Lookup

SHADOWED = (200, 500)
"""Statuses of rows that a version answered or failed to: of those a shadow gets a copy."""
FEWEST_BY_COLUMN = 8
"""Rows from which on columns cost less than rows."""


@dataclass(slots=True)
class Question:
    """One row of a request, with the version that will answer it."""

    id: str
    role: Role
    loaded: Loaded
    row: dict[str, Any]
    """As it was sent; of a row by key, its features, once they are looked up."""
    asked_at: str | None
    unit: str | None
    """Who or what it was routed by; None if that was its id."""
    inputs: dict[str, Any] | None = None
    """What a row by key carries: join keys and request fields."""
    outcomes: dict[str, str] | None = None
    """Of a row by key: what became of each view that does not give a present value."""


@dataclass(slots=True)
class Group:
    """The rows of one request that one version answers.

    By columns: of a batch an object for each row would cost more than its score.
    """

    loaded: Loaded
    role: Role
    places: Sequence[int]
    """In the request."""
    ids: Sequence[str]
    units: Sequence[str | None]
    asked_at: Sequence[str | None]
    rows: Sequence[dict[str, Any]]
    """Features, and nothing else."""
    matrix: NDArray[np.float32]
    """The same, encoded: shape (rows, features)."""
    inputs: Sequence[dict[str, Any] | None] | None = None
    """As those of the questions; None where no row is by key."""
    outcomes: Sequence[dict[str, str] | None] | None = None
    """Set with ``inputs``."""


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

    The stable version scores on the event loop, where it costs least; a canary scores in a thread of its own until it
    is known as quick, so that one that is slow, or never ends, keeps only its own callers waiting. A version without
    ONNX scores in a thread anyway, rows that wait together in one batch.
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
        return await self.answer_question(question, active, started, tester=wanted is not None)

    async def answer_question(
        self, question: Question, active: Active, started: float, *, tester: bool
    ) -> tuple[dict[str, Any], str]:
        """The rest of :meth:`answer_one` and :meth:`answer_at_once`.

        Raises
        ------
        RequestError, LookupFailed, ModelError
            As :meth:`answer_one`.
        """
        if question.inputs is not None:
            await self._look_up([question], active, started, tester=tester)
        group = self._encoded(question, active, started, tester=tester)
        answers, failure = await self._score(group, active, started, tester=tester)
        if failure is not None:
            raise failure
        return answers[0], question.loaded.digest

    def answer_at_once(
        self, row: Any, wanted: str | None, active: Active, started: float, identity: str
    ) -> tuple[dict[str, Any], str] | Question:
        """As :meth:`answer_one`, without a wait.

        Where there is something to wait for, a question for :meth:`answer_question`.

        Raises
        ------
        RequestError, LookupFailed, ModelError
            As :meth:`answer_one`.
        """
        question = self._assign(row, wanted, active, identity)
        loaded, tester = question.loaded, wanted is not None
        if not _scores_here(loaded, question.role):
            return question
        if question.inputs is not None and not self._looked_up_at_once(question, active, started, tester=tester):
            return question
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
        group = _alone(question, _matrix_for(question))
        try:
            _encode_into(group, 0)
        except RequestError:
            self._write_refused(group, 0, active, started, tester=tester)
            raise
        return group

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
        groups = None if columns is None else self._assign_columns(columns, rows, wanted, active, identity)
        if groups is None:
            columns, questions = None, []
            for place, row in enumerate(rows):
                with _naming(place):
                    questions.append(self._assign(row, wanted, active, f"{identity}/{place}"))
            if any(question.inputs is not None for question in questions):
                await self._look_up(questions, active, started, tester=tester)
            groups = _grouped(questions)
        if columns is None or not _encode_columns(groups, columns):
            self._encode_rows(groups, active, started, tester=tester)
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

    def _encode_rows(self, groups: Sequence[Group], active: Active, started: float, *, tester: bool) -> None:
        """Encode row by row, in the order of the request: the first that is refused is named."""
        turns = {place: (group, row) for group in groups for row, place in enumerate(group.places)}
        for place in sorted(turns):
            group, row = turns[place]
            try:
                with _naming(place):
                    _encode_into(group, row)
            except RequestError:
                self._write_refused(group, row, active, started, tester=tester)
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
        return Question(name, role, loaded, row, envelope.asked_at, unit, inputs)

    def _assign_columns(
        self, columns: Columns, rows: Sequence[dict[str, Any]], wanted: str | None, active: Active, identity: str
    ) -> list[Group] | None:
        """The rows by version; None where some is by key or is refused: they must be walked then."""
        try:
            envelopes = read_envelopes(columns)
            ids = [own or f"{identity}/{place}" for place, own in enumerate(envelopes.ids)]
            units = active.units(columns, envelopes.entities)
            if wanted is not None:
                everywhere: Sequence[int] = range(columns.count)
                sides = [(*active.chosen(wanted), everywhere)]
            else:
                sides = active.route_many([unit or name for unit, name in zip(units, ids, strict=True)])
            for _, loaded, _ in sides:
                # whether a row is by key depends on its fields alone
                by_key = loaded.keyed is not None and loaded.keyed.read(rows[0]) is not None
                if by_key or not loaded.encoder.fits(columns.values):
                    return None
        except RequestError:
            return None
        self.without_key += units.count(None)
        if not columns.values.keys().isdisjoint(ENVELOPE):
            for row in rows:
                strip_envelope(row)
        groups = []
        for role, loaded, places in sides:
            own = _taking(places, columns.count)
            matrix = np.empty((len(places), loaded.encoder.width), dtype=np.float32)
            groups.append(Group(loaded, role, places, own(ids), own(units), own(envelopes.asked_at), own(rows), matrix))
        return groups

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
        loaded, stable = group.loaded, group.role == "stable"
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
        told: Told | None = None
        failure: ModelError | None = None
        try:
            if isinstance(scored, Exception):
                raise scored
            found = model.target.told(scored, model.threshold)
            if not all(map(math.isfinite, found.scores)):
                raise ArithmeticError("it answered a score that is not finite")
            told = found
        except TooManyWaitingError as error:
            failure = Overloaded(digest, str(error))
        except Exception as error:
            failure = ModelError(digest, f"{type(error).__name__}: {error}")
        self._write(group, told, 200 if failure is None else failure.status, active, started, tester=tester)
        if told is None:
            return [], failure
        role = group.role
        answers: list[dict[str, Any]] = [
            {"id": name, "version": digest, "role": role, "score": score, "label": label}
            for name, score, label in zip(group.ids, told.scores, told.labels, strict=True)
        ]
        if told.probabilities is not None:
            for answer, probabilities in zip(answers, told.probabilities, strict=True):
                answer["probabilities"] = probabilities
        if group.outcomes is not None:
            for answer, outcomes in zip(answers, group.outcomes, strict=True):
                if outcomes is not None:
                    answer["features"] = outcomes
        return answers, None

    def _write(
        self, group: Group, told: Told | None, status: int, active: Active, started: float, *, tester: bool
    ) -> None:
        """Log what became of each row, and count it."""
        seconds = perf_counter() - started
        # a tester chose the version, so that its requests are no sample of either side
        role = "tester" if tester else group.role
        loaded, scores = group.loaded, () if told is None else told.scores
        self.traffic.of(loaded.digest, role, loaded.version.model.target).add(status, seconds, len(group.ids), scores)
        self._append(group, told, status, active, seconds, role)

    def _append(self, group: Group, told: Told | None, status: int, active: Active, seconds: float, role: str) -> None:
        """Log each row, and offer it to a shadow; features only of those that got as far as having them."""
        shared = {
            "revision": active.table.revision,
            "version": group.loaded.digest,
            "role": role,
            "served_at": datetime.now(UTC),
            "status": status,
            "latency_ms": seconds * 1000.0,
        }
        records = self._records(group, [None] * len(group.ids) if told is None else told.scores)
        if told is not None and told.probabilities is not None:
            for record, probabilities in zip(records, told.probabilities, strict=True):
                record["probabilities"] = probabilities
        self._log.extend(records, shared)
        if active.copies is not None and role == "stable" and status in SHADOWED:
            for place, record in enumerate(records):
                inputs = None if group.inputs is None else group.inputs[place]
                if inputs is None or (group.outcomes is not None and group.outcomes[place] is not None):
                    active.copies.offer({**shared, **record}, group.rows[place], inputs)

    def _records(self, group: Group, scores: Sequence[float | None]) -> list[dict[str, Any]]:
        """What the log says of each row of a group that it does not say of all."""
        columns = (group.ids, group.units, group.asked_at, scores, group.rows)
        if group.inputs is None or group.outcomes is None:
            if self._logs_features:
                return [
                    {"id": name, "entity": unit, "asked_at": asked_at, "score": score, "features": row}
                    for name, unit, asked_at, score, row in zip(*columns, strict=True)
                ]
            return [
                {"id": name, "entity": unit, "asked_at": asked_at, "score": score}
                for name, unit, asked_at, score, _ in zip(*columns, strict=True)
            ]
        records = []
        for name, unit, asked_at, score, row, inputs, outcomes in zip(
            *columns, group.inputs, group.outcomes, strict=True
        ):
            record: dict[str, Any] = {"id": name, "entity": unit, "asked_at": asked_at, "score": score}
            if inputs is not None and self._logs_inputs:
                record["inputs"] = inputs
            if self._logs_features and (inputs is None or outcomes is not None):
                record["features"] = row
            records.append(record)
        return records

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
        at = [_time_of(question) for question in by_key]
        try:
            lookups = await reader.read([question.inputs or {} for question in by_key], at)
        except ClearwayError as error:
            failed = [question for question in questions if question.loaded.reader is reader]  # the others never fared
            raise self._lookup_failed(error, failed, active, started, tester=tester) from None
        for question, lookup in zip(by_key, lookups, strict=True):
            _take(question, lookup)

    def _looked_up_at_once(self, question: Question, active: Active, started: float, *, tester: bool) -> bool:
        """Read the features of a question by key, unless there is something to wait for.

        Raises
        ------
        LookupFailed
            A function of the project fails; the question is logged as failed.
        """
        reader = question.loaded.reader
        assert reader is not None  # else no row is by key
        at = _time_of(question)
        try:
            lookups = reader.read_at_once([question.inputs or {}], [at])
        except ClearwayError as error:
            raise self._lookup_failed(error, [question], active, started, tester=tester) from None
        if lookups is None:
            return False
        _take(question, lookups[0])
        return True

    def _lookup_failed(
        self, error: ClearwayError, failed: Sequence[Question], active: Active, started: float, *, tester: bool
    ) -> LookupFailed:
        """What the caller is told; the questions are logged."""
        from clearway.feature_store.online import StoreUnavailable  # here, because it imports Feast: the reader did

        status = 503 if isinstance(error, StoreUnavailable) else 500
        for group in _grouped(failed):
            self._write(group, None, status, active, started, tester=tester)
        return LookupFailed(status, str(error))

    def _write_refused(self, group: Group, row: int, active: Active, started: float, *, tester: bool) -> None:
        """Log a row by key whose features the model refuses: these are the store's, no caller can mend them."""
        if group.outcomes is not None and group.outcomes[row] is not None:
            self._write(_only(group, row), None, 422, active, started, tester=tester)

    def _lane(self, digest: str) -> ThreadPoolExecutor:
        """The thread of this canary: one that never ends must not keep the next one's callers waiting."""
        if digest != self._tried:  # what the last one began goes on in its own, which ends with its work
            self._tried, self._trial = digest, ThreadPoolExecutor(max_workers=1, thread_name_prefix="canary")
        return self._trial


def _time_of(question: Question) -> float:
    """When a question was asked, now if it does not say, in seconds since 1970; it says afterwards."""
    time = datetime.now(UTC) if question.asked_at is None else datetime.fromisoformat(question.asked_at)
    question.asked_at = question.asked_at or time.isoformat()
    return time.timestamp()


def _take(question: Question, lookup: "Lookup") -> None:
    """Give a question its features."""
    question.row = {name: lookup.features[name] for name in question.loaded.encoder.names}
    question.outcomes = {view: outcome for view, outcome in lookup.outcomes.items() if outcome != "present"}


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


def _alone(question: Question, matrix: NDArray[np.float32]) -> Group:
    """The group of a single row, which is encoded into ``matrix``."""
    by_key = question.inputs is not None
    return Group(
        question.loaded,
        question.role,
        (0,),
        (question.id,),
        (question.unit,),
        (question.asked_at,),
        (strip_envelope(question.row),),
        matrix,
        (question.inputs,) if by_key else None,
        (question.outcomes,) if by_key else None,
    )


def _grouped(questions: Sequence[Question]) -> list[Group]:
    """The questions by version, with a matrix for each."""
    by_role: dict[Role, list[int]] = {}
    for place, question in enumerate(questions):
        by_role.setdefault(question.role, []).append(place)
    by_key = any(question.inputs is not None for question in questions)
    groups = []
    for role, places in by_role.items():
        own = [questions[place] for place in places]
        loaded = own[0].loaded
        groups.append(
            Group(
                loaded,
                role,
                places,
                [question.id for question in own],
                [question.unit for question in own],
                [question.asked_at for question in own],
                [strip_envelope(question.row) for question in own],
                np.empty((len(own), loaded.encoder.width), dtype=np.float32),
                [question.inputs for question in own] if by_key else None,
                [question.outcomes for question in own] if by_key else None,
            )
        )
    return groups


def _only(group: Group, row: int) -> Group:
    """One row of a group by key."""
    assert group.inputs is not None
    assert group.outcomes is not None
    return Group(
        group.loaded,
        group.role,
        (group.places[row],),
        (group.ids[row],),
        (group.units[row],),
        (group.asked_at[row],),
        (group.rows[row],),
        group.matrix[row : row + 1],
        (group.inputs[row],),
        (group.outcomes[row],),
    )


def _taking(places: Sequence[int], count: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """From a column of ``count`` values to those at ``places``, which rise."""
    if len(places) == count:
        return lambda column: column
    if len(places) == 1:
        return lambda column: (column[places[0]],)
    return itemgetter(*places)


def _encode_columns(groups: Sequence[Group], columns: Columns) -> bool:
    """Encode by columns; False if a value is refused, and then nothing was counted."""
    counts = [(group.loaded.encoder, group.loaded.encoder.counted()) for group in groups]
    try:
        for group in groups:
            own = _taking(group.places, columns.count)
            values = {name: own(columns.values[name]) for name in group.loaded.encoder.names}
            group.loaded.encoder.encode_columns(values, group.matrix)
    except RequestError:
        for encoder, counted in counts:
            encoder.count(counted)
        return False
    return True


def _encode_into(group: Group, row: int) -> None:
    """Encode a row of a group; of what was looked up and is refused, say where it comes from.

    Raises
    ------
    RequestError
        A feature is refused.
    """
    features, encoder = group.rows[row], group.loaded.encoder
    try:
        encoder.encode_into(features, group.matrix[row])
    except RequestError as error:
        outcomes = None if group.outcomes is None else group.outcomes[row]
        name = encoder.refused(features) if outcomes is not None else None
        reader = group.loaded.reader
        view = reader.source(name) if name is not None and reader is not None else None
        if name is None or view is None or outcomes is None:
            raise
        outcome = outcomes.get(view, "present")
        value = "null" if features[name] is None else "this value"
        raise RequestError(error.status, f"{error}: view {view} had {value} for it (outcome: {outcome})") from None


@contextlib.contextmanager
def _naming(place: int) -> Iterator[None]:
    """Say which row is refused."""
    try:
        yield
    except RequestError as error:
        raise RequestError(error.status, f"rows[{place}]: {error}") from None
