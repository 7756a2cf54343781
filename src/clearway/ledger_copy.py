"""The ledger of an environment that is elsewhere, kept here as a verified copy.

``head.json`` beside the copy remembers the last entry that was ever seen: a history that was cut or rewritten since is
found out by any later command, on a machine that kept the folder.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from clearway.admin_api import Head
from clearway.errors import ClearwayError
from clearway.files import write_json, write_text
from clearway.ledger import GENESIS, Anchor, anchor_file, ledger_file, read_ledger
from clearway.params import describe


def copy_ledger(content: bytes, folder: Path, environment: str, where: str) -> None:
    """Take over a ledger that holds by itself and goes on from where it was last seen. The caller holds the lock.

    Parameters
    ----------
    content : bytes
        All of its lines.
    folder : Path
        Of the environment, here.
    environment : str
    where : str
        It was found, for messages.

    Raises
    ------
    ClearwayError
        It does not verify, or was cut or rewritten since it was last seen.
    """
    with TemporaryDirectory() as made:
        found = Path(made)
        ledger_file(found).write_bytes(content)
        lines = content.splitlines()
        anchor = _anchor_of(lines[-1], environment) if lines else None
        if anchor is not None:
            write_json(anchor_file(found), anchor.model_dump(mode="json"))
        try:
            entries = read_ledger(found, environment)
        except ClearwayError as error:
            said = str(error).replace(f"{made}/", "").partition("; restore")[0]
            raise ClearwayError(f"{where}: the ledger there is damaged: {said}") from None
    remembered = _remembered(folder)
    if remembered is not None:
        seen = f"entry {remembered.sequence} ({remembered.hash[:12]}) was seen before"
        aside = f"find out why; for a new server, move {folder} aside"
        if len(entries) < remembered.sequence:
            raise ClearwayError(f"{where}: the ledger ends at entry {len(entries)}, but {seen}: cut; {aside}")
        now = entries[remembered.sequence - 1].hash
        if now != remembered.hash:
            raise ClearwayError(
                f"{where}: entry {remembered.sequence} of the ledger is {now[:12]}, but {seen}: the history was "
                f"rewritten; {aside}"
            )
    if entries:
        write_text(ledger_file(folder), content.decode("utf-8"))
        last = entries[-1]
        kept = Anchor(environment=environment, sequence=last.sequence, hash=last.hash)
        write_json(anchor_file(folder), kept.model_dump(mode="json"))


def is_copied(folder: Path, head: Head) -> bool:
    """Whether the copy already ends with that head.

    Raises
    ------
    ClearwayError
        ``head.json`` is damaged.
    """
    remembered = _remembered(folder)
    if remembered is None:
        return head.hash == GENESIS
    if (remembered.sequence, remembered.hash) != (head.sequence, head.hash):
        return False
    try:
        return Head.of(read_ledger(folder, remembered.environment)) == head
    except ClearwayError:  # a copy that was half written: made again
        return False


def _remembered(folder: Path) -> Anchor | None:
    path = anchor_file(folder)
    try:
        return Anchor.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): restore it, or move the folder aside") from None


def _anchor_of(line: bytes, environment: str) -> Anchor | None:
    """Of a ledger's last line as it stands; whether it holds is judged with the whole ledger."""
    try:
        content = json.loads(line)
        return Anchor(environment=environment, sequence=content["sequence"], hash=content["hash"])
    except (ValueError, KeyError, TypeError, RecursionError):  # pydantic's error is a ValueError
        return None
