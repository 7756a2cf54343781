"""One comment on a pull request that is written once and from then on updated, found by a hidden marker.

Only the standard library: where a token may write, no package is installed. The text comes from a run of somebody
else's code. It is posted as text: it calls nobody by name, and is cut to what GitHub takes.
"""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from clearway.errors import ClearwayError, UsageError

MARKER = "<!-- clearway: the model of this pull request -->"
AUTHOR = "github-actions[bot]"
"""Whom a job's own token speaks as. Nobody else's comment is changed, whatever it holds."""
LONGEST = 60_000
"""Characters; GitHub takes 65,536."""
PER_PAGE = 100
SECONDS, ATTEMPTS, FIRST_WAIT_SECONDS = 15.0, 4, 1.0


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """The token goes to the API and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirection)


class Comments:
    """The comments of one pull request, by GitHub's REST API.

    Raises
    ------
    UsageError
        The API's address is no HTTP address.
    """

    def __init__(self, repository: str, number: int, token: str, api: str, wait_seconds: float = FIRST_WAIT_SECONDS):
        if urlsplit(api).scheme not in ("http", "https"):
            raise UsageError(f"GITHUB_API_URL = {api!r}: expected https://HOST")
        self._address = f"{api.rstrip('/')}/repos/{repository}/issues"
        self._number, self._wait = number, wait_seconds
        self._headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "X-GitHub-Api-Version": "2022-11-28",
        }

    def put(self, text: str) -> str:
        """Update the comment that carries the marker, or write the first one; returns its address.

        Raises
        ------
        ClearwayError
            GitHub refuses, or cannot be reached.
        """
        body = {"body": comment(text)}
        for found in self._all():
            if str(found.get("body") or "").startswith(MARKER) and (found.get("user") or {}).get("login") == AUTHOR:
                return str(self._ask("PATCH", f"/comments/{found['id']}", body)["html_url"])
        return str(self._ask("POST", f"/{self._number}/comments", body)["html_url"])

    def _all(self) -> Iterator[dict[str, Any]]:
        page = 0
        while True:
            page += 1
            found = self._ask("GET", f"/{self._number}/comments?per_page={PER_PAGE}&page={page}")
            yield from found
            if len(found) < PER_PAGE:
                return

    def _ask(self, method: str, path: str, body: dict[str, str] | None = None) -> Any:
        """Asked again where GitHub is busy or out of reach, but for what could then be written twice."""
        address = f"{self._address}{path}"
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, content, self._headers, method=method)  # noqa: S310 (scheme checked)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with _OPENER.open(request, timeout=SECONDS) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                error.close()
                why = f"GitHub answers {error.code}"
                if error.code in (401, 403, 404):
                    why += ": the job needs permissions: pull-requests: write"
                again = error.code == 429 or (error.code >= 500 and method != "POST")
            except (OSError, HTTPException, ValueError) as error:
                why, again = f"no answer from GitHub ({type(error).__name__})", method != "POST"
            if not again:
                break
            time.sleep(self._wait * 2 ** (attempt - 1) if attempt < ATTEMPTS else 0)
        raise ClearwayError(f"{method} {address}: {why}; the report is in the summary of this run all the same")


def comment(text: str) -> str:
    """The body of the comment: the marker, then ``text``, which mentions nobody and is not too long."""
    quiet = re.sub(r"@(?=\w)", "@\u200b", text.strip())
    if len(quiet) > LONGEST:
        quiet = quiet[:LONGEST].rsplit("\n", 1)[0]
        closing = "\n```" if len(re.findall(r"^```", quiet, re.MULTILINE)) % 2 else ""
        closing += "\n\n</details>" * (quiet.count("<details") - quiet.count("</details>"))
        quiet += f"{closing}\n\nCut here: the whole report is in the summary of the run."
    return f"{MARKER}\n{quiet}\n"
