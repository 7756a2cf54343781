"""What actions/download-artifact v8 does with its inputs, as far as these workflows use it, from a shared folder.

Copied from its behaviour: one artifact, by name or id, lands directly in ``path``; a missing one fails; another run's
is found only with a token.
"""

import os
import shutil
import sys
from pathlib import Path


def main() -> int:
    run = os.environ["RUN_ID"] if os.environ["TOKEN"] else os.environ["GITHUB_RUN_ID"]
    store = Path(os.environ["STANDIN_ARTIFACTS"]) / run
    name, number = os.environ["NAME"], os.environ["ARTIFACT_IDS"]
    if bool(name) == bool(number):
        print("::error::one of name and artifact-ids is expected: without both, every artifact of the run would come")
        return 1
    wanted = f"*-{name}" if name else f"{number}-*"
    found = [folder for folder in store.glob(wanted) if not name or folder.name.split("-", 1)[1] == name]
    if not found:
        print(f"::error::Unable to download artifact(s): Artifact not found for {name or number} in run {run}")
        return 1
    shutil.copytree(found[0], os.environ["TARGET"], dirs_exist_ok=True)
    print(f"downloaded {found[0].name} of run {run}")
    return 0


sys.exit(main())
