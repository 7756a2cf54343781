"""Where a server elsewhere may be, and which token it is shown; what goes over the wire is tested with a real one."""

from pathlib import Path
from typing import Any

import pytest

from clearway.errors import ClearwayError, UsageError
from clearway.ledger import GENESIS, Change
from clearway.params import HttpTargetParams, LocalTargetParams, Params, ServedHereParams
from clearway.targets import target_of
from clearway.targets.http import HttpTarget
from clearway.targets.local import LocalTarget
from clearway.workspace import Workspace


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLEARWAY_LIVE_EU_URL", "CLEARWAY_LIVE_EU_TOKEN", "CLEARWAY_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def params(**target: Any) -> Params:
    content = {"kind": "http", **target} if target else {}
    return Params.model_validate(
        {
            "project": {"name": "apples"},
            "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
            "data": {"table": "apples", "label": "ripe"},
            "environments": {"live-eu": {"port": 8080, **({"target": content} if content else {})}},
        }
    )


def made(tmp_path: Path, **target: Any) -> HttpTarget:
    found = target_of(params(**target), Workspace(tmp_path), "live-eu")
    assert isinstance(found, HttpTarget)
    return found


def test_an_environment_is_here_unless_it_says_otherwise(tmp_path: Path) -> None:
    found = target_of(params(), Workspace(tmp_path), "live-eu")
    assert isinstance(found, LocalTarget)
    assert (found.here, found.projects_alias, found.lacks("0" * 64)) == (True, True, False)
    assert params().environments["live-eu"].target == LocalTargetParams()
    with pytest.raises(UsageError, match="is not in params"):
        target_of(params(), Workspace(tmp_path), "nowhere")


@pytest.mark.parametrize(
    "url",
    ["https://models.example.org/", "http://127.0.0.1:80", "http://localhost", "http://[::1]:8080", "https://a/b/"],
)
def test_addresses(url: str, tmp_path: Path) -> None:
    assert made(tmp_path, url=url).url == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "CLEARWAY_LIVE_EU_URL"), ("", "is missing"), ("models.example.org", "expected https"),
        ("ftp://a", "expected https"), ("https://", "expected https"), ("https://a?x=1", "expected https"),
        ("https://ann:secret@a", "holds a password"), ("http://models.example.org", "unencrypted"),
        ("http://10.0.0.4:8080", "unencrypted"), ("http://127.0.0.1.evil.example", "unencrypted"),
    ],
)  # fmt: skip
def test_other_addresses_are_refused_without_showing_a_password(url: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        made(tmp_path, url=url)
    assert "secret" not in str(caught.value)


def test_a_trusted_network_may_be_named_as_such(tmp_path: Path) -> None:
    assert made(tmp_path, url="http://clearway:8080", plain_http=True).tls is None


def test_the_environment_of_the_process_names_another_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARWAY_LIVE_EU_URL", "https://other.example")
    assert made(tmp_path, url="https://a").url == "https://other.example"
    assert made(tmp_path, retries=1).url == "https://other.example"
    assert made(tmp_path).url == "https://other.example", "params that name no server elsewhere may stay as they are"


def test_a_server_is_not_sent_elsewhere_for_its_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARWAY_LIVE_EU_URL", "https://other.example")
    here = ServedHereParams(expected_sequence=0, expected_head="0" * 64)
    own = params()
    own = own.model_copy(
        update={"environments": {"live-eu": own.environments["live-eu"].model_copy(update={"target": here})}}
    )
    assert isinstance(target_of(own, Workspace(tmp_path), "live-eu"), LocalTarget)


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    context = made(tmp_path, url="https://a").tls
    assert context is not None
    assert context.check_hostname
    with pytest.raises(UsageError, match=r"ca_file = nothing\.pem"):
        made(tmp_path, url="https://a", ca_file="nothing.pem")
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(UsageError, match=r"ca_file = ca\.pem"):
        made(tmp_path, url="https://a", ca_file="ca.pem")


def test_two_servers_elsewhere_may_have_the_same_port() -> None:
    content = params(url="https://a").model_dump(by_alias=True)
    content["environments"]["live-us"] = content["environments"]["live-eu"]
    assert isinstance(Params.model_validate(content).environments["live-us"].target, HttpTargetParams)


def test_a_shadow_is_not_asked_of_a_server_elsewhere(tmp_path: Path) -> None:
    change = Change(action="shadow", stable="a" * 64, shadow="b" * 64, actor="ann", reason="a test")
    with pytest.raises(ClearwayError, match=r"opens and ends no shadows: .* on the server's own machine"):
        made(tmp_path, url="https://a").record(change, GENESIS)
