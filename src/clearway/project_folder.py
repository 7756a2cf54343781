"""A project in a folder of its own: params.yaml and schema.yaml there, the line's code here."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from clearway.errors import ClearwayError, UsageError
from clearway.files import write_text

HOME = Path(__file__).resolve().parents[2]
"""The repository that holds the line."""

HEADER = "# Written by `make run PROJECT=…` from the line's own dvc.yaml; delete this line to keep changes of yours.\n"
IGNORED = ("/.dvc/", "/data/", "/build/", "/reports/", "/var/", "/drift_result.txt")


def prepare(project: Path, home: Path = HOME) -> None:
    """Make ``project`` a folder in which DVC runs the line: git checked, DVC initialised, dvc.yaml in place.

    Raises
    ------
    UsageError
        There is no params.yaml, or the line's own repository is not under git.
    ClearwayError
        DVC cannot be initialised.
    """
    missing = project / "params.yaml"
    if not missing.is_file():
        raise UsageError(f"{missing} is missing: PROJECT must be a folder with params.yaml and schema.yaml")
    if git_root(home) is None:
        raise UsageError(f"{home} is not a git repository: run `git init && git add -A && git commit -m start` in it")
    if project.resolve() == home.resolve():
        return
    inside_git = git_root(project) is not None
    if not (project / ".dvc").is_dir():
        kind = "--subdir" if inside_git and git_root(project) != project.resolve() else None
        _dvc(project, "init", "--quiet", *(["--no-scm"] if not inside_git else [kind] if kind else []))
        _dvc(project, "config", "core.analytics", "false")
    target = project / "dvc.yaml"
    if not target.exists() or target.read_text(encoding="utf-8").startswith(HEADER):
        write_text(target, render_dvc(home, project))
    ignore = project / ".gitignore"
    if inside_git and not ignore.exists():
        write_text(ignore, "\n".join(line for line in IGNORED if line != "/.dvc/") + "\n")


def render_dvc(home: Path, project: Path) -> str:
    """The line's dvc.yaml as ``project`` needs it: paths to the line's code, its own params, no example package.

    Params that ``project`` leaves at their defaults are left out, because DVC tracks only keys that exist.
    """
    pipeline: dict[str, Any] = yaml.safe_load((home / "dvc.yaml").read_text(encoding="utf-8"))
    params: dict[str, Any] = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8")) or {}
    try:
        prefix = Path(os.path.relpath(home.resolve(), project.resolve()))
    except ValueError:
        prefix = home.resolve()
    package = (params.get("project") or {}).get("package")
    for name, stage in pipeline["stages"].items():
        stage["cmd"] = stage["cmd"].replace("python scripts/", f"python {prefix / 'scripts'}/")
        stage["deps"] = [
            str(prefix / dep) if dep.startswith(("scripts/", "src/clearway/")) else dep
            for dep in stage["deps"]
            if dep.startswith(("scripts/", "src/clearway/")) or not dep.startswith("src/") or dep == f"src/{package}"
        ]
        wanted = [*stage.get("params", []), *(["data"] if name == "features" else [])]
        stage["params"] = [key for key in wanted if key in params]
    return HEADER + yaml.safe_dump(pipeline, sort_keys=False, width=120)


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
