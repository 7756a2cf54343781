"""A command killed, or its disk full, before any effect of any action: the environment serves something whole."""

import asyncio
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fault_injection import Fault, inject
from small_site import ENV, Site, make_site

from clearway.canary import CanaryVerdict
from clearway.canary_state import read_state, write_state
from clearway.deployment import (
    confirm,
    deploy,
    hold,
    open_shadow,
    quarantine,
    reconcile,
    release,
    rollback,
)
from clearway.ledger import Entry
from clearway.routing import project_routing, read_routing
from clearway.serving.state import Follower
from clearway.workspace import Workspace

MOST_EFFECTS = 120


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("template"))


def survive(action: Callable[[], Any]) -> None:
    """Let ``action`` do all it does short of starting a server."""
    end = inject(action, at=-1)
    assert end.how == "done", end


def opened(site: Site, weight: int = 10) -> None:
    survive(lambda: site.do(deploy, site.a))
    survive(lambda: site.do(deploy, site.b, weight))


def verdict(word: str, weight: int) -> CanaryVerdict:
    said = {"verdict": word, "sentence": f"a {word}", "weight": weight, "n_canary": 9, "n_stable": 9, "metrics": []}
    return CanaryVerdict.model_validate(said)


def passed(site: Site) -> None:
    opened(site, 95)
    state = read_state(site.folder, site.entries())
    assert state is not None
    write_state(site.folder, state.judged(verdict("promote", 95), 2, datetime.now(UTC)))


def twice(site: Site) -> None:
    survive(lambda: site.do(deploy, site.a))
    survive(lambda: site.do(deploy, site.b))


def barred(site: Site) -> None:
    survive(lambda: site.do(deploy, site.a))
    survive(lambda: site.do(quarantine, site.b))


Before, Action = Callable[[Site], None], Callable[[Site], Any]
ACTIONS: dict[str, tuple[Before, Action]] = {
    "deploy": (lambda site: survive(lambda: site.do(deploy, site.a)), lambda site: site.do(deploy, site.b)),
    "canary": (
        lambda site: None,  # the first one, which makes the baseline its control
        lambda site: site.do(deploy, site.b, 10),
    ),
    "promote": (passed, lambda site: site.do(deploy, site.b, 100)),
    "hold": (opened, lambda site: hold(site.params, site.workspace, ENV, verdict("hold", 10), actor="tester")),
    "rollback": (twice, lambda site: site.do(rollback)),
    "shadow": (lambda site: survive(lambda: site.do(deploy, site.a)), lambda site: site.do(open_shadow, site.b)),
    "confirm": (
        twice,
        lambda site: confirm(site.params, site.workspace, ENV, site.b, verdict("promote", 95), actor="tester"),
    ),
    "quarantine": (opened, lambda site: site.do(quarantine, site.c)),
    "release": (barred, lambda site: site.do(release, site.b)),
}


def fresh(template: Site, folder: Path, before: Before) -> Site:
    shutil.copytree(template.workspace.root, folder)
    site = Site(Workspace(folder), template.a, template.b, template.c)
    before(site)
    return site


def put_back(site: Site, saved: Path) -> None:
    environments = site.workspace.var / "environments"
    shutil.rmtree(environments, ignore_errors=True)
    if saved.exists():
        shutil.copytree(saved, environments)


def served(site: Site) -> tuple[str, str | None]:
    """What a server that starts now would serve, by the server's own code: everything verified, loaded and tried."""
    follower = Follower(site.params, site.workspace, ENV)
    asyncio.run(follower.catch_up())
    try:
        assert follower.active is not None, follower.error
        assert follower.error is None
    finally:
        follower.close()  # ends a shadow
    return follower.active.table.stable, follower.active.table.canary


def live(entries: list[Entry]) -> tuple[str, str | None]:
    return entries[-1].stable, entries[-1].canary


EVERY = [*((name, "kill") for name in ACTIONS), *((name, "full") for name in ("rollback", "hold"))]


@pytest.mark.parametrize(("name", "fault"), EVERY)
def test_whatever_stops_an_action_the_environment_serves_what_was_or_what_shall_be(
    template: Site, tmp_path: Path, name: str, fault: Fault
) -> None:
    before, act = ACTIONS[name]
    site = fresh(template, tmp_path / "site", before)
    saved = tmp_path / "saved"
    if (environments := site.workspace.var / "environments").exists():
        shutil.copytree(environments, saved)
    old = site.entries()
    survive(lambda: act(site))
    new = site.entries()
    assert len(new) > len(old)
    allowed = {live(new[:length]) for length in range(len(old), len(new) + 1) if length}
    at = 0
    while (at := at + 1) < MOST_EFFECTS:
        put_back(site, saved)
        end = inject(lambda: act(site), at, fault)
        if end.how == "done" and end.effects < at:
            break
        entries = site.entries()  # which verifies them
        assert facts(entries) == facts(new)[: len(entries)]
        assert len(entries) >= len(old)
        if fault == "kill":
            assert end.how == "killed", end
        elif end.how != "done":  # what the next command heals may be left to it
            assert end.how == "refused", end
            assert "No space left" in end.said
            assert "\n" not in end.said
            assert ("recorded (entry" in end.said) == (len(entries) > len(old)) or len(entries) < len(new), end
        if (site.folder / "routing.json").exists():  # what a server sees that runs through it all
            assert live(entries[: read_routing(site.folder / "routing.json").revision]) in allowed
        if at % 6 == 0 and entries:
            assert served(site) in allowed  # and one that starts now
        if at % 3 != 0:
            reconcile(site.params, site.workspace, ENV)  # how every command begins
            table = project_routing(entries, site.params.serving.salt, site.params.serving.routing_key)
            assert (read_routing(site.folder / "routing.json") if entries else None) == table
        if at % 3 == 1:
            if len(entries) < len(new):
                survive(lambda: act(site))
            assert facts(site.entries()) == facts(new)
            assert at % 6 != 1 or served(site) == live(new)
    assert 10 < at < MOST_EFFECTS


def facts(entries: list[Entry]) -> list[dict[str, Any]]:
    return [entry.model_dump(exclude={"at", "hash", "previous_hash"}) for entry in entries]
