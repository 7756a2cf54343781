"""Data that ``dvc.lock`` names, and the DVC remote that keeps it: push, pull, and say what is missing.

DVC moves the objects; this module says beforehand what is where, and afterwards whether it has arrived whole. It asks
the remote itself each time: DVC's own notes of what it has pushed are not believed, since objects can be lost. What is
pulled is hashed again before it may be used, whatever the remote's ``verify`` says.

Moved is what ``dvc.lock`` and ``.dvc`` files name, and no more. DVC's run cache stays behind: nothing committed vouches
for it. State, in ``var/``, is not DVC's.
"""

import hashlib
import json
import logging
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from clearway.errors import ClearwayError, UsageError
from clearway.project_folder import git_root
from clearway.workspace import Workspace

CONTACT_SECONDS = 15.0
"""How long the first answer of a remote is waited for."""
SHOWN = 5
"""How many objects one line names."""

CONFIGURE = (
    "`dvc remote add -d NAME URL` writes one into .dvc/config (commit it; credentials go into the environment or "
    "`dvc remote modify --local`), see docs/data-versioning.md"
)
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "azure": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY",
    "ssh": "a key that ssh-agent holds, or keyfile by `dvc remote modify --local`",
}
"""By URL scheme, where a remote's client looks for credentials."""

_DIRECTORY = ".dir"
_FOLDERS = ("local", "ssh")
"""Kinds of remote that are folders: one that is not there may be a disk that is not mounted."""
_LOGGERS = ("dvc", "dvc_data", "dvc_objects")
_T = TypeVar("_T")

Status = Literal["nothing_named", "no_remote", "complete", "incomplete"]


@dataclass(frozen=True)
class Entry:
    """An object that a lock names."""

    path: str
    """In the project folder; a folder's ends with a slash."""
    oid: str
    """Its md5; with ``.dir`` for the list of what a folder holds."""

    def __str__(self) -> str:
        return f"{self.path} (md5 {self.oid})"


@dataclass(frozen=True)
class Survey:
    """Where the named objects are."""

    remote: str
    """Name and URL of the remote."""
    entries: tuple[Entry, ...]
    cached: frozenset[str]
    """Objects in DVC's cache on this machine."""
    stored: frozenset[str]
    """Objects in the remote."""
    damaged: tuple[Entry, ...] = ()
    """Folders whose list of content is in the remote alone, and is not what its name says."""


@dataclass(frozen=True)
class Verdict:
    """Whether a clone elsewhere could bring back all that the lock names."""

    status: Status
    sentence: str
    missing: tuple[Entry, ...] = ()

    @property
    def passed(self) -> bool:
        return self.status != "incomplete"


@dataclass(frozen=True)
class Moved:
    """What a push or pull came to."""

    moved: int
    """Objects that were not there."""
    outputs: int
    """Files and folders that the lock names."""
    remotes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.moved} objects of {self.outputs} outputs"


# --- decisions: pure -------------------------------------------------------------------------------------------------


def judge(surveys: Iterable[Survey]) -> Verdict:
    """Whether all that is named is in the remotes.

    Parameters
    ----------
    surveys : iterable of Survey
        One for each remote; none where nothing is named.
    """
    surveys = list(surveys)
    named = sum(len(survey.entries) for survey in surveys)
    remotes = " and ".join(survey.remote for survey in surveys)
    if not named:
        return Verdict("nothing_named", "dvc.lock names no data")
    missing = tuple(entry for survey in surveys for entry in not_stored(survey))
    if not missing:
        return Verdict("complete", f"all {named} files and folders that dvc.lock names are in the remote {remotes}")
    return Verdict(
        "incomplete",
        f"{len(missing)} of {named} files and folders that dvc.lock names are not in the remote {remotes}: "
        f"{listed(missing)}: run `make data-push` where they were made, or commit the dvc.lock of data that was pushed",
        missing,
    )


def not_stored(survey: Survey) -> tuple[Entry, ...]:
    """What a fresh clone could not bring back: objects that are missing in the remote, or damaged there."""
    return tuple(entry for entry in survey.entries if entry.oid not in survey.stored or entry in survey.damaged)


def to_push(survey: Survey) -> set[str]:
    """Objects to upload.

    Raises
    ------
    ClearwayError
        An object is neither here nor in the remote.
    """
    nowhere = [entry for entry in not_stored(survey) if entry.oid not in survey.cached]
    if nowhere:
        raise ClearwayError(
            f"dvc.lock names data that is neither in DVC's cache here nor in the remote {survey.remote}: "
            f"{listed(nowhere)}: make it again (`make repro`) or push from the clone that made it"
        )
    return {entry.oid for entry in survey.entries if entry.oid not in survey.stored}


def to_pull(survey: Survey) -> set[str]:
    """Objects to download.

    Raises
    ------
    ClearwayError
        An object is neither here nor in the remote, or damaged there.
    """
    wanted = [entry for entry in survey.entries if entry.oid not in survey.cached]
    missing = [entry for entry in wanted if entry.oid not in survey.stored]
    if missing:
        raise ClearwayError(
            f"dvc.lock names data that is not in the remote {survey.remote}: {listed(missing)}: run `make data-push` "
            "where it was made"
        )
    if survey.damaged:
        raise ClearwayError(damage(survey.damaged, survey.remote))
    return {entry.oid for entry in wanted}


def damage(entries: Iterable[Entry], remote: str) -> str:
    """What to say of objects that are not what their names say."""
    return (
        f"damaged in the remote {remote}, its content does not have the md5 it is stored by: {listed(entries)}: delete "
        "them from the remote (files/md5/<2 digits>/<the others>), then run `make data-push` where the data is whole"
    )


def no_bucket(remote: str) -> str:
    """What to say where a remote's bucket or container is not there."""
    return f"the bucket of the remote {remote} does not exist: make it, or correct the url in .dvc/config"


def listed(entries: Iterable[Entry]) -> str:
    """The first few entries by name, and how many more there are."""
    entries = list(entries)
    shown = ", ".join(map(str, entries[:SHOWN]))
    return shown + (f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else "")


def without_password(url: str) -> str:
    """A URL that may be printed."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))


def explain(error: BaseException, remote: str, scheme: str) -> str:
    """One line for a person on why a remote failed, and what to do.

    Each kind of storage has errors of its own, from packages that need not be installed: they are told by their names.

    Parameters
    ----------
    error : BaseException
        What the storage's client raised.
    remote : str
        Name and URL of the remote.
    scheme : str
        Of the URL; empty for a folder.
    """
    chain = list(_chain(error))
    names = " ".join(type(link).__name__ for link in chain)
    said = " ".join(str(error).split()) or type(error).__name__
    if any(isinstance(link, ImportError) for link in chain) or "MissingDeps" in names:
        extra = {"https": "http", "webdavs": "webdav"}.get(scheme, scheme)
        return (
            f"the remote {remote} needs a package that is not installed: .venv/bin/uv pip install 'dvc[{extra}]' (to "
            "keep it, and for CI, add it to the dependencies in pyproject.toml and run `make lock`)"
        )
    hint = CREDENTIALS.get(scheme, "`dvc remote modify --local` (docs/data-versioning.md)")
    if "Credential" in names or "NoAuth" in names:
        return f"no usable credentials for the remote {remote}: {said}: set {hint}"
    if "NoSuchBucket" in names or "ContainerNotFound" in names:
        return no_bucket(remote)
    if isinstance(error, PermissionError) or any(word in names for word in ("Auth", "PermissionDenied", "Forbidden")):
        refused = f"the remote {remote} refused access: {said}"
        return f"{refused}: check its rights" if not scheme else f"{refused}: check its rights, and {hint}"
    unreached = (ConnectionError, TimeoutError)
    if any(isinstance(link, unreached) for link in chain) or any(
        word in names for word in ("Connect", "Timeout", "gaierror")
    ):
        return (
            f"the remote {remote} cannot be reached: {said}: check its url and endpoint in .dvc/config, and the network"
        )
    return f"the remote {remote} failed: {type(error).__name__}: {said}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it; causes may go in a circle."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        yield following
        following = following.__cause__ or following.__context__


# --- effects ---------------------------------------------------------------------------------------------------------


def check(workspace: Workspace) -> Verdict:
    """Say whether the remote holds all that the committed lock names.

    Raises
    ------
    ClearwayError
        A remote cannot be asked.
    UsageError
        DVC's configuration or pipeline is wrong, or remotes are configured and none is the default.
    """
    if not _is_named(workspace.root):
        return Verdict("nothing_named", f"no dvc.lock and no .dvc file is committed in {workspace.root}")
    with _stores(workspace) as stores:
        if stores is None:
            return Verdict("no_remote", f"no remote is configured, so none is asked; {CONFIGURE}")
        return judge([store.survey() for store in stores])


def push(workspace: Workspace) -> Moved:
    """Upload what the remote lacks of what the lock names.

    Raises
    ------
    ClearwayError
        A remote failed, or named data is nowhere.
    UsageError
        No remote is configured, or DVC's configuration or pipeline is wrong.
    """
    return _move(workspace, lambda store: store.push())


def pull(workspace: Workspace) -> Moved:
    """Download what is missing here of what the lock names, verify it, and put it in place.

    Raises
    ------
    ClearwayError
        A remote failed; an object is missing there, or damaged; a changed file would be overwritten.
    UsageError
        No remote is configured, or DVC's configuration or pipeline is wrong.
    """
    return _move(workspace, lambda store: store.pull(), put_in_place=True)


def _move(workspace: Workspace, one: "Callable[[_Store], int]", put_in_place: bool = False) -> Moved:
    if not (workspace.root / "dvc.lock").is_file() and not _is_named(workspace.root):
        raise ClearwayError(f"{workspace.root} has no dvc.lock: nothing names data yet; `make run` makes one")
    with _stores(workspace) as stores:
        if stores is None:
            raise UsageError(f"no remote is configured: {CONFIGURE}")
        moved = [one(store) for store in stores]
        if put_in_place:
            _checkout(stores[0].repo)
        return Moved(sum(moved), sum(len(store.outs) for store in stores), tuple(store.remote for store in stores))


@dataclass
class _Store:
    """A remote, and the outputs of the lock that belong there."""

    repo: Any
    remote: str
    scheme: str
    odb: Any
    outs: list[Any]

    def survey(self) -> Survey:
        with self._explained():
            within(CONTACT_SECONDS, self._contact)
            return self._look()

    def push(self) -> int:
        before = self.survey()
        missing = to_push(before)
        with self._explained():
            failures = self._transfer(self.repo.cache.local, self.odb, missing)
            after = self._look()
        left = not_stored(after)
        if left:
            why = f": {self._explain(failures[0])}" if failures else ""
            raise ClearwayError(f"not pushed: {listed(left)}{why}")
        return len(missing)

    def pull(self) -> int:
        before = self.survey()
        missing = to_pull(before)
        self.odb.verify = True
        with self._explained():
            failures = self._transfer(self.odb, self.repo.cache.local, missing)
        cached = set(self.repo.cache.local.oids_exist(missing))
        left = [entry for entry in before.entries if entry.oid in missing - cached]
        if left and failures:
            raise ClearwayError(f"not pulled: {listed(left)}: {self._explain(failures[0])}")
        if left:
            raise ClearwayError(damage(left, self.remote))
        return len(missing)

    def _contact(self) -> None:
        """Ask the remote anything that tells a remote that is empty from one that is not there."""
        fs, path = self.odb.fs, self.odb.path
        top = fs.parent(fs.parent(path))
        if fs.protocol in _FOLDERS:
            if not fs.isdir(top):
                raise ClearwayError(
                    f"the remote {self.remote} does not exist: make the folder, mount its disk, or correct the url in "
                    ".dvc/config"
                )
        elif fs.CAN_TRAVERSE:
            try:
                fs.ls(path, detail=False)
            except FileNotFoundError as error:
                bucket = path.lstrip("/").split("/")[0]
                if any("NoSuchBucket" in type(link).__name__ for link in _chain(error)) or not fs.exists(bucket):
                    raise ClearwayError(no_bucket(self.remote)) from None
        else:
            try:
                fs.info(path)
            except FileNotFoundError as error:  # so an HTTP client calls a server that is not there, too
                if any("Connect" in type(link).__name__ for link in _chain(error)):
                    raise ConnectionError(str(error.__cause__)) from None

    def _look(self) -> Survey:
        cache = self.repo.cache.local
        self.odb.fs.fs.invalidate_cache()  # what the client has listed before may have changed since
        entries: dict[Entry, None] = {}
        damaged: list[Entry] = []
        for out in self.outs:
            oid, path = out.hash_info.value, _path(out)
            if not oid.endswith(_DIRECTORY):
                entries[Entry(path, oid)] = None
                continue
            folder = Entry(f"{path}/", oid)
            entries[folder] = None
            content = _content(cache if oid in cache.oids_exist([oid]) else self.odb, oid)
            if content is None:
                continue  # it is missing itself
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != oid.removesuffix(_DIRECTORY):
                damaged.append(folder)
                continue
            entries |= {Entry(f"{path}/{item['relpath']}", item["md5"]): None for item in json.loads(content)}
        oids = {entry.oid for entry in entries}
        return Survey(
            remote=self.remote,
            entries=tuple(entries),
            cached=frozenset(cache.oids_exist(oids)),
            stored=frozenset(self.odb.oids_exist(oids)) if oids else frozenset(),
            damaged=tuple(damaged),
        )

    def _transfer(self, source: Any, target: Any, oids: Set[str]) -> list[BaseException]:
        """Copy objects, files before the folders that list them; what went wrong on the way."""
        from dvc_data.hashfile.hash_info import HashInfo

        if not oids:
            return []
        objects = [HashInfo("md5", oid) for oid in oids]
        with _heard() as failures:
            if target is self.odb:
                self.repo.cloud.push(objects, odb=target)
            else:
                self.repo.cloud.pull(objects, odb=source)
        return failures

    def _explain(self, error: BaseException) -> str:
        return explain(error, self.remote, self.scheme)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever a storage's client raises into one line."""
        try:
            yield
        except ClearwayError:
            raise
        except Exception as error:
            raise ClearwayError(self._explain(error)) from None


@contextmanager
def _stores(workspace: Workspace) -> "Iterator[list[_Store] | None]":
    """The remotes with what belongs there; None where none is configured."""
    if not (workspace.root / ".dvc").is_dir():  # DVC would take one further up for this folder's
        raise UsageError(
            f"{workspace.root} has no .dvc folder: `make run` makes it; commit it with dvc.yaml and dvc.lock"
        )
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with _heard():
        try:
            with Repo(str(workspace.root)) as repo:
                default = repo.config["core"].get("remote")
                by_remote: dict[str | None, list[Any]] = {}
                for out in _outs(repo):
                    by_remote.setdefault(out.remote or default, []).append(out)
                if None in by_remote or (default is None and not by_remote):
                    names = sorted(repo.config["remote"])
                    if names:
                        raise UsageError(
                            f".dvc/config: of the remotes {', '.join(names)} none is the default: run "
                            "`dvc remote default NAME`"
                        )
                    yield None
                    return
                yield [_open(repo, name, outs) for name, outs in (by_remote or {default: []}).items() if name]
        except DvcException as error:
            raise UsageError(" ".join(str(error).split())) from None


def _open(repo: Any, name: str, outs: list[Any]) -> _Store:
    """A remote by its name.

    Raises
    ------
    ClearwayError
        The package that speaks to it is not installed.
    UsageError
        It versions its objects itself, or data is named as DVC 2 did.
    """
    known = repo.config["remote"]
    if name not in known:
        raise UsageError(f".dvc/config: core.remote = {name!r} is not among the remotes ({', '.join(sorted(known))})")
    url = str(known[name]["url"])
    remote, scheme = f"{name} ({without_password(url)})", urlsplit(url).scheme
    old = [out for out in outs if out.hash_info.name != "md5"]
    if old:
        raise UsageError(f"{_path(old[0])} is named as DVC 2 did: `dvc cache migrate --dvc-files`")
    try:
        opened = repo.cloud.get_remote(name)
        if opened.worktree or opened.config.get("version_aware"):
            raise UsageError(f"the remote {remote} is set to worktree or version_aware, which this does not support")
        odb = opened.odb
    except ImportError as error:
        raise ClearwayError(explain(error, remote, scheme)) from None
    odb.tmp_dir = None  # where DVC notes what it has pushed, and would believe it
    return _Store(repo, remote, scheme, odb, outs)


def _outs(repo: Any) -> list[Any]:
    """What the lock and .dvc files name and DVC keeps: no output that is not cached, pushed or of this repository."""
    return [
        out
        for out in repo.index.outs
        if out.use_cache and out.can_push and out.is_in_repo and out.hash_info and not out.stage.is_repo_import
    ]


def _path(out: Any) -> str:
    return Path(out.fs_path).relative_to(out.repo.root_dir).as_posix()


def _content(odb: Any, oid: str) -> bytes | None:
    try:
        with odb.fs.open(odb.oid_to_path(oid), "rb") as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        return None


def _checkout(repo: Any) -> None:
    from dvc.exceptions import CheckoutError, DvcException

    try:
        repo.checkout(allow_missing=True)  # stages that never ran have made nothing to check out
    except CheckoutError as error:
        raise ClearwayError(f"pulled, but not put in place: {', '.join(map(str, error.target_infos))}") from None
    except DvcException as error:
        head, *paths = str(error).splitlines()
        if "unsaved files" not in head:
            raise
        changed = ", ".join(str(Path(path).relative_to(repo.root_dir)) for path in paths)
        raise ClearwayError(
            f"changed here, and kept nowhere else: {changed}: move it away or keep it by `dvc commit`, then pull again"
        ) from None


def _is_named(project: Path) -> bool:
    """Whether a lock is committed; outside git, whether there is one."""
    if git_root(project) is None:
        return (project / "dvc.lock").is_file() or any(path.is_file() for path in project.glob("*.dvc"))
    command = ["git", "-C", str(project), "ls-files", "--", "dvc.lock", "*.dvc"]
    return bool(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def within(seconds: float, work: Callable[[], _T]) -> _T:
    """The answer of ``work``; a client that waits on is left behind with its thread.

    Raises
    ------
    TimeoutError
        It has not answered in ``seconds``.
    """
    answers: list[_T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]


class _Listener(logging.Handler):
    """Keeps the errors that DVC logs and goes on from."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.errors.append(record.exc_info[1])


@contextmanager
def _heard() -> Iterator[list[BaseException]]:
    """Listen to what DVC logs, in place of printing it with its tracebacks."""
    listener = _Listener()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(listener)
        logger.propagate = False
    try:
        yield listener.errors
    finally:
        for logger, propagates in zip(loggers, before, strict=True):
            logger.removeHandler(listener)
            logger.propagate = propagates
