"""The REST API of GitHub (version 2022-11-28), and the settings of a repository as it tells them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from clearway.doctor import STATE_BRANCH, Facts, Told, Unread
from clearway.errors import ClearwayError, UsageError

SECONDS = 15.0
PER_PAGE = 100
RETRIES = Retry(
    total=3,
    backoff_factor=0.5,
    backoff_jitter=0.2,
    retry_after_max=60,
    status_forcelist=(429, 502, 503, 504),
    allowed_methods=("GET", "PUT", "PATCH"),  # a POST whose answer was lost may have made what it asks for
    raise_on_status=False,
)
"""What is asked again, after 0, 1 and 2 seconds or what GitHub says: connections refused, and passing failures."""


class GitHub:
    """One repository. The token is sent to ``api`` and is in no message."""

    def __init__(self, repository: str, token: str | None, api: str = "https://api.github.com") -> None:
        self._address = f"{api.rstrip('/')}/repos/{repository}"
        self._session = requests.Session()
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=RETRIES))
        self._session.headers.update({"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"})
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def ask(self, path: str) -> tuple[int, Any]:
        """HTTP status and content of a path behind the repository's own; no content is an empty one.

        Raises
        ------
        ClearwayError
            GitHub cannot be reached, or does not answer in JSON.
        """
        return self._call("GET", path, None)

    def send(self, method: str, path: str, content: Mapping[str, Any], right: str) -> Any:
        """Change something; what GitHub answers.

        Parameters
        ----------
        right : str
            What the token must be allowed to do, such as ``issues: write``, for the message.

        Raises
        ------
        ClearwayError
            GitHub cannot be reached, or refuses.
        """
        status, answer = self._call(method, path, content)
        if status >= 300:
            said = " ".join(str(answer.get("message", "")).split())[:200] if isinstance(answer, dict) else ""
            raise ClearwayError(
                f"GitHub answers {method} {path} with {status}{f' ({said})' if said else ''}: "
                f"the token needs permissions: {right}"
            )
        return answer

    def _call(self, method: str, path: str, content: Mapping[str, Any] | None) -> tuple[int, Any]:
        address = f"{self._address}{path}"
        try:
            answer = self._session.request(method, address, json=content, timeout=SECONDS, allow_redirects=True)
            return answer.status_code, answer.json() if answer.content else {}
        except (requests.RequestException, ValueError) as error:
            raise ClearwayError(
                f"{address} does not answer ({type(error).__name__}): look at the network, or at $GITHUB_API_URL"
            ) from None

    def told(self, path: str, absent: Mapping[str, Any] | None = None) -> Told:
        """The content of a path; ``absent`` where there is no such thing, if that is an answer."""
        status, content = self.ask(path)
        if status == 200:
            return content if isinstance(content, dict) else {"rules": content}
        if status == 404 and absent is not None:
            return absent
        reason = {401: "the token is refused", 403: "the token may not read it", 404: "the token may not read it"}
        return Unread(reason.get(status, f"GitHub answers {status}"))


def this_repository(environ: Mapping[str, str] = os.environ) -> GitHub:
    """The repository whose workflow runs this, with its token.

    Raises
    ------
    UsageError
        No workflow of GitHub runs this.
    """
    repository = environ.get("GITHUB_REPOSITORY", "")
    if repository.count("/") != 1 or not environ.get("GITHUB_TOKEN"):
        raise UsageError("GITHUB_REPOSITORY (owner/name) and GITHUB_TOKEN must be set, as in a job of GitHub Actions")
    return GitHub(repository, environ["GITHUB_TOKEN"], environ.get("GITHUB_API_URL") or "https://api.github.com")


def read_settings(github: GitHub, root: Path) -> Facts:
    """All that :func:`clearway.doctor.diagnose` looks at; ``root`` is a checkout of the repository.

    Raises
    ------
    ClearwayError
        There is no such repository for this token, or GitHub does not answer.
    """
    status, repository = github.ask("")
    if status != 200 or not isinstance(repository, dict):
        raise ClearwayError(
            f"GitHub answers {status} for the repository: correct its name, or give a token that may read it, as "
            "GITHUB_TOKEN"
        )
    folder = root / ".github" / "workflows"
    files = sorted(folder.glob("*.yml"))
    actions = github.told("/actions/permissions")
    limited = not isinstance(actions, Unread) and actions.get("allowed_actions") == "selected"
    alerts, _ = github.ask("/vulnerability-alerts")
    return Facts(
        repository=repository,
        actions=actions,
        selected=github.told("/actions/permissions/selected-actions") if limited else {},
        token=github.told("/actions/permissions/workflow"),
        workflows=github.told(f"/actions/workflows?per_page={PER_PAGE}"),
        environments=github.told(f"/environments?per_page={PER_PAGE}", absent={}),
        main_rules=_rules(github, str(repository.get("default_branch", "main"))),
        state_rules=_rules(github, STATE_BRANCH),
        alerts={204: {"enabled": True}, 404: {"enabled": False}}.get(alerts, Unread("the token may not read it")),
        files=[f".github/workflows/{path.name}" for path in files],
        uses=_uses([*files, *sorted((root / ".github" / "actions").glob("*/action.yml"))]),
    )


def _rules(github: GitHub, branch: str) -> Told:
    """The rules of a branch, from rulesets and from the older branch protection, which bars two things at least."""
    rules, older = github.told(f"/rules/branches/{branch}"), github.told(f"/branches/{branch}", absent={})
    if isinstance(rules, Unread) or isinstance(older, Unread) or not older.get("protection", {}).get("enabled"):
        return rules
    return {"rules": [*rules["rules"], {"type": "deletion"}, {"type": "non_fast_forward"}]}


def _uses(files: list[Path]) -> list[str]:
    """The actions of others that workflow files name, each once."""
    found = {name for path in files for name in re.findall(r"uses: ([\w.-]+/[\w./-]+)@", path.read_text("utf-8"))}
    return sorted(found)
