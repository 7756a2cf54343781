"""Stop if the committed dvc.lock names data that is not in the DVC remote; without a remote there is nothing to ask."""

import sys

from clearway.cli import DONE, STOPPED, job_summary, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.data_remote import check
    from clearway.workspace import Workspace

    verdict = check(Workspace(arguments.project))
    for entry in verdict.missing:
        print(f"not in the remote: {entry}")
    job_summary(f"### Data: {verdict.status.replace('_', ' ')}\n\n{verdict.sentence}")
    if verdict.passed:
        print(f"data: {verdict.sentence}")
        return DONE
    print(f"error: {verdict.sentence}", file=sys.stderr)
    return STOPPED


if __name__ == "__main__":
    run(main)
