"""State without servers: what a fork on GitHub must remember from one run to the next, and how it is carried.

Two carriers. What must never be lost or forked (ledgers with their anchors, routing, canary, decision history; small
text) lies on the orphan branch ``clearway-state``, pushed non-forced, so that the push is the compare-and-swap. What is
large (bundles, MLflow's files, prediction logs) is an artifact that each run carries forward; ``store.json`` on the
branch names the run and the artifact. Nothing is believed on arrival: the ledgers' chains and anchors are read anew,
and each bundle is verified by the digest that a ledger holds.

The branch mirrors ``var/``: a file has the same relative path here and there.
"""

import base64
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clearway.bundle import BundleError, verify
from clearway.errors import ClearwayError
from clearway.files import atomic_directory, atomic_path, read_json, write_json
from clearway.ledger import Change, Entry, append, head_hash, quarantined, read_ledger, stable_history
from clearway.params import SLUG, UtcTime, describe
from clearway.routing import project_routing, read_routing, write_routing
from clearway.workspace import Workspace

BRANCH = "clearway-state"
REF = f"refs/heads/{BRANCH}"
KEPT_OF_ENVIRONMENT = ("ledger.jsonl", "head.json", "routing.json", "canary.json", "replay.json")
LOGS = ("decisions.jsonl", "holdout_uses.jsonl")
"""Histories that every run adds lines to."""
RUN, STORE, RESTORED = "run.json", "store.json", "restored.json"
LEFT_BEHIND = ("server.json", "server.log", "*.lock", "logs", "*.pid", "*.writer", RESTORED)
"""What belongs to one machine or one run and is carried by nobody."""
ATTEMPTS = 5
WAITS = (1.0, 4.0)
"""Seconds before git asks a remote again that did not answer."""

Files = Mapping[str, bytes]
"""Relative path → content, as on the branch."""


class RunRecord(BaseModel):
    """``run.json``: the run that wrote this state."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: str
    trigger: str
    commit: str | None
    as_of: UtcTime | None


class Store(BaseModel):
    """``store.json``: where the large things are, and which bundles lie there."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: str = Field(pattern=r"^[0-9]+$")
    artifact: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    bundles: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """What was found on the branch: its commit (None on a first run), its run, and the store to fetch bundles from."""

    commit: str | None
    run: RunRecord | None
    store: Store | None

    @property
    def outputs(self) -> dict[str, str]:
        """The store, for the workflow's next step; empty for none."""
        store = self.store
        return {"store_run": store.run_id if store else "", "store_artifact": store.artifact if store else ""}


_Made = TypeVar("_Made", RunRecord, Store)


class Remote:
    """A git remote, asked with a token that lives in the environment of one git command and nowhere else."""

    def __init__(
        self, repository: Path, name: str = "origin", token: str | None = None, waits: Sequence[float] = WAITS
    ) -> None:
        self._repository, self.name, self._waits = repository, name, waits
        self._environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        self._environment |= {f"GIT_{who}_NAME": "clearway" for who in ("AUTHOR", "COMMITTER")}
        self._environment |= {f"GIT_{who}_EMAIL": "clearway@localhost" for who in ("AUTHOR", "COMMITTER")}
        self._authorised = self._environment | self._header(token)

    def head(self) -> str | None:
        """The branch's commit on the remote, fetched; None if there is no such branch.

        Raises
        ------
        ClearwayError
            The remote does not answer: that is no first run.
        """
        listed = self._again("ls-remote", self.name, REF, what="cannot be asked for its branches")
        if not listed:
            return None
        self._again("fetch", "--quiet", "--no-tags", self.name, REF, what=f"cannot give {BRANCH}")
        return self._git("rev-parse", "FETCH_HEAD", what="was fetched without a commit").decode().strip()

    def has(self, commit: str) -> bool:
        """Whether ``commit`` is known here, by now."""
        command = ["git", "-C", str(self._repository), "cat-file", "-e", f"{commit}^{{commit}}"]
        return subprocess.run(command, capture_output=True, check=False, env=self._environment).returncode == 0

    def files(self, commit: str | None) -> dict[str, bytes]:
        """The files of a commit of the branch; none for None.

        Raises
        ------
        ClearwayError
            Something on the branch is no regular file.
        """
        if commit is None:
            return {}
        found: dict[str, bytes] = {}
        listed = self._git("ls-tree", "-r", "-z", commit, what=f"has no readable {BRANCH}").decode()
        for row in filter(None, listed.split("\0")):
            meta, path = row.split("\t", 1)
            mode, _, blob = meta.split()
            if mode != "100644":
                raise ClearwayError(f"{BRANCH}: {path} is no plain file (mode {mode}): remove it from the branch")
            found[path] = self._git("cat-file", "blob", blob, what=f"cannot give {path}")
        return found

    def push(self, files: Files, parent: str | None, message: str) -> bool:
        """Commit ``files`` on ``parent`` and push without force; False if the branch has moved on.

        A push that failed while the branch stood still is tried again: the network may have lost it, or its answer.

        Raises
        ------
        ClearwayError
            The push failed and the branch has not moved: no right to write, or no connection.
        """
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            for path, content in files.items():
                blob = self._git("hash-object", "-w", "--stdin", given=content, what="cannot store state").decode()
                entry = f"100644,{blob.strip()},{path}"
                self._git("update-index", "--add", "--cacheinfo", entry, extra=index, what=f"cannot store {path}")
            tree = self._git("write-tree", extra=index, what="cannot store state").decode().strip()
        parents = ["-p", parent] if parent else []
        made = self._git("commit-tree", tree, *parents, "-m", message, what="cannot commit state").decode().strip()
        for wait in (*self._waits, None):
            try:
                self._git("push", "--quiet", self.name, f"{made}:{REF}", authorised=True, what=f"refused {BRANCH}")
            except ClearwayError:
                found = self.head()
                if found != parent:
                    return found == made
                if wait is None:
                    raise
                time.sleep(wait)
            else:
                break
        return True

    def _again(self, *arguments: str, what: str) -> bytes:
        """Ask the remote, and again if it does not answer: what only reads may be asked twice."""
        for wait in self._waits:
            try:
                return self._git(*arguments, authorised=True, what=what)
            except ClearwayError:
                time.sleep(wait)
        return self._git(*arguments, authorised=True, what=what)

    def _header(self, token: str | None) -> dict[str, str]:
        """Git configuration by environment: nothing on a command line, in a file or for another host."""
        url = self._git("remote", "get-url", self.name, what="is no remote of this repository").decode().strip()
        if not token or not url.startswith("https://"):
            return {}
        basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{url}.extraheader",
            "GIT_CONFIG_VALUE_0": f"AUTHORIZATION: basic {basic}",
        }

    def _git(
        self,
        *arguments: str,
        what: str,
        authorised: bool = False,
        given: bytes | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> bytes:
        environment = {**(self._authorised if authorised else self._environment), **(extra or {})}
        command = ["git", "-C", str(self._repository), *arguments]
        done = subprocess.run(command, input=given, capture_output=True, check=False, env=environment)
        if done.returncode != 0:
            said = " ".join(done.stderr.decode(errors="replace").split())
            raise ClearwayError(f"git remote {self.name} {what}: {said or f'git {arguments[0]} failed'}")
        return done.stdout


def restore(workspace: Workspace, remote: Remote) -> State:
    """Put the branch's state into ``var/``, verified; on a first run there is none, and nothing is written but that.

    Raises
    ------
    ClearwayError
        The remote does not answer, a ledger's chain or anchor does not hold, or ``var/`` has a history of its own.
    """
    commit = remote.head()
    files = _ours_among(remote.files(commit))
    if commit is not None and RUN not in files:
        raise ClearwayError(f"{BRANCH} at {commit[:12]} has no {RUN}: it is damaged, push back its last good commit")
    present = _kept(workspace.var)
    changed = sorted(path for path in present if present[path] != files.get(path))
    if changed:
        raise ClearwayError(
            f"{workspace.var / changed[0]} differs from {BRANCH}: restore is for a fresh checkout; move var/ away first"
        )
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), files)
        try:
            needed_digests(Path(folder))
        except ClearwayError as error:
            raise ClearwayError(str(error).replace(folder, f"{BRANCH} at {commit}:")) from None
        state = State(commit, _read(Path(folder) / RUN, RunRecord), _read(Path(folder) / STORE, Store))
    _write(workspace.var, files)
    write_json(workspace.var / RESTORED, {"commit": commit})
    return state


def last_run(workspace: Workspace) -> RunRecord | None:
    """The run before this one, as the restored state says; None if there was none."""
    return _read(workspace.var / RUN, RunRecord)


def needed_digests(var: Path) -> dict[str, str]:
    """Digests that the ledgers under ``var`` still need → why: stable, canary, and the stable one before.

    Raises
    ------
    ClearwayError
        A ledger is broken.
    """
    needed: dict[str, str] = {}
    for folder in sorted(path for path in (var / "environments").glob("*") if path.is_dir()):
        entries = read_ledger(folder, folder.name)
        if not entries:
            continue
        last, history = entries[-1], stable_history(entries)
        needed.setdefault(last.stable, f"stable in the ledger of {folder.name}")
        if last.canary:
            needed.setdefault(last.canary, f"canary in the ledger of {folder.name}")
        if len(history) > 1:
            needed.setdefault(history[-2], f"what {folder.name} would roll back to")
    return needed


def verify_bundles(workspace: Workspace) -> dict[str, str]:
    """Check every bundle that a ledger needs; returns them as :func:`needed_digests` does.

    Raises
    ------
    ClearwayError
        One is missing or is not what its digest says. A missing one is never taken for a first run.
    """
    needed, store = needed_digests(workspace.var), _read(workspace.var / STORE, Store)
    for digest, why in needed.items():
        if not (workspace.bundles / digest).is_dir():
            source = f"artifact {store.artifact} of run {store.run_id}" if store else f"{BRANCH}, which names no store,"
            raise ClearwayError(
                f"bundle {digest[:12]} ({why}) is missing: {source} does not hold it (expired, deleted or never "
                f"uploaded); put it back into var/bundles, or delete the branch {BRANCH} to start over without history"
            )
        try:
            verify(workspace.bundles / digest, digest)
        except BundleError as error:
            raise ClearwayError(f"bundle {digest[:12]} ({why}) was changed on its way: {error}") from None
    return needed


def pack_store(workspace: Workspace) -> tuple[str, ...]:
    """Copy what is large and still needed to ``build/store/``; returns the digests of its bundles.

    Raises
    ------
    ClearwayError
        A needed bundle is missing or damaged.
    """
    needed = verify_bundles(workspace)
    small = set(_kept(workspace.var)) | {*LOGS, RUN, STORE}
    with atomic_directory(workspace.build / "store") as folder:
        for path in sorted(workspace.var.rglob("*")):
            relative = PurePosixPath(path.relative_to(workspace.var).as_posix())
            dropped = relative.parts[0] == "bundles" and len(relative.parts) > 1 and relative.parts[1] not in needed
            if path.is_symlink() or not path.is_file() or dropped or str(relative) in small or _left_behind(relative):
                continue
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, folder / relative)
    return tuple(sorted(needed))


def rejoin(workspace: Workspace, remote: Remote) -> State | None:
    """Join ``var/`` with what another run saved since it was restored; None if none did.

    The answer's store is that of the other run, and None where ``var/bundles`` has all that the ledgers now need.

    Raises
    ------
    ClearwayError
        Both runs changed one environment, and this one did more than roll back; or the branch was rewritten.
    """
    restored, found = _heads(workspace, remote)
    if found == restored:
        return None
    theirs = _ours_among(remote.files(found))
    merged = _merged(_ours_among(remote.files(restored)), _kept(workspace.var), theirs)
    _write(workspace.var, merged | {name: theirs[name] for name in (RUN, STORE) if name in theirs})
    write_json(workspace.var / RESTORED, {"commit": found})
    complete = all((workspace.bundles / digest).is_dir() for digest in needed_digests(workspace.var))
    store = None if complete else _read(workspace.var / STORE, Store)
    return State(found, _read(workspace.var / RUN, RunRecord), store)


def save(workspace: Workspace, remote: Remote, run: RunRecord, artifact: str) -> str:
    """Push the state to the branch; returns one sentence on what happened.

    The push is the compare-and-swap. If another run pushed first, its state is read again and joined with this one, as
    :func:`join` can.

    Raises
    ------
    ClearwayError
        Another run changed what this run changed, or the branch cannot be written.
    """
    bundles = tuple(sorted(verify_bundles(workspace)))
    ours = dict(_kept(workspace.var))
    ours[RUN] = _json(run)
    if any((workspace.build / "store").rglob("*")):
        ours[STORE] = _json(Store(run_id=run.run_id, artifact=artifact, bundles=bundles))
    else:
        ours.pop(STORE, None)
    parent, _ = _heads(workspace, remote)
    base = _ours_among(remote.files(parent))
    message = f"State after run {run.run_id} ({run.trigger}) at {(run.commit or 'no commit')[:12]}"
    for _ in range(ATTEMPTS):
        if remote.push(ours, parent, message):
            return f"{len(ours)} files on {BRANCH}, {len(bundles)} bundles in {artifact} of run {run.run_id}"
        parent = remote.head()
        theirs = _ours_among(remote.files(parent))
        ours, base = join(base, ours, theirs), theirs
    raise ClearwayError(f"{BRANCH} moved {ATTEMPTS} times while this run pushed: run scripts/state.py save again")


def _heads(workspace: Workspace, remote: Remote) -> tuple[str | None, str | None]:
    """The commit that was restored here, and the branch's own now, both fetched."""
    restored: str | None = read_json(workspace.var / RESTORED, made_by="scripts/state.py restore")["commit"]
    found = remote.head()  # fetches: this runner may never have seen what another restored
    if restored is not None and (found is None or not remote.has(restored)):
        raise ClearwayError(
            f"{BRANCH} was rewritten or deleted while this run worked: {restored[:12]}, which it restored, is gone; "
            "nothing was pushed; run this delivery again from its first job"
        )
    return restored, found


def join(base: Files, ours: Files, theirs: Files) -> dict[str, bytes]:
    """Two states that grew from ``base``, as one.

    An environment's files are one unit; of two copies of one ledger, as of a server elsewhere, the longer one holds all
    that the other does. Where both sides changed it, and this one only rolled back, it is rolled back again after what
    the other did. The decision history is a log: new lines of both are kept, theirs first. Of two stores, one must hold
    every bundle that the joined ledgers need.

    Raises
    ------
    ClearwayError
        Both changed one environment, or neither store will do; names it.
    """
    joined = _merged(base, ours, theirs)
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), joined)
        needed = set(needed_digests(Path(folder)))
    for side in (ours, theirs):
        content = side.get(STORE)
        held = set(Store.model_validate_json(content).bundles) if content else set()
        if needed <= held:
            return joined | {RUN: ours[RUN]} | ({STORE: content} if content else {})
    names = ", ".join(digest[:12] for digest in sorted(needed))
    raise ClearwayError(
        f"{BRANCH} moved while this run worked, and no one store holds all of {names}: "
        "nothing was pushed; run scripts/state.py join, fetch the store that it names, and pack and save again"
    )


def _merged(base: Files, ours: Files, theirs: Files) -> dict[str, bytes]:
    """All but the run and its store, of two states that grew from ``base``."""
    merged: dict[str, bytes] = {}
    for unit in sorted({_unit(path) for path in (*base, *ours, *theirs)} - {RUN, STORE}):
        before, mine, other = (
            {path: content for path, content in side.items() if _unit(path) == unit} for side in (base, ours, theirs)
        )
        if mine in (before, other):
            merged |= other
        elif other == before:
            merged |= mine
        elif (longer := _longer(unit, mine, other)) is not None:
            merged |= longer
        elif unit in LOGS:
            merged[unit] = _joined_log(unit, before.get(unit, b""), mine.get(unit, b""), other.get(unit, b""))
        elif (again := _rolled_back_again(unit, before, mine, other)) is not None:
            merged |= again
        else:
            raise ClearwayError(
                f"{BRANCH} moved while this run worked, and both changed {unit}: nothing was pushed; the branch holds "
                "what the other run did, so look at it and run this delivery again from its first job"
            )
    return merged


def _longer(unit: str, mine: Files, other: Files) -> Files | None:
    """Of an environment's two sides the one whose ledger goes on from the other's; None if neither does."""
    mine_ledger, other_ledger = mine.get(f"{unit}/ledger.jsonl", b""), other.get(f"{unit}/ledger.jsonl", b"")
    for side, ledger, beginning in ((mine, mine_ledger, other_ledger), (other, other_ledger, mine_ledger)):
        if beginning and ledger != beginning and ledger.startswith(beginning):
            return side
    return None


def _rolled_back_again(unit: str, before: Files, mine: Files, other: Files) -> Files | None:
    """The other side's environment, rolled back as this side's was; None if this side did more, or cannot.

    All that this side left behind stays barred, and so is what the other side put live meanwhile.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("before", "mine", "other")]
        for place, side in zip(places, (before, mine, other), strict=True):
            _write(place, side)
        was, ours, theirs = (read_ledger(place / unit, PurePosixPath(unit).name) for place in places)
        change = replan_rollback(was, ours, theirs)
        if change is None:
            return None
        environment = places[2] / unit
        split = read_routing(places[1] / unit / "routing.json")
        append(environment, environment.name, change, expected_head=head_hash(theirs))
        table = project_routing(read_ledger(environment, environment.name), split.salt, split.key)
        if table is not None:
            write_routing(environment / "routing.json", table)
        return _kept(places[2])


def replan_rollback(was: Sequence[Entry], ours: Sequence[Entry], theirs: Sequence[Entry]) -> Change | None:
    """This side's rollbacks, to be recorded after ``theirs``, which went on from the same ledger ``was``.

    None if this side did anything else, or if the other side has barred where it went back to.
    """
    made, common = ours[len(was) :], len(was)
    if not made or ours[:common] != was or theirs[:common] != was or any(one.action != "rollback" for one in made):
        return None
    last, barred = made[-1], quarantined(theirs)
    if last.stable in barred:
        return None
    left = (theirs[-1].canary, theirs[-1].stable, *(digest for one in made for digest in one.quarantines))
    quarantines = tuple(dict.fromkeys(one for one in left if one is not None and one not in (last.stable, *barred)))
    evidence = {**last.evidence, "overtaken": f"was entry {last.sequence} ({last.hash[:12]})"}
    return Change(
        action="rollback",
        stable=last.stable,
        quarantines=quarantines,
        actor=last.actor,
        reason=last.reason,
        evidence=evidence,
    )


def _joined_log(name: str, before: bytes, mine: bytes, other: bytes) -> bytes:
    if not (mine.startswith(before) and other.startswith(before)):
        raise ClearwayError(f"{BRANCH}: lines of {name} were changed, not added: nothing was pushed")
    return other + mine[len(before) :]


def _unit(path: str) -> str:
    parts = PurePosixPath(path).parts
    return "/".join(parts[:2]) if parts[0] == "environments" else path


def _ours_among(files: Files) -> dict[str, bytes]:
    """Only paths this module writes: whatever else lies on the branch is neither restored nor lost sight of."""
    return {path: content for path, content in files.items() if _is_kept(PurePosixPath(path))}


def _is_kept(path: PurePosixPath) -> bool:
    if len(path.parts) == 1:
        return str(path) in (*LOGS, RUN, STORE)
    inside = len(path.parts) == 3 and path.parts[0] == "environments" and path.name in KEPT_OF_ENVIRONMENT
    return inside and re.fullmatch(SLUG, path.parts[1]) is not None  # not "..", which git's own plumbing lets through


def _kept(var: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(var.rglob("*")) if path.is_file() and not path.is_symlink()]
    relative = {path.relative_to(var).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in relative.items() if _is_kept(PurePosixPath(name))}


def _left_behind(path: PurePosixPath) -> bool:
    if path.parts[0] == "bundles":  # whole or not at all, whatever their files are called
        return False
    return any(PurePosixPath(part).match(pattern) for part in path.parts for pattern in LEFT_BEHIND)


def _write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)


def _read(path: Path, kind: type[_Made]) -> _Made | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ClearwayError(
            f"{path.name} of {BRANCH} is damaged ({describe(error)}): push back its last good commit"
        ) from None


def _json(value: BaseModel) -> bytes:
    return (value.model_dump_json(indent=2) + "\n").encode()
