"""Outcomes that come after the predictions: which prediction each is of, what is kept of them, and who reads them.

A label is kept once for each question (``labels/day=*/part-*.parquet``: id, label, labelled_at; the day is that of the
import). What is not sure is not kept, and is counted and named: see :class:`LabelReport`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
from pydantic import BaseModel, ConfigDict

from clearway.columns import LABEL, LABEL_TIME, REPEATED, ROW_ID
from clearway.errors import ClearwayError
from clearway.files import atomic_path, held, sha256_bytes
from clearway.labelled_rows import read_labels as checked_labels
from clearway.log_hiding import Hiding, hiding_of
from clearway.params import CsvSource, DataParams, Kind, Params, ParquetSource
from clearway.prediction_log import read_log
from clearway.schema import load_schema
from clearway.sources import read_source
from clearway.target import class_names
from clearway.workspace import Workspace

LABELLED = ("id", "version", "role", "entity", "served_at", "score", "label", "labelled_at")
"""Columns of :func:`read_labels`."""
OUTCOME = ("id", "entity", "asked_at", "label", "labelled_at")
NAMED = 5
"""Outcomes that a report names of each kind."""
LOCK_SECONDS = 60.0


class Named(BaseModel):
    """Outcomes of one kind."""

    model_config = ConfigDict(frozen=True)

    count: int
    first: tuple[str, ...]
    """Their ids, or entity and time; :data:`NAMED` at most."""


class LabelReport(BaseModel):
    """What became of the outcomes of one file."""

    model_config = ConfigDict(frozen=True)

    rows: int
    taken: int
    """Questions that have a label now and had none before."""
    duplicate: Named
    """Said before with the same label."""
    conflicting: Named
    """The question has another label, which stands, or the file says two, of which none is taken."""
    unknown: Named
    """No prediction of that id, or of that entity and time, is in the log."""
    early: Named
    """Known before the question was asked: no outcome of it."""
    late: Named
    """Taken, more than ``serving.log.late_label_days`` after the question."""
    without_label: Named
    """The outcome is not known yet."""

    @property
    def sentence(self) -> str:
        """For a person."""
        parts = [f"{self.taken:,} of {self.rows:,} outcomes taken"]
        for kind in ("duplicate", "conflicting", "unknown", "early", "late", "without_label"):
            named: Named = getattr(self, kind)
            if named.count:
                more = ", …" if named.count > len(named.first) else ""
                parts.append(f"{named.count:,} {kind.replace('_', ' ')} ({', '.join(named.first)}{more})")
        return "; ".join(parts)


@dataclass(frozen=True)
class Matched:
    """The labels of one file that are sure, and the report on all of them."""

    labels: pd.DataFrame
    """``id``, ``label``, ``labelled_at``: one row for each question that had no label."""
    report: LabelReport


def match(
    predictions: pd.DataFrame, outcomes: pd.DataFrame, known: pd.DataFrame, late_days: float, hiding: Hiding
) -> Matched:
    """Find the predictions that outcomes are of.

    Parameters
    ----------
    predictions : DataFrame
        ``id``, ``entity``, ``asked_at``, ``served_at`` of answered predictions.
    outcomes : DataFrame
        The columns :data:`OUTCOME`; an ``id``, else ``entity`` and ``asked_at``, says which prediction is meant. An
        entity and a time may have several predictions, which all get the label.
    known : DataFrame
        ``id`` and ``label`` of labels that were taken before.
    late_days : float
        After how many days a label is late.
    hiding : Hiding
        How the log writes entities.
    """
    asked = predictions.dropna(subset=["id"])
    asked = asked.assign(when=asked["asked_at"].fillna(asked["served_at"]))
    rows = outcomes.assign(row=np.arange(len(outcomes)))
    rows["name"] = rows["id"].where(
        rows["id"].notna(), rows["entity"].fillna("?") + " at " + rows["asked_at"].astype("string").fillna("?")
    )
    empty = rows["label"].isna()
    rows = rows[~empty]
    by_id = rows[rows["id"].notna()]
    first = _questions(asked, by_id["id"])
    by_id = by_id.assign(when=by_id["id"].map(first))
    by_key = rows[rows["id"].isna()].drop(columns="id")
    keys = asked.dropna(subset=["entity", "asked_at"])
    keys = keys[["id", "entity", "asked_at", "when"]].drop_duplicates(["id", "entity", "asked_at"])
    hashed = [pd.NA if pd.isna(name) else hiding.entity(str(name)) for name in by_key["entity"]]
    spelt = by_key.assign(entity=pd.Series(hashed, by_key.index, dtype="object"))
    both = pd.concat([by_key, spelt]).drop_duplicates(["row", "entity"])
    by_key = both.merge(keys, on=["entity", "asked_at"], how="inner")
    columns = ["row", "name", "id", "label", "labelled_at", "when"]
    parts = [part[columns] for part in (by_id[by_id["when"].notna()], by_key) if len(part)]
    matched = pd.concat(parts, ignore_index=True) if parts else by_id[columns].head(0)
    unknown = rows[~rows["row"].isin(matched["row"])]
    matched["when"] = pd.to_datetime(matched["when"], utc=True)
    early = matched["labelled_at"] < matched["when"]
    sure = matched[~early].sort_values(["labelled_at", "row"], kind="stable")
    before = dict(zip(known["id"].astype(str), known["label"], strict=True))
    there = sure["id"].isin(list(before))
    other = [before.get(name) != said for name, said in zip(sure["id"], sure["label"], strict=True)]
    differs = there & pd.Series(other, sure.index, dtype=bool)
    two = ~there & (sure.groupby("id")["label"].transform("nunique") > 1)
    again = (there & ~differs) | (~there & ~two & sure["id"].duplicated())
    taken = sure[~(differs | two | again)]
    late = taken["labelled_at"] - taken["when"] > timedelta(days=late_days)
    report = LabelReport(
        rows=len(outcomes),
        taken=len(taken),
        duplicate=_named(sure[again]),
        conflicting=_named(sure[differs | two]),
        unknown=_named(unknown),
        early=_named(matched[early]),
        late=_named(taken[late]),
        without_label=_named(outcomes.assign(row=0, name=_names(outcomes))[empty.to_numpy()]),
    )
    return Matched(taken[["id", "label", "labelled_at"]].reset_index(drop=True), report)


def join_labels(log: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """Predictions whose answer is known by now, with their label: each question once for each version, its last answer.

    Parameters
    ----------
    log : DataFrame
        Predictions with the columns ``id`` and ``version``, and what is to be kept; a replay's repeated id (``12~2``)
        is its first.
    questions : DataFrame
        The project's questions at ``as_of``; ``label`` is null where the answer is not known. ``label_time`` is kept
        where it is there.
    """
    kept = [name for name in (ROW_ID, LABEL, LABEL_TIME) if name in questions]
    known = questions.loc[questions[LABEL].notna(), kept].drop_duplicates(ROW_ID)
    known = known.assign(**{ROW_ID: known[ROW_ID].astype(str)})
    asked = log[log["id"].notna()]
    last = asked.assign(id=_question_ids(asked["id"], questions[ROW_ID])).drop_duplicates(
        ["id", "version"], keep="last"
    )
    return last.merge(known, left_on="id", right_on=ROW_ID, how="inner", validate="many_to_one")


def read_labels(workspace: Workspace, environment: str, since_revision: int | None = None) -> pd.DataFrame:
    """Answered predictions whose outcome has come: each question once for each version, its last answer.

    Testers' requests are left out. A question that both versions answered has a row of each.

    Parameters
    ----------
    workspace, environment
        Whose log and labels.
    since_revision : int, optional
        Only predictions of this ledger revision and later ones.

    Returns
    -------
    DataFrame
        The columns :data:`LABELLED`, in the order served. ``label`` is float64, or text of several classes;
        ``served_at`` and ``labelled_at`` are UTC times: the first by the wall clock, the second as the outcome says it.

    Raises
    ------
    ClearwayError
        A part of the log or of the labels is damaged.
    """
    columns = ["id", "version", "role", "entity", "served_at", "status", "score"]
    log = read_log(workspace.environment(environment) / "predictions", since_revision=since_revision, columns=columns)
    log = log[(log["role"] != "tester") & (log["status"] == 200) & log["score"].notna()]
    joined = join_labels(log, stored_labels(workspace, environment))
    return joined.rename(columns={LABEL_TIME: "labelled_at"})[list(LABELLED)]


def stored_labels(workspace: Workspace, environment: str, as_of: datetime | None = None) -> pd.DataFrame:
    """The labels that were imported, as a project's questions have them: ``row_id``, ``label``, ``label_time``.

    Parameters
    ----------
    as_of : datetime, optional
        Only those known then.

    Raises
    ------
    ClearwayError
        A part is damaged.
    """
    stored = _read_store(workspace.environment(environment) / "labels")
    if as_of is not None:
        stored = stored[stored["labelled_at"] <= as_of]
    return stored.rename(columns={"id": ROW_ID, "label": LABEL, "labelled_at": LABEL_TIME})


def import_outcomes(
    params: Params, workspace: Workspace, environment: str, outcomes: pd.DataFrame, now: datetime
) -> LabelReport:
    """Keep the labels of ``outcomes`` (:func:`read_outcomes`) that are sure; doing so again changes nothing.

    Raises
    ------
    UsageError
        There is no such environment.
    ClearwayError
        Another import is at it, or the log or the labels are damaged.
    """
    params.environment(environment)
    folder = workspace.environment(environment)
    with held(folder / "labels.lock", LOCK_SECONDS):
        log = read_log(folder / "predictions", columns=["id", "entity", "asked_at", "served_at", "status"])
        settings = params.serving.log
        known = _read_store(folder / "labels")
        matched = match(log[log["status"] == 200], outcomes, known, settings.late_label_days, hiding_of(settings))
        if len(matched.labels):
            kind = "string" if params.target.kind == "multiclass" else "float64"
            content = matched.labels.astype({"id": "string", "label": kind})
            name = sha256_bytes("\n".join(sorted(content["id"])).encode())[:16]
            with atomic_path(folder / "labels" / f"day={now:%Y-%m-%d}" / f"part-{name}.parquet") as path:
                content.to_parquet(path, index=False)
    return matched.report


def declared_labels(params: Params, root: Path) -> tuple[Any, ...]:
    """The values that ``schema.yaml`` allows for the label of a flat project; empty where it allows all.

    Raises
    ------
    UsageError
        ``schema.yaml`` is missing or wrong.
    """
    if params.data is None:
        return ()
    column = load_schema(root / params.data_schema).table(params.data.table).columns.get(params.data.label)
    return () if column is None else tuple(column.values or ())


def read_outcomes(
    path: Path, params: Params, known_at: datetime | None = None, declared: Sequence[Any] = ()
) -> pd.DataFrame:
    """A file of outcomes: CSV, Parquet (``.parquet``) or JSON lines (``.jsonl``).

    Parameters
    ----------
    path : Path
        Columns: ``label``; ``id``, or ``entity`` and ``asked_at``; ``labelled_at``, when the outcome became known.
    params : Params
        Says what a label is: ``target.kind``, and of a flat project ``data.positive``.
    known_at : datetime, optional
        For a file without ``labelled_at``.
    declared : sequence, optional
        :func:`declared_labels`: a word that is none of them is refused.

    Returns
    -------
    DataFrame
        The columns :data:`OUTCOME`.

    Raises
    ------
    ClearwayError
        The file, or a value in it, cannot be read.
    """
    frame = _read_file(path)
    if LABEL not in frame or not ({"id"} <= {*frame} or {"entity", "asked_at"} <= {*frame}):
        raise ClearwayError(f"{path}: needs the columns label and id, or label, entity and asked_at")
    if "labelled_at" not in frame:
        if known_at is None:
            raise ClearwayError(f"{path}: has no column labelled_at: add it, or say --known-at TIME of all")
        frame["labelled_at"] = pd.Timestamp(known_at)
    made = pd.DataFrame(index=frame.index)
    for name in ("id", "entity"):
        made[name] = _names_in(path, frame, name) if name in frame else pd.Series(pd.NA, frame.index, dtype="string")
    for name in ("asked_at", "labelled_at"):
        present = frame[name] if name in frame else pd.Series(pd.NaT, frame.index)
        made[name] = _times_in(path, name, present)
    if (gone := made["labelled_at"].isna() & frame[LABEL].notna()).any():
        raise ClearwayError(f"{path}: labelled_at is missing in row {int(np.argmax(gone)) + 1}: say when it was known")
    made[LABEL] = _labels_in(path, frame[LABEL], params.target.kind, params.data, declared)
    return made[list(OUTCOME)]


def _questions(asked: pd.DataFrame, named: "pd.Series[Any]") -> "pd.Series[Any]":
    """When each question that is named was first asked, by its id."""
    ids = _question_ids(asked["id"], named)
    return asked.groupby(ids.to_numpy())["when"].min()


def _question_ids(logged: "pd.Series[Any]", own: "Collection[Any] | pd.Series[Any]") -> "pd.Series[Any]":
    """Ids of the log as those of their questions: ``12~2`` is 12, unless the project itself has a ``12~2``."""
    ids = logged.astype(str)
    # A project's own id may end like a repeated one: what it names itself comes first.
    return ids.where(ids.isin(pd.Series(own).astype(str)), ids.str.replace(REPEATED, "", regex=True))


def _names(outcomes: pd.DataFrame) -> "pd.Series[Any]":
    return outcomes["id"].where(outcomes["id"].notna(), outcomes["entity"])


def _named(rows: pd.DataFrame) -> Named:
    return Named(count=len(rows), first=tuple(str(name)[:60] for name in rows["name"].drop_duplicates().head(NAMED)))


def _read_store(folder: Path) -> pd.DataFrame:
    parts = []
    for path in sorted(folder.glob("day=*/part-*.parquet")):
        try:
            parts.append(pd.read_parquet(path, partitioning=None))
        except (OSError, ValueError) as error:
            raise ClearwayError(f"{path} is not a readable Parquet file: {' '.join(str(error).split())}") from None
    if not parts:
        empty = pd.Series([], dtype="datetime64[ns, UTC]")
        return pd.DataFrame({"id": pd.Series([], dtype="string"), "label": pd.Series([], dtype="float64")}).assign(
            labelled_at=empty
        )
    return pd.concat(parts, ignore_index=True)


def _read_file(path: Path) -> pd.DataFrame:
    key, place = "--file", path.absolute()
    if path.suffix == ".parquet":
        return read_source(ParquetSource(kind="parquet", path=str(place)), place.parent, key=key, named_by=key)
    if path.suffix == ".jsonl":
        try:
            lines = [orjson.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
            return pd.DataFrame(lines, dtype="object")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ClearwayError(f"{path} is not JSON lines: {error}") from None
    text = {"dtype": {"id": "string", "entity": "string"}}
    return read_source(CsvSource(kind="csv", path=str(place), read=text), place.parent, key=key, named_by=key)


def _names_in(path: Path, frame: pd.DataFrame, name: str) -> "pd.Series[Any]":
    """A column of names as text; one of floating-point numbers is none: 12.0 is not the name 12."""
    column = frame[name]
    wrong = [value for value in column if not pd.isna(value) and not isinstance(value, (str, int, np.integer))]
    if wrong:
        raise ClearwayError(f"{path}: {name} {wrong[0]!r} is no text: write it as the request did")
    return pd.Series([pd.NA if pd.isna(value) else str(value) for value in column], frame.index, dtype="string")


def _times_in(path: Path, name: str, column: "pd.Series[Any]") -> "pd.Series[Any]":
    if pd.api.types.is_numeric_dtype(column.dtype) and column.notna().any():
        raise ClearwayError(f"{path}: {name} {column.dropna().iloc[0]} is no time: write 2026-01-31T12:00:00Z")
    times = pd.to_datetime(column, utc=True, errors="coerce", format=None if column.dtype.kind == "M" else "ISO8601")
    if (wrong := times.isna() & column.notna()).any():
        raise ClearwayError(f"{path}: {name} {column[wrong].iloc[0]!r} is no time: write 2026-01-31T12:00:00Z")
    return times.astype("datetime64[ns, UTC]").dt.floor("us")


def _labels_in(
    path: Path, column: "pd.Series[Any]", kind: Kind, data: DataParams | None, declared: Sequence[Any]
) -> "pd.Series[Any]":
    """Labels as the log's readers need them; null stays null."""
    for value in column:
        if isinstance(value, (list, dict, np.ndarray)):
            raise ClearwayError(f"{path}: label {value!r} is no single value")
    if kind == "multiclass":
        return class_names(column)
    known = column.dropna()
    words = [value for value in known if isinstance(value, str)]
    if kind == "binary" and data is not None and (words or data.positive != 1):
        known = _own_words(path, known, words, data.positive, declared)
    elif words:
        raise ClearwayError(f"{path}: label {words[0]!r} is no number, as target.kind = {kind!r} needs")
    found = pd.Series(checked_labels(known.astype("float64"), kind, str(path)), known.index, dtype="float64")
    return found.reindex(column.index)


def _own_words(
    path: Path, known: "pd.Series[Any]", words: Sequence[str], positive: Any, declared: Sequence[Any]
) -> "pd.Series[Any]":
    """Labels in the values of a flat table: ``data.positive`` is 1, every other value 0.

    A file of a table of words may say 0 and 1 instead. What is nearly ``data.positive`` is a slip, and would be a no.
    """
    if not isinstance(positive, str):
        if words:
            raise ClearwayError(
                f"{path}: label {words[0]!r} is a text, but data.positive is {positive!r}: write numbers"
            )
        return pd.Series(known == positive, dtype="float64")
    if not words:
        return known
    for value in known:
        near = isinstance(value, str) and value.strip().casefold() == positive.strip().casefold()
        if value != positive and (near or not isinstance(value, str) or (declared and value not in declared)):
            allowed = f", schema.yaml allows {', '.join(map(repr, declared))}" if declared else ""
            raise ClearwayError(
                f"{path}: label {value!r}: data.positive is {positive!r}{allowed}: write it as the table does"
            )
    return pd.Series(known == positive, dtype="float64")
