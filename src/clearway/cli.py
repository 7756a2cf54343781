"""What every script shares: one parser, one error line, one exit code."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from errno import EACCES, EDQUOT, EFBIG, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path
from typing import Any

from clearway.errors import ClearwayError, UsageError

# Nothing here is a plug-in of pydantic, and looking for one opens every installed package: 50 ms of each command.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

DONE, STOPPED, WRONG_USAGE, HELD, ROLLED_BACK, DIFFERS = 0, 1, 2, 3, 4, 5

_REFUSED = (ENOSPC, EDQUOT, EFBIG, EROFS, EACCES, EPERM, ENOTDIR, EISDIR)
"""What the system says of a disk or folder that cannot be written to, or a file that may not be read."""


def make_importable(folder: Path) -> None:
    """Let a project package that lies in ``folder``, a project's, be imported; what is installed comes first."""
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.append(path)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        parsed, rest = super().parse_known_args(args, namespace)
        make_importable(parsed.project)
        return parsed, rest


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the one option that all scripts have, ``--project``.

    A project package that lies in this folder can then be imported.
    """
    made = _Parser(description=description)
    made.add_argument(
        "--project",
        type=Path,
        default=Path(os.environ.get("CLEARWAY_PROJECT", ".")),
        metavar="DIR",
        help="folder with params.yaml and schema.yaml (default: $CLEARWAY_PROJECT or the current folder)",
    )
    return made


def run(main: Callable[[], int | None]) -> None:
    """Call ``main`` and leave the process with its exit code; an expected error is one line, no traceback.

    So is what the system says of files and disks.
    """
    try:
        code = main()
    except ClearwayError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(
            f"error: {what}: make room, or correct the file or its folder, and run the command again", file=sys.stderr
        )
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or DONE)


def job_output(**values: str) -> None:
    """Publish values as outputs of the running GitHub Actions step; elsewhere do nothing.

    Raises
    ------
    UsageError
        A value contains a line break, which would let data forge another output.
    """
    target = os.environ.get("GITHUB_OUTPUT")
    for name, value in values.items():
        if "\n" in value or "\r" in value:
            raise UsageError(f"job output {name} contains a line break: {value!r}")
    if target:
        with Path(target).open("a", encoding="utf-8") as stream:
            stream.writelines(f"{name}={value}\n" for name, value in values.items())


def markdown_cell(text: str) -> str:
    """A text as one cell of a Markdown table: it may hold what data held."""
    return " ".join(text.replace("|", "\\|").split())


def markdown_text(text: str) -> str:
    """Text that stays text inside one cell or line of Markdown, whatever the data put into it."""
    escaped = re.sub(
        r"([\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;")
    )
    return " ".join(escaped.split())


def job_summary(markdown: str) -> None:
    """Append Markdown to the GitHub Actions job summary; elsewhere do nothing."""
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if target:
        with Path(target).open("a", encoding="utf-8") as stream:
            stream.write(markdown.rstrip() + "\n\n")
