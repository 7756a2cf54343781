"""How a delivery ended, from what its jobs say of themselves (GitHub's context ``needs``): a pure judgement."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from clearway.alerts import NotifyKind
from clearway.cli import markdown_cell
from clearway.errors import UsageError
from clearway.params import RunEnding, describe

LINE = ("validate", "decide", "train", "deploy-staging", "deploy-production")
"""The jobs in the order in which they run; GitHub names them in none."""
SHOWN = 12
"""Characters of a digest that people read."""


class Job(BaseModel):
    """One job: ``success``, ``failure``, ``cancelled`` or ``skipped``, and what it handed on."""

    model_config = ConfigDict(frozen=True)

    result: str
    outputs: Mapping[str, str] = {}


@dataclass(frozen=True)
class Conclusion:
    """The ending and one sentence for a person."""

    ending: RunEnding
    sentence: str

    @property
    def kind(self) -> NotifyKind:
        """How loud it is: ``failure`` where the run is red."""
        loud: dict[RunEnding, NotifyKind] = {"delivered": "success", "staged": "success", "held": "warning"}
        return "failure" if self.ending in ("failed", "rolled_back") else loud.get(self.ending, "info")


def read_jobs(text: str) -> dict[str, Job]:
    """``toJSON(needs)``.

    Raises
    ------
    UsageError
        It is something else.
    """
    try:
        return TypeAdapter(dict[str, Job]).validate_python(json.loads(text))
    except ValidationError as error:
        raise UsageError(f"$CLEARWAY_JOBS is not what toJSON(needs) gives ({describe(error)})") from None
    except ValueError:
        raise UsageError("$CLEARWAY_JOBS is no JSON: give it toJSON(needs)") from None


def conclude(jobs: Mapping[str, Job]) -> Conclusion:
    """The ending of a delivery whose jobs are ``validate``, ``decide``, ``train`` and ``deploy-…``.

    What none of the good endings explains has failed.
    """
    none = Job(result="skipped")
    train, staging, production = (jobs.get(name, none) for name in ("train", "deploy-staging", "deploy-production"))
    digest, tried = train.outputs.get("digest", "")[:SHOWN], production.outputs.get("verdict")
    if tried in ("rollback", "withdraw"):
        how = "did harm and was rolled back" if tried == "rollback" else "brought no lift and was withdrawn"
        return Conclusion("rolled_back", f"{digest} {how}; production serves what it served before")
    stopped = [f"{name} ({job.result})" for name, job in jobs.items() if job.result in ("failure", "cancelled")]
    if stopped:
        return Conclusion("failed", f"did not get through: {', '.join(stopped)}; what was served before goes on")
    if jobs.get("decide", none).outputs.get("retrain") == "false":
        return Conclusion("skipped", "nothing asked for a new model; nothing was trained or deployed")
    verdict = train.outputs.get("verdict")
    if verdict == "rejected":
        return Conclusion("rejected", "the challenger did not pass its gates; the champion stays")
    if verdict == "unchanged":
        return Conclusion("unchanged", "training gave the champion again; there is nothing to deploy")
    if tried == "promote":
        return Conclusion("delivered", f"{digest} answers everything in production")
    if tried == "hold":
        return Conclusion("held", f"{digest} was neither proven harmless nor harmful; production keeps its version")
    if verdict == "passed" and staging.result == "success" and production.result == "skipped":
        return Conclusion("staged", f"{digest} is in staging; this run was asked to go no further")
    return Conclusion("failed", "no job failed, yet there is no verdict: read the jobs' summaries")


def conclude_rollback(jobs: Mapping[str, Job]) -> Conclusion:
    """The ending of ``rollback.yml``, whose one job is ``rollback``."""
    job = jobs.get("rollback", Job(result="skipped"))
    stable, changed = job.outputs.get("stable", "")[:SHOWN], job.outputs.get("changed")
    if job.result == "success" and stable:
        how = "answers everything again" if changed == "true" else "answered everything already; nothing was changed"
        return Conclusion("rolled_back", f"{stable} {how}")
    if stable:
        return Conclusion("failed", f"{stable} answers again, but not all that follows was done: read the job's log")
    return Conclusion("failed", f"the rollback did not get through ({job.result}): what was served before goes on")


def markdown(found: Conclusion, jobs: Mapping[str, Job], of: str = "delivery") -> str:
    """The head of a run's summary: what ended how."""
    mark = {"failure": "❌", "warning": "⚠️"}.get(found.kind, "✅")
    reasons = jobs["decide"].outputs.get("reasons", "") if "decide" in jobs else ""
    names = sorted(jobs, key=lambda name: LINE.index(name) if name in LINE else len(LINE))
    rows = [
        f"| {name} | {jobs[name].result} | {markdown_cell(jobs[name].outputs.get('verdict', ''))} |" for name in names
    ]
    return "\n".join(
        [
            f"## {mark} {of.capitalize()}: {found.ending.replace('_', ' ')}",
            "",
            found.sentence + (f" (asked for by: {markdown_cell(reasons)})" if reasons else ""),
            "",
            "| job | result | verdict |",
            "| --- | --- | --- |",
            *rows,
        ]
    )
