"""What actions/upload-artifact v7 does with its inputs, as far as these workflows use it, onto a shared folder.

Copied from its behaviour: hidden files and folders are left out unless asked for; one searched path is the root of the
artifact, several have their least common ancestor as root; empty folders vanish; a name taken in this run is refused
unless ``overwrite``; nothing found warns, fails or passes as asked.
"""

import os
import shutil
import sys
from pathlib import Path


def main() -> int:
    store = Path(os.environ["STANDIN_ARTIFACTS"]) / os.environ["GITHUB_RUN_ID"]
    name, here = os.environ["NAME"], Path.cwd()
    searched = [here / line.strip() for line in os.environ["PATHS"].splitlines() if line.strip()]
    hidden = os.environ["INCLUDE_HIDDEN_FILES"] == "true"
    found = [path for top in searched for path in files(top, hidden)]
    if not found:
        said = f"No files were found with the provided path: {os.environ['PATHS']}"
        failed = os.environ["IF_NO_FILES_FOUND"] == "error"
        if os.environ["IF_NO_FILES_FOUND"] != "ignore":
            print(f"::{'error' if failed else 'warning'}::{said}")
        return int(failed)
    root = Path(os.path.commonpath(searched)) if len(searched) > 1 else searched[0]
    if root.is_file():
        root = root.parent
    taken = [folder for folder in store.glob("*") if folder.name.split("-", 1)[1] == name]
    if taken and os.environ["OVERWRITE"] != "true":
        print(f"::error::Failed to CreateArtifact: 409 Conflict: an artifact with this name already exists: {name}")
        return 1
    for folder in taken:
        shutil.rmtree(folder)
    number = sum(1 for _ in store.parent.glob("*/*")) + 1001
    for path in found:
        target = store / f"{number}-{name}" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if name in os.environ.get("STANDIN_TAMPER", "").split():  # somebody with the right to does, after the upload
        for model in (store / f"{number}-{name}").rglob("model.onnx"):
            model.write_bytes(model.read_bytes() + b" ")
    with Path(os.environ["GITHUB_OUTPUT"]).open("a") as stream:
        stream.write(f"artifact-id={number}\n")
    print(f"{len(found)} files uploaded as {name}")
    return 0


def files(top: Path, hidden: bool) -> list[Path]:
    if top.is_file():
        return [top] if hidden or not top.name.startswith(".") else []
    return [
        path
        for path in sorted(top.rglob("*"))
        if path.is_file() and (hidden or not any(part.startswith(".") for part in path.relative_to(top).parts))
    ]


sys.exit(main())
