"""Rebuild a model from what its bundle records, in a clean worktree, and compare it with the bundle, byte for byte.

The code is checked out at the recorded commits below a temporary folder, which is removed however the command ends. In
it every folder has the path that it has on this machine, below the temporary folder, so that relative paths between
the line, the project and its sources stay right. Nothing else is written, but git's own note of the worktree, which
is removed with it.

What must be equal is checked before anything is trained: the recipe (params, schema, feature definitions, code of the
training), by its hash, and the data, read again from its sources, by the hash of its snapshot.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.markup import escape

from clearway.bundle import CHALLENGER, Bundle, payload_digest
from clearway.errors import ClearwayError, UsageError
from clearway.files import read_json, sha256_file, write_text
from clearway.labelled_rows import read_rows
from clearway.line import Runner, StepFailedError, stop_family
from clearway.lineage import DIRTY, Lineage, package_versions
from clearway.model import PARAMS, load_model, load_payload
from clearway.model_record import params_of, snapshot_of
from clearway.params import GateParams, TuneParams, load_params
from clearway.project import own_sources
from clearway.project_folder import FEATURE_STORE, HOME, estimator_names, git_root
from clearway.secretless import HIDDEN, with_secrets
from clearway.snapshot import Snapshot
from clearway.trust import trust_of
from clearway.workspace import Workspace

LOCK = "dvc.lock"
EMBEDDED = {
    "registry": {"path": "var/feature_store/registry.db"},
    "online_store": {
        "type": "clearway.feature_store.embedded.EmbeddedOnlineStore",
        "path": "var/feature_store/online.db",
    },
}
"""Where a rebuilt project keeps what it would serve from: in the worktree, and never in the store that is live."""

_CHECK = """
from pathlib import Path
from clearway.lineage import recipe_sha256
from clearway.params import load_params
from clearway.project_folder import prepare
from clearway.workspace import Workspace
workspace = Workspace(Path("."))
params = load_params(workspace.params_file)
prepare(workspace.root)
print(recipe_sha256(params, workspace))
"""
"""Run by the checked-out line on itself: DVC made ready, and the hash of its recipe."""
_OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
"""How git tells a hook on which repository it runs; this command runs on those it names itself."""
_SAME_DATA = "the data of every stage are those of the recorded dvc.lock: the difference arose in training"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Pins:
    """Which commits make the model again, and what no commit says."""

    line: str
    """Commit of the line's repository."""
    project: str | None
    """Commit of the project's repository: the line's where they are one; None where the project is in none."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """A file of the payload, recorded and rebuilt; a hash is None where there is no such file."""

    name: str
    recorded: str | None
    rebuilt: str | None

    @property
    def equal(self) -> bool:
        return self.recorded == self.rebuilt


@dataclass(frozen=True)
class Predictions:
    """How far the answers of two models to the rows of the holdout are apart."""

    rows: int
    largest_difference: float | None
    """Of two scores of one row; None where they could not be compared."""
    tolerance: float
    """``gates.onnx_tolerance`` of the bundle's params."""
    problem: str = ""

    @property
    def within(self) -> bool:
        return self.largest_difference is not None and self.largest_difference <= self.tolerance


@dataclass(frozen=True)
class Reproduction:
    """What a rebuild came to."""

    digest: str
    rebuilt_digest: str
    files: tuple[File, ...]
    predictions: Predictions | None
    """None where the digests are the same."""
    notes: tuple[str, ...]
    processors: str = ""
    """How the kind of processor differs from the recorded one; empty where it does not."""

    @property
    def same(self) -> bool:
        return self.digest == self.rebuilt_digest

    @property
    def accepted(self) -> bool:
        """Whether the model was made again: the same bytes, or on another kind of processor the same answers."""
        return self.same or bool(self.processors and self.predictions and self.predictions.within)

    @property
    def sentence(self) -> str:
        """The outcome in a line, with the first file that differs, by name."""
        if self.same:
            return f"built twice, the same digest: {self.digest}"
        if self.accepted and self.predictions:
            return (
                f"built twice, on another kind of processor ({self.processors}), with the same answers: recorded "
                f"{self.digest}, rebuilt {self.rebuilt_digest}, largest difference of a score on "
                f"{self.predictions.rows:,} holdout rows {self.predictions.largest_difference:.3g}, at most "
                f"{self.predictions.tolerance:g} allowed (gates.onnx_tolerance)"
            )
        first = next((file for file in self.files if not file.equal), None)
        where = (
            f", first in {first.name} ({first.recorded or 'missing'} and {first.rebuilt or 'missing'})" if first else ""
        )
        return f"built twice, and different{where}: recorded {self.digest}, rebuilt {self.rebuilt_digest}"


# --- decisions: pure -------------------------------------------------------------------------------------------------


def choose_pins(lineage: Lineage, *, home: Path, project: Path | None, allow_dirty: bool = False) -> Pins:
    """Which commits to check out for a bundle.

    Parameters
    ----------
    lineage : Lineage
        What the bundle records.
    home, project : Path
        Tops of the repositories that hold the line and, now, the project folder; None where that is in none.
    allow_dirty : bool
        Whether to try with a commit that does not hold all that was used.

    Raises
    ------
    ClearwayError
        A commit that is needed was not recorded, or is dirty and may not be.
    """
    one_repository = home == project
    line = lineage.code_commit or (lineage.git_commit if one_repository else None)
    if line is None:
        raise ClearwayError(
            "lineage.json: code_commit is null: the bundle does not say which commit of the line made it, so that it "
            "cannot be made again; build models in a git repository, with at least one commit"
        )
    if project is None and lineage.git_commit is not None:
        raise ClearwayError(
            f"lineage.json: git_commit = {lineage.git_commit}, but the project folder is in no git repository now: "
            "run this in a clone of its repository (--project)"
        )
    notes = []
    pinned = lineage.git_commit if project is not None else None
    if pinned is None:
        notes.append(
            "the project folder was in no git repository: its schema, code and settings are taken as they are now; the "
            "recorded hash of the recipe vouches for them, and params.yaml comes from the bundle"
        )
    commits = {"code_commit": line, **({} if pinned is None else {"git_commit": pinned})}
    dirty = [f"{key} = {commit}" for key, commit in commits.items() if commit.endswith(DIRTY)]
    if dirty and not allow_dirty:
        raise ClearwayError(
            f"lineage.json: {' and '.join(dirty)}: files were used that the commit does not hold, so that the same "
            "model cannot be promised; --allow-dirty tries with the commit alone"
        )
    if dirty:
        notes.append("the commit does not hold all that was used (-dirty): a difference may come from that")
    return Pins(line.removesuffix(DIRTY), pinned and pinned.removesuffix(DIRTY), tuple(notes))


def changed_tables(recorded: Snapshot, found: Snapshot) -> list[str]:
    """How two snapshots differ, a phrase for each table that does."""
    differing = []
    for name in dict.fromkeys((*recorded.tables, *found.tables)):
        then, now = recorded.tables.get(name), found.tables.get(name)
        if then is None or now is None:
            differing.append(f"table {name} is {'new' if then is None else 'missing'}")
        elif then.sha256 != now.sha256:
            differing.append(
                f"table {name}: recorded sha256 {then.sha256} ({then.rows:,} rows), found {now.sha256} "
                f"({now.rows:,} rows)"
            )
    return differing or [f"recorded as_of {recorded.as_of}, found {found.as_of}; or how sources are named"]


def changed_packages(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Packages whose recorded version is not the one found, a phrase each; one that is not found counts."""
    return [
        f"{name} {version} then, {found.get(name, 'not known')} now"
        for name, version in recorded.items()
        if found.get(name) != version
    ]


def other_processor(recorded: str, found: str) -> str:
    """How the kinds of processor differ for which linear algebra is arranged; empty where they do not.

    Parameters
    ----------
    recorded, found : str
        ``blas`` of :func:`clearway.lineage.package_versions`: a version and a kind, for each library that is loaded.
    """
    then, now = ({each.split()[-1] for each in said.split(", ") if " " in each} for said in (recorded, found))
    return f"{', '.join(sorted(then))} then, {', '.join(sorted(now))} now" if then and now and then != now else ""


def compare_files(recorded: Mapping[str, str], rebuilt: Mapping[str, str]) -> tuple[File, ...]:
    """Payload files side by side, by name; arguments are name → SHA-256."""
    return tuple(File(name, recorded.get(name), rebuilt.get(name)) for name in sorted({*recorded, *rebuilt}))


def own_store(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``feature_store.yaml``, with registry and online store in the project's own ``var/``."""
    return {**settings, **EMBEDDED}


def first_difference(recorded: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> str:
    """The first stage whose data differ, by the contents of two ``dvc.lock``; empty where none does.

    Stages in the order in which they were run again. Only ``data/`` counts: reports hold times, and models have files
    of their own to compare.
    """
    then = recorded.get("stages") or {}
    for name, stage in (rebuilt.get("stages") or {}).items():
        was = {out["path"]: out.get("md5") for out in (then.get(name) or {}).get("outs", ())}
        for out in stage.get("outs", ()):
            path = out["path"]
            if path.startswith("data/") and path in was and was[path] != out.get("md5"):
                return f"{name} ({path})"
    return ""


def local_files(params: Mapping[str, Any]) -> dict[str, str]:
    """Sources that are files of this machine, by name: paths as ``params.yaml`` has them, relative to the project."""
    found = {}
    for name, source in (params.get("sources") or {}).items():
        path = source.get("path", "") if source.get("kind") in ("csv", "parquet") else ""
        if source.get("kind") == "sql" and source.get("url", "").startswith("sqlite:///"):
            path = source["url"].removeprefix("sqlite:///").split("?")[0]
        if path and "://" not in path and not Path(path).is_absolute():
            found[name] = path
    return found


def search_again(params: Mapping[str, Any], model: Mapping[str, Any], role: str) -> dict[str, Any] | None:
    """The params by which a search finishes just the trials that it had finished; None where they do already.

    A timeout ends a search elsewhere on another machine, the number of trials does not. The baseline needs no search.

    Parameters
    ----------
    params, model : mapping
        ``params.yaml`` and the payload's ``params.json`` of the bundle.
    role : str
        Of the bundle.
    """
    train = params.get("train") or {}
    tune = train.get("tune")
    if not tune:
        return None
    if role != CHALLENGER:
        return {**params, "train": {**train, "tune": None}}
    trials = ((model.get("train") or {}).get("tune") or {}).get("trials")
    wanted = {key: value for key, value in tune.items() if key != "timeout_seconds"} | {"trials": trials}
    said = {"trials": TuneParams.model_fields["trials"].default, **tune}
    return None if trials is None or wanted == said else {**params, "train": {**train, "tune": wanted}}


def made_here(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params by which a model is made again on this machine alone; neither change makes another model.

    The cluster of then may be gone, and its limits were for another machine.
    """
    train = dict(params.get("train") or {})
    train.pop("joblib", None)
    limits = ("memory_mb", "time_limit_seconds")
    if train.get("resources"):
        train["resources"] = {key: value for key, value in train["resources"].items() if key not in limits}
    return {**params, **({"train": train} if train else {})}


# --- effects ---------------------------------------------------------------------------------------------------------


def reproduce(
    bundle: Bundle, project: Path, console: Console, *, home: Path = HOME, allow_dirty: bool = False
) -> Reproduction:
    """Rebuild a verified bundle's payload in a clean worktree and compare.

    Parameters
    ----------
    bundle : Bundle
        The bundle.
    project : Path
        The project folder as it is now: where its repository is, and source files that are not under git.
    console : Console
        Where progress is shown.
    home : Path
        The line's repository.
    allow_dirty : bool
        Whether to try although a commit is dirty or the recipe is not the recorded one.

    Raises
    ------
    ClearwayError
        A commit is not recorded, not known or dirty; the recipe or the data is not the recorded one; a stage fails.
    UsageError
        The line is in no git repository.
    """
    lineage, project = bundle.lineage(), project.resolve()
    params = _with_secrets(bundle, project)
    tops = {"home": git_root(home), "project": git_root(project)}
    if tops["home"] is None:
        raise UsageError(f"{home} is no git repository: a model is made again from a commit of it")
    pins = choose_pins(lineage, home=tops["home"], project=tops["project"], allow_dirty=allow_dirty)
    notes = list(pins.notes)
    versions = package_versions()
    packages = changed_packages(lineage.packages, versions)
    processors = other_processor(lineage.packages.get("blas", ""), versions["blas"])
    if packages:
        notes.append(f"not as it was: {'; '.join(packages)}")
    repositories = {tops["home"]: pins.line, **({tops["project"]: pins.project} if tops["project"] else {})}
    with _worktrees({top: commit for top, commit in repositories.items() if commit}) as base:
        workspace = Workspace(_place(base, project))
        _lay_out(bundle, params, project, workspace, pins, base)
        environment = _environment(base, home, workspace)
        recipe = _check_recipe(workspace, environment)
        if recipe != lineage.recipe_sha256:
            differs = f"recorded recipe sha256 {lineage.recipe_sha256}, found {recipe}"
            cause = "params, schema, feature definitions or training code are not those of the bundle"
            if not allow_dirty:
                raise ClearwayError(f"{differs}: {cause}; --allow-dirty tries nevertheless")
            notes.append(f"{differs}: {cause}")
        runner = Runner(workspace, console, environment)
        _stages(runner, "ingest", workspace, base)
        _check_data(bundle, lineage, workspace, packages)
        searched = search_again(params, json.loads(bundle.read(PARAMS)), lineage.role)
        wanted = made_here(params if searched is None else searched)
        if wanted != params:  # only now: the recipe is that of the params as they were
            write_text(workspace.params_file, yaml.safe_dump(wanted, sort_keys=False))
        if wanted != (params if searched is None else searched):
            notes.append("train.joblib and train.resources: it is made again on this machine, without its limits")
        if searched is not None:
            again = searched["train"]["tune"]
            trials = "no trials, which a baseline needs none of" if again is None else f"{again['trials']} trials"
            notes.append(f"train.tune: the search is run again with {trials}, and without its timeout")
        _stages(runner, "train", workspace, base)
        _check_data(bundle, lineage, workspace, packages)  # a source that is always read again may have moved
        return replace(_compare(bundle, params, lineage, workspace, notes, Workspace(project)), processors=processors)


def document(made: Reproduction) -> dict[str, Any]:
    """The result as plain values, for ``--json``."""
    predictions = made.predictions and {**asdict(made.predictions), "within": made.predictions.within}
    files = [{**asdict(file), "equal": file.equal} for file in made.files]
    outcome = {"same": made.same, "accepted": made.accepted}
    return {**asdict(made), **outcome, "files": files, "predictions": predictions}


def show(made: Reproduction, console: Console) -> None:
    """Print the result."""

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    for note in made.notes:
        say(f"[yellow]note[/]: {escape(note)}")
    for file in made.files:
        if file.equal:
            say(f"[green]equal[/]    {file.name:<14} {file.recorded}")
        else:
            say(f"[red]differs[/]  {file.name:<14} {file.recorded or 'no such file'}, rebuilt {file.rebuilt or 'none'}")
    if made.same:
        say(f"reproduced: {made.digest}")
        return
    say(f"differs: recorded {made.digest}, rebuilt {made.rebuilt_digest}")
    said = made.predictions
    if said and said.largest_difference is not None:
        bound = "within" if said.within else "beyond"
        say(
            f"largest difference of a score on the {said.rows:,} holdout rows: {said.largest_difference:.3g}, {bound} "
            f"gates.onnx_tolerance = {said.tolerance:g}"
        )
        if made.accepted:
            say(f"reproduced, on another kind of processor ({made.processors}): other bytes, the same answers")
    elif said:
        say(f"scores on the holdout cannot be compared: {escape(said.problem)}")


@contextmanager
def _worktrees(repositories: Mapping[Path, str]) -> Iterator[Path]:
    """Check commits out below a temporary folder; both are gone afterwards, also when the command is asked to end."""
    for top, commit in repositories.items():
        if _git(top, "cat-file", "-e", f"{commit}^{{commit}}").returncode != 0:
            raise ClearwayError(
                f"commit {commit} is not in {top}: fetch it (git fetch --all; git fetch --unshallow in a shallow clone)"
            )
    base = Path(tempfile.mkdtemp(prefix="clearway-reproduce-")).resolve()
    begun: list[Path] = []
    with _signals(signal.default_int_handler):
        try:
            for top, commit in sorted(repositories.items()):  # one that holds another comes first
                begun.append(top)
                quiet = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")
                done = _git(top, *quiet, "worktree", "add", "--quiet", "--detach", str(_place(base, top)), commit)
                if done.returncode != 0:
                    raise ClearwayError(f"git worktree add failed in {top}: {' '.join(done.stderr.split())}")
            yield base
        finally:
            with _signals(signal.SIG_IGN):
                for top in reversed(begun):
                    _git(top, "worktree", "remove", "--force", "--force", str(_place(base, top)))
                shutil.rmtree(base, ignore_errors=True)


@contextmanager
def _signals(handler: Any) -> Iterator[None]:
    """Answer Ctrl-C, a polite kill and a closed terminal with ``handler``."""
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _git(top: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run git on one repository."""
    environment = {key: value for key, value in os.environ.items() if key not in _OF_A_HOOK}
    return _run(["git", "-C", str(top), *arguments], environment)


def _run(
    command: list[str], environment: Mapping[str, str], folder: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command; interrupted, stop all that it started too: it must not write on while its folder is removed."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)
    try:
        output, errors = process.communicate()
    finally:
        if process.poll() is None:
            stop_family(process.pid)
            process.wait()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _place(base: Path, path: Path) -> Path:
    """Where ``path`` is below the temporary folder."""
    path = path.resolve()
    return base / path.relative_to(path.anchor)


def _with_secrets(bundle: Bundle, project: Path) -> dict[str, Any]:
    """The bundle's params, with the passwords that it does not keep as the project has them now.

    Raises
    ------
    ClearwayError
        The project now has no such source.
    """
    now = project / "params.yaml"
    current = yaml.safe_load(now.read_text(encoding="utf-8")) if now.is_file() else None
    params = with_secrets(params_of(bundle), current if isinstance(current, dict) else {})
    for name, source in (params.get("sources") or {}).items():
        for key, value in source.items():
            if HIDDEN in str(value):
                raise ClearwayError(
                    f"{now}: sources.{name}.{key} must be {value} with the password in place of {HIDDEN}, which a "
                    "bundle does not keep"
                )
    return params


def _lay_out(
    bundle: Bundle, params: Mapping[str, Any], project: Path, workspace: Workspace, pins: Pins, base: Path
) -> None:
    """Complete the checked-out project: the bundle's params, sources that are not under git, no live feature store.

    Raises
    ------
    ClearwayError
        The project was not in the repository at that commit, or a source file is nowhere.
    """
    folder = workspace.root
    schema, store = str(params.get("schema", "schema.yaml")), str(params.get("feature_store", FEATURE_STORE))
    if pins.project is None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (schema, store, "dvc.yaml"):
            if (project / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(project / name, folder / name)
        for code in _own_code(params, project):
            copied = folder / code.relative_to(project)
            copied.parent.mkdir(parents=True, exist_ok=True)
            if code.is_dir():
                shutil.copytree(code, copied, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy(code, copied)
    elif not (folder / schema).is_file():
        raise ClearwayError(
            f"commit {pins.project} has no {schema} for {project}: it was never committed, or the folder was elsewhere"
        )
    written = bundle.evidence("params.yaml").read_text(encoding="utf-8")
    same = params == yaml.safe_load(written)
    write_text(folder / "params.yaml", written if same else yaml.safe_dump(dict(params), sort_keys=False))
    (folder / LOCK).unlink(missing_ok=True)  # else DVC could fetch outputs instead of making them
    if (folder / store).is_file():
        written = yaml.safe_load((folder / store).read_text(encoding="utf-8"))
        write_text(folder / store, yaml.safe_dump(own_store(written), sort_keys=False))
    for name, path in local_files(params).items():
        target, source = folder / path, project / path
        if target.exists():
            continue
        if not source.exists():
            where = f"neither in commit {pins.project} nor there now" if pins.project else "missing"
            raise ClearwayError(f"{source} is {where} (params.yaml: sources.{name}): put the data back")
        if base not in target.parent.resolve().parents:
            raise ClearwayError(f"params.yaml: sources.{name} = {path!r} leads out of the file system's top")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve())


def _own_code(params: Mapping[str, Any], project: Path) -> list[Path]:
    """What of the project folder may be imported: ``src``, the project package, modules and packages of estimators."""
    package = (params.get("project") or {}).get("package")
    names = [*([package] if package else []), *estimator_names(params)]
    found = [source for source in own_sources(names) if source.is_relative_to(project)]
    return [*([project / "src"] if (project / "src").is_dir() else []), *found]


def _environment(base: Path, home: Path, workspace: Workspace) -> dict[str, str]:
    """The checked-out code first, then the caller's own; what DVC and MLflow write stays in the temporary folder."""
    asked = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    paths = [_place(base, home) / "src", workspace.root / "src", *(_place(base, entry) for entry in asked), *asked]
    return {
        "PYTHONPATH": os.pathsep.join(str(path) for path in dict.fromkeys(paths) if path.is_dir()),
        "DVC_SITE_CACHE_DIR": str(base / ".dvc-site"),
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{base}/mlflow.db",  # should a stage log: a rebuild is no new run
    }


def _check_recipe(workspace: Workspace, environment: Mapping[str, str]) -> str:
    """Make the project ready for DVC, by the checked-out line, and return the hash of its recipe.

    Raises
    ------
    ClearwayError
        The checked-out line refuses the project.
    """
    done = _run([sys.executable, "-c", _CHECK], {**os.environ, **environment}, workspace.root)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise ClearwayError(f"the checked-out line refuses the project: {said.removeprefix('clearway.errors.')}")
    cache = workspace.root / ".dvc" / "cache"  # of its own, whatever the repository or the user has configured
    settings = f"[core]\n    analytics = false\n[cache]\n    dir = {cache}\n    type = reflink,hardlink,copy\n"
    write_text(workspace.root / ".dvc" / "config.local", settings)
    return done.stdout.split()[-1]


def _stages(runner: Runner, target: str, workspace: Workspace, base: Path) -> None:
    """Run the stages up to ``target``; of one that fails the log is kept, since its folder is not."""
    try:
        runner.stages(target, "--no-run-cache")
    except StepFailedError as error:
        message = str(error)
        logs = workspace.var / "logs"
        if str(logs) in message:
            kept = Path(tempfile.mkdtemp(prefix="clearway-reproduce-logs-"))
            shutil.copytree(logs, kept, dirs_exist_ok=True)
            message = message.replace(str(logs), str(kept))
        raise StepFailedError(message.replace(str(base), ""), error.exit_code) from None


def _check_data(bundle: Bundle, lineage: Lineage, workspace: Workspace, packages: list[str]) -> None:
    """Refuse data that is not what the model was made from."""
    found = sha256_file(workspace.snapshot)
    if found == lineage.snapshot_sha256:
        return
    recorded = snapshot_of(bundle, lineage)
    if recorded is None:
        what = f"recorded snapshot sha256 {lineage.snapshot_sha256}, found {found} (the bundle keeps no more)"
    else:
        now = Snapshot.model_validate(read_json(workspace.snapshot))
        what = "; ".join(changed_tables(recorded, now))
    writer = [said for said in packages if said.startswith(("pandas ", "pyarrow "))]
    cause = f"; {'; '.join(writer)}: they write the tables" if writer else ""
    raise ClearwayError(f"the data is not what the model was made from: {what}{cause}; bring the recorded data back")


def _compare(
    bundle: Bundle,
    params: Mapping[str, Any],
    lineage: Lineage,
    workspace: Workspace,
    notes: list[str],
    project: Workspace,
) -> Reproduction:
    folder = workspace.model if lineage.role == CHALLENGER else workspace.baseline
    rebuilt = payload_digest(folder)
    hashes = {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    files = compare_files(bundle.manifest.payload, hashes)
    if rebuilt == bundle.digest:
        return Reproduction(bundle.digest, rebuilt, files, None, tuple(notes))
    if LOCK in bundle.evidence_manifest.files:
        locks = (yaml.safe_load(path.read_bytes()) for path in (bundle.evidence(LOCK), workspace.root / LOCK))
        stage = first_difference(*locks)
        notes.append(f"the data are already other ones after the stage {stage}" if stage else _SAME_DATA)
    predictions = _predictions(bundle, params, folder, rebuilt, (project, workspace))
    return Reproduction(bundle.digest, rebuilt, files, predictions, tuple(notes))


def _predictions(
    bundle: Bundle, params: Mapping[str, Any], folder: Path, rebuilt: str, places: tuple[Workspace, Workspace]
) -> Predictions:
    """The recorded and the rebuilt model's scores of the holdout, which was made again with the model.

    ``places`` are the project as it is now, whose params.yaml says what may be read, and the worktree, which vouches
    for what was rebuilt in it.
    """
    gates = params.get("gates") or {}
    tolerance = float(gates.get("onnx_tolerance", GateParams().onnx_tolerance))
    rows = pd.DataFrame()
    try:
        rows, _ = read_rows(places[1], "holdout", load_params(places[1].params_file).target.kind)
        current = load_params(places[0].params_file)
        theirs, own = (trust_of(current, place) for place in places)
        models = (load_model(bundle.path, bundle.digest, theirs), load_payload(folder, rebuilt, own))
        recorded, again = (model.output(model.schema.encode(rows)) for model in models)
    except ClearwayError as error:
        return Predictions(len(rows), None, tolerance, str(error))
    if models[0].target.kind != models[1].target.kind or recorded.shape != again.shape:
        return Predictions(len(rows), None, tolerance, "the two answer different things")
    return Predictions(len(rows), float(np.max(models[0].target.differences(recorded, again))), tolerance)
