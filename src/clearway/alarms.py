"""What the monitor found wrong, told once: which alarms are new, which last, which are over, and where that is kept.

An alarm is known by its kind (``performance``, ``server``, …), of which an environment has one at a time. It is over
when its check passes; one that became unknown lasts. What no receiver took is told again in the next round.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from clearway.errors import ClearwayError
from clearway.files import write_json
from clearway.params import describe

Tell = Callable[[str, str, Literal["failure", "success"]], None]
"""Tells people of a title and a text; raises ClearwayError if somebody was not reached."""


@dataclass(frozen=True)
class Alarm:
    """One thing that is wrong, and one sentence of what was seen."""

    kind: str
    sentence: str


class Known(BaseModel):
    """An alarm of an earlier round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    told: bool
    """Whether people were told of it."""


class Memory(Protocol):
    """Where the alarms of an environment are kept between two rounds."""

    def known(self) -> Mapping[str, Known]:
        """By kind."""

    def keep(self, alarm: Alarm, told: bool) -> None:
        """A new alarm, or what was seen of one that lasts."""

    def clear(self, kind: str, sentence: str) -> None:
        """It is over."""


class FileMemory:
    """``alarms.json`` in the environment's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "alarms.json"

    def known(self) -> dict[str, Known]:
        try:
            return TypeAdapter(dict[str, Known]).validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            raise ClearwayError(
                f"{self._path} is damaged ({describe(error)}): delete it, and what is wrong now is told again"
            ) from None

    def keep(self, alarm: Alarm, told: bool) -> None:
        self._write({**self.known(), alarm.kind: Known(told=told)})

    def clear(self, kind: str, sentence: str) -> None:
        self._write({name: each for name, each in self.known().items() if name != kind})

    def _write(self, known: Mapping[str, Known]) -> None:
        write_json(self._path, {kind: each.model_dump() for kind, each in known.items()})


def settle(
    memory: Memory, alarms: Sequence[Alarm], well: Collection[str], where: str, tell: Tell | None
) -> tuple[str, ...]:
    """Keep what is wrong now, clear what is ``well`` again, and tell people of either once.

    Parameters
    ----------
    well : collection of str
        Kinds that were looked at and are right; what is neither here nor among the alarms is left as it was.
    where : str
        Project and environment, for the title.
    tell : callable, optional
        None where nobody wants to be told.

    Returns
    -------
    tuple of str
        What could not be told or kept; the rest was done all the same.
    """
    known, warnings = memory.known(), []

    def told(title: str, text: str, kind: Literal["failure", "success"]) -> bool:
        if tell is None:
            return False
        try:
            tell(title, text, kind)
        except ClearwayError as error:
            warnings.append(str(error))
            return False
        return True

    for alarm in alarms:
        before = known.get(alarm.kind)
        is_told = (before is not None and before.told) or told(
            f"{where}: {spoken(alarm.kind)}", alarm.sentence, "failure"
        )
        try:
            memory.keep(alarm, is_told)
        except ClearwayError as error:
            warnings.append(str(error))
    for kind in sorted(set(known) & set(well) - {alarm.kind for alarm in alarms}):
        try:
            memory.clear(kind, "the check passes again")
        except ClearwayError as error:
            warnings.append(str(error))
        else:
            if known[kind].told:
                told(f"{where}: {spoken(kind)} is over", "the check passes again", "success")
    return tuple(warnings)


def spoken(kind: str) -> str:
    """A kind in words."""
    return f"alarm: {kind.replace('_', ' ')}"
