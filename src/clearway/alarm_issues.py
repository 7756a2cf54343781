"""Alarms as issues of the repository on GitHub: one open issue for each kind and environment.

The issue is found by a mark in its text among those with the label, which only people with rights on the repository can
give. What was seen is shown as code, for it may hold what data and servers say.
"""

import re
from datetime import UTC, datetime
from typing import Any

from clearway.alarms import Alarm, Known, spoken
from clearway.errors import ClearwayError
from clearway.github_settings import PER_PAGE, GitHub

LABEL = "clearway-alarm"
RIGHT = "issues: write"
_MARK = re.compile(r"<!-- clearway-alarm ([a-z0-9-]+)/([a-z0-9_]+) told=(yes|no) -->")


class IssueMemory:
    """A :class:`clearway.alarms.Memory`.

    Parameters
    ----------
    page : str, optional
        Address of the run that looks, for the issue.
    """

    def __init__(self, github: GitHub, environment: str, page: str | None = None) -> None:
        self._github, self._environment, self._page = github, environment, page
        self._numbers: dict[str, int] | None = None

    def known(self) -> dict[str, Known]:
        """The open issues, by kind.

        Raises
        ------
        ClearwayError
            GitHub does not tell them.
        """
        status, issues = self._github.ask(f"/issues?state=open&labels={LABEL}&per_page={PER_PAGE}")
        if status != 200 or not isinstance(issues, list):
            raise ClearwayError(f"GitHub answers {status} for the open issues: the token needs permissions: {RIGHT}")
        found, numbers = {}, {}
        for issue in sorted(issues, key=lambda each: -int(each["number"])):  # of two of one kind the older one counts
            mark = _MARK.search(str(issue.get("body") or ""))
            if mark and mark[1] == self._environment and "pull_request" not in issue:
                found[mark[2]], numbers[mark[2]] = Known(told=mark[3] == "yes"), int(issue["number"])
        self._numbers = numbers
        return found

    def keep(self, alarm: Alarm, told: bool) -> None:
        """Open an issue, or bring the open one up to date.

        Raises
        ------
        ClearwayError
            GitHub refuses.
        """
        content: dict[str, Any] = {"body": self._text(alarm, told)}
        number = self._number(alarm.kind)
        if number is not None:
            self._github.send("PATCH", f"/issues/{number}", content, RIGHT)
            return
        content |= {"title": f"{self._environment}: {spoken(alarm.kind)}", "labels": [LABEL]}
        made = self._github.send("POST", "/issues", content, RIGHT)
        assert self._numbers is not None
        self._numbers[alarm.kind] = int(made["number"])

    def clear(self, kind: str, sentence: str) -> None:
        """Say that it is over, and close the issue.

        Raises
        ------
        ClearwayError
            GitHub refuses.
        """
        number = self._number(kind)
        if number is None:
            return
        said = f"{sentence.capitalize()}{f' ({self._page})' if self._page else ''}."
        self._github.send("POST", f"/issues/{number}/comments", {"body": said}, RIGHT)
        self._github.send("PATCH", f"/issues/{number}", {"state": "closed", "state_reason": "completed"}, RIGHT)

    def _number(self, kind: str) -> int | None:
        if self._numbers is None:
            self.known()
        assert self._numbers is not None
        return self._numbers.get(kind)

    def _text(self, alarm: Alarm, told: bool) -> str:
        seen = " ".join(alarm.sentence.replace("`", "'").split())
        last = f"Last seen {datetime.now(UTC):%Y-%m-%d %H:%M} UTC{f' in {self._page}' if self._page else ''}."
        mark = f"<!-- clearway-alarm {self._environment}/{alarm.kind} told={'yes' if told else 'no'} -->"
        closes = "The monitor brings this issue up to date, and closes it when the check passes."
        return f"```\n{seen}\n```\n\n{last} {closes}\n\n{mark}\n"
