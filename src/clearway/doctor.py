"""Is a repository on GitHub set up for the line? A pure judge of its settings, as the REST API tells them.

What a token may not read is *unknown* and said so: it never counts as right.
"""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "change", "advice", "unknown"]
"""ok; change: the line does not work, or is not safe, without it; advice: a protection is inactive; unknown."""

STATE_BRANCH = "clearway-state"


@dataclass(frozen=True)
class Unread:
    """A setting that could not be read, and why."""

    why: str


Told = Mapping[str, Any] | Unread


@dataclass(frozen=True)
class Facts:
    """What the API answered. Each part is its content, or :class:`Unread`; an absent thing is an empty content."""

    repository: Mapping[str, Any]
    """``GET /repos/{owner}/{repo}``."""
    actions: Told
    """``…/actions/permissions``."""
    selected: Told
    """``…/actions/permissions/selected-actions``; empty where all are allowed."""
    token: Told
    """``…/actions/permissions/workflow``."""
    workflows: Told
    """``…/actions/workflows``."""
    environments: Told
    """``…/environments``."""
    main_rules: Told
    """``{"rules": [...]}``: ``…/rules/branches/{default branch}``."""
    state_rules: Told
    """The same of the branch with the state."""
    alerts: Told
    """``{"enabled": bool}``: ``…/vulnerability-alerts``."""
    files: Sequence[str]
    """Workflow files of the checkout, such as ``.github/workflows/delivery.yml``."""
    uses: Sequence[str] = field(default_factory=tuple)
    """Actions that they use, such as ``actions/checkout``."""


@dataclass(frozen=True)
class Finding:
    """One setting: what was found, and where and how to change it."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    page: str = ""
    """Path of the page of settings on GitHub, behind the repository's address."""


def diagnose(facts: Facts, environments: Iterable[str], guarded: str) -> list[Finding]:
    """Judge every setting that the workflows depend on.

    Parameters
    ----------
    facts : Facts
    environments : iterable of str
        Names of the environments of ``params.yaml``.
    guarded : str
        The one at the end of their chain, which a person should have to release.
    """
    return [
        _archived(facts),
        _actions(facts),
        _allowed(facts),
        *_workflows(facts),
        _token(facts),
        *_environments(facts, list(environments), guarded),
        _branch("default branch", facts.main_rules, str(facts.repository.get("default_branch", "main")), facts),
        _branch("state branch", facts.state_rules, STATE_BRANCH, facts),
        _alerts(facts),
    ]


def _archived(facts: Facts) -> Finding:
    if facts.repository.get("archived"):
        return Finding("repository", "change", "it is archived: nothing runs", "unarchive it", "settings")
    kind = "a private" if facts.repository.get("private") else "a public"
    return Finding("repository", "ok", f"{kind} {'fork' if facts.repository.get('fork') else 'repository'}")


def _actions(facts: Facts) -> Finding:
    name, page = "Actions", "settings/actions"
    if isinstance(facts.actions, Unread):
        return _unread(name, facts.actions, page)
    if not facts.actions.get("enabled"):
        return Finding(name, "change", "off: no workflow runs", "allow actions and reusable workflows", page)
    return Finding(name, "ok", "enabled")


def _allowed(facts: Facts) -> Finding:
    """Whether all that the workflows use may run."""
    name, page = "allowed actions", "settings/actions"
    for told in (facts.actions, facts.selected):
        if isinstance(told, Unread):
            return _unread(name, told, page)
    assert not isinstance(facts.actions, Unread)
    assert not isinstance(facts.selected, Unread)
    allowed = facts.actions.get("allowed_actions", "all")
    if allowed == "all":
        return Finding(
            name, "advice", "all", f"allow GitHub's own, and these: {_patterns(_foreign(facts.uses)) or 'none'}", page
        )
    if allowed == "local_only":
        barred = list(facts.uses)
    else:
        patterns = facts.selected.get("patterns_allowed") or []
        own = bool(facts.selected.get("github_owned_allowed"))
        barred = [use for use in facts.uses if not (own and _is_own(use)) and not _matches(use, patterns)]
    if barred:
        return Finding(name, "change", f"not allowed: {', '.join(sorted(barred))}", f"add {_patterns(barred)}", page)
    return Finding(name, "ok", "those that the workflows use")


def _workflows(facts: Facts) -> Iterator[Finding]:
    page = "actions"
    if isinstance(facts.workflows, Unread):
        yield _unread("workflows", facts.workflows, page)
        return
    states = {str(one.get("path")): str(one.get("state")) for one in facts.workflows.get("workflows", [])}
    why = {
        "disabled_fork": "GitHub switches workflows of a new fork off",
        "disabled_inactivity": "GitHub switched its cron off after 60 days without a commit",
        "disabled_manually": "somebody switched it off",
    }
    for path in facts.files:
        name, state = f"workflow {path.rpartition('/')[2]}", states.get(path)
        if state == "active":
            yield Finding(name, "ok", "active")
        elif state is None:
            yield Finding(
                name,
                "change",
                "GitHub does not know it",
                "push it to the default branch; in a fork enable Actions",
                page,
            )
        else:
            yield Finding(name, "change", why.get(state, state), "enable the workflow", f"{page}/workflows/{path[18:]}")


def _token(facts: Facts) -> Finding:
    name, page = "default token rights", "settings/actions"
    if isinstance(facts.token, Unread):
        return _unread(name, facts.token, page)
    if facts.token.get("default_workflow_permissions") != "read":
        found = str(facts.token.get("default_workflow_permissions"))
        return Finding(name, "advice", found, "read repository contents: the workflows ask for what they need", page)
    if facts.token.get("can_approve_pull_request_reviews"):
        return Finding(name, "advice", "may approve pull requests", "do not let Actions approve pull requests", page)
    return Finding(name, "ok", "read")


def _environments(facts: Facts, names: list[str], guarded: str) -> Iterator[Finding]:
    page = "settings/environments"
    if isinstance(facts.environments, Unread):
        yield _unread("environments", facts.environments, page)
        return
    found = {str(one.get("name")): one for one in facts.environments.get("environments", [])}
    plan = " (of a private repository only on a paid plan)" if facts.repository.get("private") else ""
    for name in names:
        title, environment = f"environment {name}", found.get(name)
        if environment is None:
            yield Finding(
                title, "advice", "not there yet: the first run makes it, without protection", f"make it{plan}", page
            )
            continue
        kinds = {str(rule.get("type")) for rule in environment.get("protection_rules") or []}
        lacking = []
        if name == guarded and "required_reviewers" not in kinds:
            lacking.append("no required reviewers")
        if environment.get("deployment_branch_policy") is None:
            lacking.append("open to every branch")
        remedy = (
            "require a reviewer, and allow the default branch alone" if name == guarded else "allow one branch alone"
        )
        yield Finding(
            title,
            "advice" if lacking else "ok",
            ", ".join(lacking) or "protected",
            f"{remedy}{plan}" if lacking else "",
            page,
        )


def _branch(title: str, told: Told, branch: str, facts: Facts) -> Finding:
    page = "settings/rules"
    if isinstance(told, Unread):
        return _unread(title, told, page)
    kinds = {str(rule.get("type")) for rule in told.get("rules", [])}
    wanted = {"deletion": "deletion", "non_fast_forward": "forced pushes"}
    lacking = [what for kind, what in wanted.items() if kind not in kinds]
    if branch != STATE_BRANCH and "pull_request" not in kinds:
        lacking.append("pushes without a pull request")
    if not lacking:
        return Finding(title, "ok", f"{branch} is protected")
    plan = " (of a private repository only on a paid plan)" if facts.repository.get("private") else ""
    return Finding(title, "advice", f"{branch} allows {', '.join(lacking)}", f"add a ruleset against them{plan}", page)


def _alerts(facts: Facts) -> Finding:
    name, page = "Dependabot alerts", "settings/security_analysis"
    if isinstance(facts.alerts, Unread):
        return _unread(name, facts.alerts, page)
    return Finding(name, "ok", "on") if facts.alerts.get("enabled") else Finding(name, "advice", "off", "enable", page)


def _unread(name: str, told: Unread, page: str) -> Finding:
    return Finding(name, "unknown", told.why, "ask with the token of an administrator, or look", page)


def _is_own(use: str) -> bool:
    return use.startswith(("actions/", "github/"))


def _foreign(uses: Iterable[str]) -> list[str]:
    return [use for use in uses if not _is_own(use)]


def _patterns(uses: Iterable[str]) -> str:
    return ", ".join(f"{use}@*" for use in sorted(uses))


def _matches(use: str, patterns: Iterable[str]) -> bool:
    """As GitHub reads a list of allowed actions: ``owner/*``, ``owner/name@*``; a ``!`` before it bars."""
    allowed = False
    for pattern in patterns:
        bare = re.sub(r"@.*$", "", pattern.lstrip("!"))
        if fnmatch.fnmatchcase(use, bare):
            if pattern.startswith("!"):
                return False
            allowed = True
    return allowed
