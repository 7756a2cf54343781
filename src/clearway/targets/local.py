"""The environment is here: its folder is the truth, its server a process of this machine (:mod:`local_target`)."""

import time
from collections.abc import Mapping
from typing import Any

from clearway import local_target
from clearway.admin_api import Head, HeadMovedError
from clearway.bundle import Bundle
from clearway.errors import ClearwayError
from clearway.ledger import Change, Entry, append, read_ledger
from clearway.local_target import Server
from clearway.params import LocalTargetParams, Params, ServedHereParams
from clearway.workspace import Workspace

FOLLOW_SECONDS = 20.0
"""How long a server that something else runs may take to follow, its restart included."""


class LocalTarget:
    """One environment of this machine."""

    here = True
    tls = None

    def __init__(self, params: Params, workspace: Workspace, environment: str, settings: LocalTargetParams) -> None:
        self._params = params
        self._workspace = workspace
        self._environment = environment
        self._folder = workspace.environment(environment)
        self._settings = settings

    @property
    def projects_alias(self) -> bool:
        """A change that was sent to a server is projected by its sender, who knows the registry."""
        return not isinstance(self._settings, ServedHereParams)

    def pull(self) -> None:
        """The folder is the environment."""

    def pull_log(self, since_revision: int | None = None) -> None:
        """So is its prediction log."""

    def check_ready(self) -> None:
        if not self._settings.supervised:
            local_target.check_startable(self._params, self._workspace, self._environment)

    def lacks(self, digest: str) -> bool:
        """It is served from where it is kept."""
        return False

    def bring(self, bundle: Bundle) -> None:
        """It is kept here already."""

    def fetch(self, digest: str) -> None:
        """There is nowhere else to look."""

    def record(self, change: Change, expected_head: str) -> Entry:
        if isinstance(self._settings, ServedHereParams):
            if expected_head != self._settings.expected_head:
                entries = read_ledger(self._folder, self._environment)
                wanted = Head(sequence=self._settings.expected_sequence, hash=self._settings.expected_head)
                raise HeadMovedError(self._environment, wanted, Head.of(entries))
            change = change.model_copy(update={"evidence": {**self._settings.evidence, **change.evidence}})
        return append(self._folder, self._environment, change, expected_head=expected_head)

    def publish(self) -> None:
        """Whoever asks reads this folder."""

    def project(self) -> None:
        """Its server follows the routing table."""

    def serve(self, revision: int) -> Server:
        if not self._settings.supervised:
            return local_target.ensure_serving(self._params, self._workspace, self._environment, revision)
        deadline = time.monotonic() + FOLLOW_SECONDS
        refusal, refused_at = None, 0.0
        why = "no server answers"
        while time.monotonic() < deadline:
            server = self.find()
            if server is not None and isinstance(self._settings, ServedHereParams):
                return server  # it is the one that asks, and will follow; its sender waits for that
            answer = local_target.describe_server(server) if server else None
            if server and answer:
                why = answer.get("error") or f"it serves revision {answer.get('revision')}"
                if answer.get("error") is None and (answer.get("revision") or 0) >= revision:
                    return server
                if answer.get("error") != refusal:
                    refusal, refused_at = answer.get("error"), time.monotonic()
                if refusal is not None and time.monotonic() - refused_at >= local_target.REFUSAL_SECONDS:
                    break
            time.sleep(local_target.POLL_SECONDS)
        raise ClearwayError(
            f"the server of {self._environment} does not serve revision {revision}: {why}; it is run by something "
            f"else (environments.{self._environment}.target.supervised): see its log there"
        )

    def find(self) -> Server | None:
        return local_target.find_server(self._workspace, self._environment)

    def describe(self) -> Mapping[str, Any] | None:
        server = self.find()
        return local_target.describe_server(server) if server else None
