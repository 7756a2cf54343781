"""How runs of delivery.yml end: what became of each job of the line, whatever other jobs the file has."""

from act_runner import WorkflowRun

LINE = ("validate", "decide", "train", "deploy-staging", "deploy-production", "save-state")

DELIVERED = dict.fromkeys(LINE, "success")
REJECTED = {**DELIVERED, "deploy-staging": "skipped", "deploy-production": "skipped"}
NOTHING_TO_DO = {**REJECTED, "train": "skipped"}
STOPPED_AT_VALIDATION = {**NOTHING_TO_DO, "validate": "failure", "decide": "skipped"}
STOPPED_IN_TRAINING = {**REJECTED, "train": "failure"}
STOPPED_IN_STAGING = {**DELIVERED, "deploy-staging": "failure", "deploy-production": "skipped"}
ROLLED_BACK = {**DELIVERED, "deploy-production": "failure"}


def outcomes(run: WorkflowRun) -> dict[str, str]:
    return {job: run.jobs.get(job, "not reached") for job in LINE}
