"""A small drill, for real: three deployments under load, one of them bad, rolled back by the command."""

from pathlib import Path

from clearway.drill import drill, timeline
from clearway.ledger import read_ledger
from clearway.local_target import find_server
from clearway.workspace import Workspace


def test_a_bad_version_is_rolled_back_under_load_and_nothing_else_fails(tmp_path: Path) -> None:
    found = drill(tmp_path, deployments=3, bad=2, rate=60, pause=0.3)
    assert found.other_failures == 0, timeline(found)
    assert found.own_failures >= 5
    said = [moment.what for moment in found.moments]
    assert said[0].startswith("verdict")
    assert {"ledger: entry 3", "routing table", "last answer of the bad version"} == set(said[1:])
    entries = read_ledger(tmp_path / "var" / "environments" / "drill", "drill")
    assert [entry.action for entry in entries] == ["deploy", "deploy", "rollback", "deploy"]
    assert entries[2].quarantines == (found.bad,)
    assert find_server(Workspace(tmp_path), "drill") is None
    assert len(timeline(found).splitlines()) == 13
