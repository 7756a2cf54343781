"""A project in a folder of its own: params.yaml and schema.yaml there, the line's code here."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clearway.cli import make_importable
from clearway.errors import ClearwayError, UsageError
from clearway.files import write_text
from clearway.project import find_source, own_sources

HOME = Path(__file__).resolve().parents[2]
"""The repository that holds the line."""

HEADER = "# Written by `make run PROJECT=…` from the line's own dvc.yaml; delete this line to keep changes of yours.\n"
FEATURE_STORE = "feature_store.yaml"
IGNORED = ("/.dvc/", "/data/", "/build/", "/reports/", "/var/", "/drift_result.txt")


def prepare(project: Path, home: Path = HOME) -> None:
    """Make ``project`` a folder in which DVC runs the line: git checked, DVC initialised, dvc.yaml in place.

    Its params.yaml has been checked by :func:`clearway.params.load_params`.

    Raises
    ------
    UsageError
        The line's own repository is not under git, its dvc.yaml would miss changes of a source, or the project's
        package cannot be found.
    ClearwayError
        A source file is missing, or DVC cannot be initialised.
    """
    if git_root(home) is None:
        raise UsageError(f"{home} is not a git repository: run `git init && git add -A && git commit -m start` in it")
    for name, source in (_read_mapping(project / "params.yaml").get("sources") or {}).items():
        for path in local_sources({"sources": {name: source}}):
            if not (project / path).exists():  # DVC would only say that a dependency is missing
                raise ClearwayError(f"{project / path} is missing (params.yaml: sources.{name}.path = {path!r})")
    if project.resolve() == home.resolve():
        check_source_deps(project)
        return
    inside_git = git_root(project) is not None
    if not (project / ".dvc").is_dir():
        kind = "--subdir" if inside_git and git_root(project) != project.resolve() else None
        _dvc(project, "init", "--quiet", *(["--no-scm"] if not inside_git else [kind] if kind else []))
        _dvc(project, "config", "core.analytics", "false")
        write_text(project / ".dvcignore", "__pycache__\n")  # what Python compiles is no change of a package
    target = project / "dvc.yaml"
    if not target.exists() or target.read_text(encoding="utf-8").startswith(HEADER):
        write_text(target, render_dvc(home, project))
    ignore = project / ".gitignore"
    if inside_git and not ignore.exists():
        write_text(ignore, "\n".join(line for line in IGNORED if line != "/.dvc/") + "\n")


def render_dvc(home: Path, project: Path) -> str:
    """The line's dvc.yaml as ``project`` needs it: paths to the line's code, its own params, its own package.

    Params that ``project`` leaves at their defaults are left out, because DVC tracks only keys that exist.

    Raises
    ------
    UsageError, ClearwayError
        The project's package cannot be found.
    """
    pipeline: dict[str, Any] = yaml.safe_load((home / "dvc.yaml").read_text(encoding="utf-8"))
    params = _read_mapping(project / "params.yaml")
    try:
        prefix = Path(os.path.relpath(home.resolve(), project.resolve()))
    except ValueError:
        prefix = home.resolve()
    described = params.get("project")
    package = described.get("package") if isinstance(described, dict) else None
    own_package = [] if package is None else _package_deps(package, project)
    own_estimators = _estimator_deps(params, project)
    for name, stage in pipeline["stages"].items():
        stage["cmd"] = stage["cmd"].replace("python scripts/", f"python {prefix / 'scripts'}/")
        stage["deps"] = [
            new
            for dep in stage["deps"]
            for new in (
                [str(prefix / dep)]
                if dep.startswith(("scripts/", "src/clearway/"))
                else own_package  # in place of the line's own example
                if dep.startswith("src/")
                else [dep]
            )
        ]
        if FEATURE_STORE in stage["deps"]:  # a project that stores no features has none
            own = str(params.get("feature_store") or FEATURE_STORE)
            place = stage["deps"].index(FEATURE_STORE)
            stage["deps"][place : place + 1] = [own] if (project / own).exists() else []
        if name in ("decide", "train"):
            stage["deps"] += [dep for dep in own_estimators if dep not in stage["deps"]]
        if name == "ingest":
            stage["deps"] += local_sources(params)
            if _remote_sources(params):
                stage["always_changed"] = True  # nothing here tells DVC that a database or a URL has changed
        wanted = [*stage.get("params", []), *(["data"] if name == "features" else [])]
        stage["params"] = [key for key in wanted if _has(params, key)]
    return HEADER + yaml.safe_dump(pipeline, sort_keys=False, width=120)


def _package_deps(package: str, project: Path) -> list[str]:
    """Where the project's package lies, as dependencies, seen from the project's folder.

    Outside of it DVC ignores nothing, and would take what Python compiles there for a change: there its source files
    are named one by one.
    """
    make_importable(project)  # its scripts will look there too
    return _source_deps(find_source(package).resolve(), project)


def estimator_names(params: Mapping[str, Any]) -> list[str]:
    """The classes that ``params.yaml`` names of the challenger and the baseline; not those of a default."""
    train = params.get("train")
    named = [train.get(key) for key in ("estimator", "baseline")] if isinstance(train, dict) else []
    return [name for name in named if isinstance(name, str)]


def _estimator_deps(params: Mapping[str, Any], project: Path) -> list[str]:
    """Modules and packages of estimators that are not installed, as dependencies."""
    make_importable(project)
    return [dep for source in own_sources(estimator_names(params)) for dep in _source_deps(source, project)]


def _source_deps(source: Path, project: Path) -> list[str]:
    folder = project.resolve()
    if source.is_relative_to(folder):
        return [str(source.relative_to(folder))]
    files = sorted(source.rglob("*.py")) if source.is_dir() else [source]
    try:
        return [os.path.relpath(file, folder) for file in files]
    except ValueError:  # on another drive
        return [str(file) for file in files]


def _has(params: Mapping[str, Any], key: str) -> bool:
    """Whether a key such as ``decision.override_veto`` is in params.yaml."""
    head, _, rest = key.partition(".")
    inner = params.get(head)
    return head in params and (not rest or (isinstance(inner, dict) and _has(inner, rest)))


def local_sources(params: Mapping[str, Any]) -> list[str]:
    """Paths of the sources that are files, as ``params.yaml`` names them."""
    sources = (params.get("sources") or {}).values()
    named = [source["path"] for source in sources if source["kind"] in ("csv", "parquet")]
    return [path for path in named if "://" not in path]


def check_source_deps(project: Path) -> None:
    """Check that a hand-written dvc.yaml knows what the line reads of a project: else a change would go unseen.

    Raises
    ------
    UsageError
        A local source is no dependency of the stage ingest, a package in the project's folder none of the stage
        features, or an estimator that is not installed none of the stage train.
    """
    params = _read_mapping(project / "params.yaml")
    ingest = (_read_mapping(project / "dvc.yaml").get("stages") or {}).get("ingest") or {}
    missing = [path for path in local_sources(params) if path not in (ingest.get("deps") or [])]
    if missing:
        raise UsageError(f"{project / 'dvc.yaml'}: stage ingest must list {', '.join(missing)} among its deps")
    described = params.get("project")
    package = described.get("package") if isinstance(described, dict) else None
    known = ((_read_mapping(project / "dvc.yaml").get("stages") or {}).get("features") or {}).get("deps") or []
    if package is not None:
        (dep, *_) = _package_deps(package, project)
        if not dep.startswith("..") and not Path(dep).is_absolute() and dep not in known:
            raise UsageError(f"{project / 'dvc.yaml'}: stage features must list {dep} among its deps")
    stages = _read_mapping(project / "dvc.yaml").get("stages") or {}
    for dep in _estimator_deps(params, project):
        if dep not in ((stages.get("train") or {}).get("deps") or []):
            raise UsageError(f"{project / 'dvc.yaml'}: stage train must list {dep} among its deps")
    if _remote_sources(params) and not ingest.get("always_changed"):
        remote = ", ".join(_remote_sources(params))
        raise UsageError(
            f"{project / 'dvc.yaml'}: stage ingest needs always_changed: true, because DVC cannot see {remote} change"
        )


def _remote_sources(params: Mapping[str, Any]) -> list[str]:
    def remote(source: Mapping[str, Any]) -> bool:
        return source["kind"] == "sql" or "://" in source["path"]

    return [f"sources.{name}" for name, source in (params.get("sources") or {}).items() if remote(source)]


def _read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file whose content is checked elsewhere; an empty mapping where it is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def git_root(folder: Path) -> Path | None:
    """The top of the git work tree that holds ``folder``; None outside git."""
    command = ["git", "-C", str(folder), "rev-parse", "--show-toplevel"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Path(done.stdout.strip()).resolve() if done.returncode == 0 else None


def _dvc(project: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=project, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClearwayError(f"dvc {' '.join(arguments)} failed in {project}: {' '.join(done.stderr.split())}")
