"""The line's only clock: which moment ``as_of`` means in this run, decided once and handed to every job."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from clearway.errors import UsageError
from clearway.files import write_text
from clearway.params import Params, UtcTime

_TIME = TypeAdapter(UtcTime)


def resolve_as_of(
    params: Params, *, asked: str | None, scheduled: bool, last: datetime | None, now: datetime
) -> datetime | None:
    """The ``as_of`` of one run.

    Parameters
    ----------
    params : Params
        ``as_of`` and ``clock`` are read.
    asked : str or None
        What a person asked for; wins over everything. Empty means nothing was asked.
    scheduled : bool
        Whether the run was started by a schedule: with a ``clock``, simulated time then moves one step.
    last : datetime or None
        ``as_of`` of the run before, as the kept state says.
    now : datetime
        Wall time, used only by ``auto`` without a ``clock``.

    Returns
    -------
    datetime or None
        UTC; None where the data knows no time.

    Raises
    ------
    UsageError
        ``asked`` is no time.
    """
    if asked:
        return parse_as_of(asked)
    if params.as_of is None:
        return None
    clock = params.clock
    if clock is not None and scheduled and last is not None:
        return last + timedelta(days=clock.step_days)
    if params.as_of != "auto":
        # Simulated time never runs back by itself: a push between two scheduled runs works at the time they reached.
        return max(params.as_of, last) if clock is not None and last is not None else params.as_of
    if clock is not None:
        return last or clock.start
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def parse_as_of(text: str) -> datetime:
    """Read a date or a time; one without a zone is UTC.

    Raises
    ------
    UsageError
        It is neither.
    """
    try:
        return _TIME.validate_python(text.strip())
    except ValidationError:
        raise UsageError(
            f"as_of = {text!r} is no date or time: write it as 2013-10-01 or 2013-10-01T06:00:00Z"
        ) from None


def format_as_of(moment: datetime) -> str:
    """ISO 8601 in UTC, ending in ``Z``: the form that ``params.yaml`` holds."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def set_as_of(path: Path, value: datetime | str) -> None:
    """Write ``as_of`` into ``params.yaml``. Every other byte stays: comments, order and layout are a person's.

    Only the characters of the value itself are replaced, where the YAML parser says they are; a round trip through a
    YAML library would keep the comments and still rewrite the layout of the whole file.

    Raises
    ------
    UsageError
        ``value`` is no time, or the file is missing, is not valid YAML or is not a mapping.
    """
    moment = parse_as_of(value) if isinstance(value, str) else value
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: a project folder needs a params.yaml (see docs/params.md)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, yaml.MappingNode):
        raise UsageError(f"{path} must be a mapping of keys to values")
    written = f'"{format_as_of(moment)}"'  # quoted: DVC tracks text, and refuses YAML's own times
    for key, node in document.value:
        if key.value != "as_of":
            continue
        if isinstance(node, yaml.ScalarNode) and node.style and _same(node.value, moment):
            return
        start, end = node.start_mark.index, node.end_mark.index
        gap = " " if start == end else ""
        write_text(path, text[:start] + gap + written + text[end:])
        return
    start = document.start_mark.index
    write_text(path, f"{text[:start]}as_of: {written}\n{text[start:]}")


@contextmanager
def moved(path: Path, value: str | None) -> Iterator[None]:
    """Move ``as_of`` in ``params.yaml`` for a run; if the run fails, put the old one back, so that nothing is stuck.

    Raises
    ------
    UsageError
        ``value`` is no time, or the file cannot be read.
    """
    if not value:
        yield
        return
    parse_as_of(value)
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    try:
        set_as_of(path, value)
        yield
    except BaseException:
        if before is not None:
            write_text(path, before)
        raise


def _same(text: str, moment: datetime) -> bool:
    try:
        return parse_as_of(text) == moment
    except UsageError:
        return False
