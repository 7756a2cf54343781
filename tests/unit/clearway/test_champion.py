"""The champion as an input: from a verified ledger, verified, the same bytes for the same model, and never a guess."""

import json
import shutil
from pathlib import Path

import pytest

from clearway.bundle import keep, pack
from clearway.champion import champion_bundle, fetch_champion, kept_champion, read_champion
from clearway.errors import ClearwayError
from clearway.ledger import Change, append, head_hash, read_ledger
from clearway.lineage import Lineage
from clearway.params import Params
from clearway.workspace import Workspace

PARAMS = Params.model_validate(
    {
        "project": {"name": "toy"},
        "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
        "data": {"table": "rows", "label": "y"},
        "environments": {"staging": {"port": 1}, "live": {"port": 2, "requires": "staging"}},
    }
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "project")


def made(workspace: Workspace, content: str, role: str = "challenger") -> str:
    """Pack a bundle and keep it; any bytes are a payload to a bundle."""
    lineage = Lineage.model_validate(
        {
            "project": "toy",
            "role": role,
            "as_of": "2020-01-01T00:00:00Z",
            "snapshot_sha256": "s",
            "recipe_sha256": "r",
            "training_rows": 3,
            "labelled_rows": 4,
            "metrics": {"roc_auc": 0.8},
            "git_commit": None,
            "lock_sha256": None,
            "trigger": "local",
            "reasons": ["bootstrap"],
            "packages": {},
        }
    )
    payload = workspace.root / "payload"
    shutil.rmtree(payload, ignore_errors=True)
    payload.mkdir(parents=True)
    (payload / "model.txt").write_text(content)
    packed = pack(payload, {"lineage.json": lineage.model_dump_json().encode()}, workspace.root / "packed")
    return keep(packed.path, workspace.bundles)


def deploy(workspace: Workspace, stable: str, canary: str | None = None, environment: str = "live") -> None:
    folder = workspace.environment(environment)
    change = Change(
        action="canary" if canary else "deploy",
        stable=stable,
        canary=canary,
        canary_weight=10 if canary else 0,
        actor="test",
        reason="test",
    )
    append(folder, environment, change, expected_head=head_hash(read_ledger(folder, environment)))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_nothing_deployed_is_a_bootstrap_that_says_so(workspace: Workspace) -> None:
    champion = fetch_champion(PARAMS, workspace)
    assert champion.bootstrap
    assert champion.digest is None
    assert "nothing was ever deployed to live" in champion.reason
    assert read_champion(workspace) == champion
    assert [path.name for path in workspace.champion.iterdir()] == ["champion.json"]


def test_staging_makes_no_champion(workspace: Workspace) -> None:
    deploy(workspace, made(workspace, "a"), environment="staging")
    assert fetch_champion(PARAMS, workspace).bootstrap


def test_the_stable_model_is_copied_verified_and_not_the_canary(workspace: Workspace) -> None:
    stable, canary = made(workspace, "stable"), made(workspace, "canary")
    deploy(workspace, stable, canary)
    champion = fetch_champion(PARAMS, workspace)
    assert not champion.bootstrap
    assert champion.digest == stable
    assert champion.as_of is not None
    assert champion.as_of.year == 2020
    assert champion_bundle(champion, workspace).read("model.txt") == b"stable"
    assert tree(workspace.champion / "bundle") == tree(workspace.bundles / stable)


def test_the_same_champion_gives_the_same_bytes_however_the_ledger_grew(workspace: Workspace) -> None:
    stable, canary = made(workspace, "stable"), made(workspace, "canary")
    deploy(workspace, stable)
    fetch_champion(PARAMS, workspace)
    before = tree(workspace.champion)
    deploy(workspace, stable, canary)
    deploy(workspace, stable)
    fetch_champion(PARAMS, workspace)
    assert tree(workspace.champion) == before


def test_a_new_champion_replaces_the_whole_folder(workspace: Workspace) -> None:
    deploy(workspace, made(workspace, "old"))
    fetch_champion(PARAMS, workspace)
    (workspace.champion / "stray.txt").write_text("left over")
    new = made(workspace, "new")
    deploy(workspace, new)
    fetch_champion(PARAMS, workspace)
    assert read_champion(workspace).digest == new
    assert sorted(path.name for path in workspace.champion.iterdir()) == ["bundle", "champion.json"]


def test_a_baseline_is_a_control_and_no_champion(workspace: Workspace) -> None:
    baseline = made(workspace, "simple", role="baseline")
    deploy(workspace, baseline)
    champion = fetch_champion(PARAMS, workspace)
    assert champion.bootstrap
    assert champion.digest == baseline
    assert "baseline" in champion.reason
    assert champion_bundle(champion, workspace).read("model.txt") == b"simple"


@pytest.mark.parametrize("damage", ["edited", "cut", "gone", "emptied"])
def test_a_damaged_or_lost_ledger_stops_and_is_no_bootstrap(workspace: Workspace, damage: str) -> None:
    first, second = made(workspace, "first"), made(workspace, "second")
    deploy(workspace, first)
    fetch_champion(PARAMS, workspace)
    before = tree(workspace.champion)
    deploy(workspace, second)
    folder = workspace.environment("live")
    ledger = folder / "ledger.jsonl"
    if damage == "edited":
        ledger.write_bytes(ledger.read_bytes().replace(second.encode(), first.encode()))
    elif damage == "cut":
        ledger.write_bytes(ledger.read_bytes().splitlines(keepends=True)[0])
    elif damage == "gone":
        ledger.unlink()
    else:  # the anchor is lost as well, and only the routing table still says that something was deployed
        ledger.unlink()
        (folder / "head.json").unlink()
        (folder / "routing.json").write_text("{}")
    with pytest.raises(ClearwayError, match=r"ledger\.jsonl"):
        fetch_champion(PARAMS, workspace)
    assert tree(workspace.champion) == before


def test_a_missing_bundle_stops(workspace: Workspace) -> None:
    digest = made(workspace, "model")
    deploy(workspace, digest)
    shutil.rmtree(workspace.bundles / digest)
    with pytest.raises(ClearwayError, match=f"{digest} is missing: the ledger of live calls this bundle stable"):
        fetch_champion(PARAMS, workspace)
    assert not workspace.champion.exists()


@pytest.mark.parametrize("name", ["payload/model.txt", "evidence/lineage.json"])
def test_a_damaged_bundle_stops_and_leaves_nothing_behind(workspace: Workspace, name: str) -> None:
    digest = made(workspace, "model")
    deploy(workspace, digest)
    path = workspace.bundles / digest / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ClearwayError, match=r"has changed.*damaged") as caught:
        fetch_champion(PARAMS, workspace)
    assert str(path) in str(caught.value)  # the kept bundle is named, not the copy that is gone by now
    assert list(workspace.build.iterdir()) == []


def test_a_missing_or_damaged_record_names_the_script(workspace: Workspace) -> None:
    with pytest.raises(ClearwayError, match=r"run scripts/fetch_champion\.py first"):
        read_champion(workspace)
    fetch_champion(PARAMS, workspace)
    path = workspace.champion / "champion.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "surprise": 1}))
    with pytest.raises(ClearwayError, match="surprise"):
        read_champion(workspace)


@pytest.mark.parametrize(
    ("environments", "last"),
    [
        ({"staging": {"port": 1}, "production": {"port": 2, "requires": "staging"}}, "production"),
        ({"live": {"port": 2, "requires": "test"}, "test": {"port": 1}}, "live"),
        ({"a": {"port": 1}, "b": {"port": 2, "requires": "a"}, "c": {"port": 3, "requires": "b"}}, "c"),
        ({"only": {"port": 1}}, "only"),
        ({"live": {"port": 2, "requires": "test"}, "test": {"port": 1}, "sandbox": {"port": 3}}, "live"),
    ],
)
def test_production_is_the_end_of_the_chain(environments: dict[str, dict[str, object]], last: str) -> None:
    content = {**PARAMS.model_dump(by_alias=True), "environments": environments}
    assert Params.model_validate(content).production == last


def test_what_was_last_seen_of_a_server_elsewhere_needs_neither_the_server_nor_a_token(workspace: Workspace) -> None:
    far = {"port": 1, "target": {"kind": "http", "url": "http://127.0.0.1:9"}}
    params = Params.model_validate({**PARAMS.model_dump(mode="json"), "environments": {"live": far}})
    assert kept_champion(params, workspace).bootstrap
    digest = made(workspace, "a")
    deploy(workspace, digest)
    assert kept_champion(params, workspace) == read_champion(workspace)
    assert read_champion(workspace).digest == digest
    with pytest.raises(ClearwayError):
        fetch_champion(params, workspace)
