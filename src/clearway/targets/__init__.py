"""Where an environment is served, and how its commands reach it.

The folder ``var/environments/<env>`` is what all commands read. For the ``local`` target it is the environment itself;
for one that is elsewhere it is a verified copy, which :meth:`Target.pull` brings up to date before anything is decided
and which :meth:`Target.record` never writes to on its own: the ledger that counts is the target's.
"""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from clearway.bundle import Bundle
from clearway.ledger import Change, Entry
from clearway.params import HttpTargetParams, KServeTargetParams, LocalTargetParams, Params
from clearway.workspace import Workspace


class Endpoint(Protocol):
    """A server that answers."""

    @property
    def url(self) -> str:
        """Without a slash at its end."""


@dataclass(frozen=True)
class RemoteServer:
    """A server elsewhere."""

    url: str


class Target(Protocol):
    """One environment, wherever it is served."""

    @property
    def here(self) -> bool:
        """Whether the environment's folder is the environment itself."""

    @property
    def projects_alias(self) -> bool:
        """Whether whoever commands it moves the registry's alias, too."""

    @property
    def tls(self) -> ssl.SSLContext | None:
        """With what its certificate is checked; None if it has none."""

    def pull(self) -> None:
        """Bring the environment's folder up to date; nothing to do where it is the environment itself.

        Raises
        ------
        ClearwayError
            The target cannot be reached, is another environment's, or its history is not what it was.
        """

    def pull_log(self, since_revision: int | None = None) -> None:
        """Bring the prediction log in the environment's folder up to date, at least since that revision."""

    def check_ready(self) -> None:
        """Find out, before anything is recorded, that the environment could not be served.

        Raises
        ------
        ClearwayError
            It could not.
        """

    def lacks(self, digest: str) -> bool:
        """Whether a bundle must be brought before it can be served."""

    def bring(self, bundle: Bundle) -> None:
        """Have the bundle be where it will be served.

        Raises
        ------
        ClearwayError
            The target refuses it.
        """

    def fetch(self, digest: str) -> None:
        """Have a bundle that is served there be kept here, verified; nothing to do if it is here, or not there either.

        Raises
        ------
        ClearwayError
            What came is not what its digest says.
        """

    def record(self, change: Change, expected_head: str) -> Entry:
        """Write a planned change to the environment's ledger, if its head is still the one that was planned on.

        Raises
        ------
        ClearwayError
            The head moved, or the target refuses the change.
        """

    def publish(self) -> None:
        """Make known where the open rollout stands, after ``canary.json`` or ``skew.json`` was written here."""

    def project(self) -> None:
        """Begin what a killed command left undone, without waiting for it; nothing where servers follow by themselves.

        What does not succeed is a warning: it shows in :meth:`serve`, and must not stand in the way of a rollback.
        """

    def serve(self, revision: int) -> Endpoint:
        """Have the environment serve ledger revision ``revision`` or a later one.

        Raises
        ------
        ClearwayError
            It does not, and why.
        """

    def find(self) -> Endpoint | None:
        """The environment's server; None if there is none."""

    def describe(self) -> Mapping[str, Any] | None:
        """What the server says it serves (``GET /``); None if it does not answer."""


def target_of(params: Params, workspace: Workspace, environment: str) -> Target:
    """The target that ``environments.<environment>.target`` names; ``$CLEARWAY_<ENVIRONMENT>_URL`` moves a local one.

    So a repository variable lets a fork's jobs command a server elsewhere, while its params stay as they are.

    Raises
    ------
    UsageError
        There is no such environment, or its target is configured wrongly.
    """
    settings: LocalTargetParams | HttpTargetParams | KServeTargetParams = params.environment(environment).target
    elsewhere = os.environ.get(f"{variable_prefix(environment)}_URL")
    if type(settings) is LocalTargetParams and elsewhere:  # not what a server makes of its own environment
        settings = HttpTargetParams(kind="http", url=elsewhere)
    if isinstance(settings, HttpTargetParams):
        from clearway.targets.http import HttpTarget  # imports an HTTP client

        return HttpTarget(params, workspace, environment, settings)
    if isinstance(settings, KServeTargetParams):
        from clearway.targets.kserve import KServeTarget

        return KServeTarget(params, workspace, environment, settings)
    from clearway.targets.local import LocalTarget

    return LocalTarget(params, workspace, environment, settings)


def variable_prefix(environment: str) -> str:
    """What the variables of one environment begin with: ``CLEARWAY_PRODUCTION``."""
    return f"CLEARWAY_{environment.upper().replace('-', '_')}"
