"""Say how a delivery or a rollback on GitHub ended, in its summary and to the people at $CLEARWAY_ALERT_URLS."""

import os

from clearway.cli import DONE, job_output, job_summary, parser, run
from clearway.errors import ClearwayError


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--of", choices=("delivery", "rollback"), default="delivery", help="which workflow this is")
    arguments = options.parse_args()
    from clearway.aftermath import URLS_VARIABLE
    from clearway.conclusion import conclude, conclude_rollback, markdown, read_jobs
    from clearway.deployment import run_url
    from clearway.params import load_params
    from clearway.workspace import Workspace

    params = load_params(Workspace(arguments.project).params_file)
    jobs = read_jobs(os.environ.get("CLEARWAY_JOBS", ""))
    found = conclude(jobs) if arguments.of == "delivery" else conclude_rollback(jobs)
    print(f"conclude: {found.ending}: {found.sentence}", flush=True)
    job_output(ending=found.ending)
    job_summary(markdown(found, jobs, arguments.of))
    urls = os.environ.get(URLS_VARIABLE, "")
    if urls.strip() and found.ending in params.alerts.runs:
        from clearway.alerts import announce

        title = f"{params.project.name}: {arguments.of} {found.ending.replace('_', ' ')}"
        try:
            announce(urls, title, "\n".join(filter(None, [found.sentence, run_url()])), found.kind)
        except ClearwayError as error:  # the state was saved all the same, and the run has its own colour
            print(f"::warning title=Alert::{error}")
            job_summary(f"**alert** {error}")
    return DONE


if __name__ == "__main__":
    run(main)
