"""Opening Feast's store as feature_store.yaml says, and registering definitions in it."""

import clearway.feature_store  # noqa: F401  # first: it makes importing Feast quick

# isort: split
import re
import threading
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
from feast import FeatureStore, FeatureView, Field, RequestSource
from feast.types import Float64
from feature_store_harbour import EMBEDDED, NOON, SHIP, Harbour, draughts, harbour_workspace, key, moorings, read
from filelock import FileLock

from clearway.errors import ClearwayError, UsageError
from clearway.feature_store import store as store_module
from clearway.feature_store.definitions import Definitions, on_demand_view
from clearway.feature_store.store import apply_definitions, feature_service, open_store, without_secrets
from clearway.params import Params
from clearway.workspace import Workspace

REDIS = {"type": "redis", "connection_string": "${HARBOUR_REDIS}"}


@pytest.fixture
def harbour(tmp_path: Path) -> tuple[Params, Workspace]:
    return harbour_workspace(tmp_path)


def load(values: dict[str, list[float]]) -> dict[str, list[float]]:
    return {"load": [weight / 2 for weight in values["weight"]]}


def with_load() -> Definitions:
    """A view, and a feature made of it when it is asked for."""
    request = RequestSource(name="asked", schema=[Field(name="weight", dtype=Float64)])
    view = draughts()
    loads = on_demand_view("loads", load, [Field(name="load", dtype=Float64)], [view, request])
    return Definitions((SHIP,), (view,), {}, request, (loads,))


def apply(store: FeatureStore, *views: FeatureView, service: str = "first") -> None:
    definitions = Harbour(*views).definitions()
    apply_definitions(store, definitions, feature_service(service, definitions))


class TestOpening:
    def test_reads_the_file_that_params_name_relative_to_the_project(self, harbour: tuple[Params, Workspace]) -> None:
        params, workspace = harbour
        (workspace.root / "feature_store.yaml").rename(workspace.root / "other.yaml")
        store = open_store(params.model_copy(update={"feature_store": "other.yaml"}), workspace)
        assert store.project == "harbour"
        apply(store, draughts())
        assert (workspace.root / EMBEDDED["path"]).exists()
        assert (workspace.feature_store / "registry.db").exists()

    def test_can_keep_its_files_in_another_folder(self, harbour: tuple[Params, Workspace], tmp_path: Path) -> None:
        store = open_store(*harbour, repo=tmp_path / "elsewhere")
        apply(store, draughts())
        assert (tmp_path / "elsewhere" / EMBEDDED["path"]).exists()
        assert not harbour[1].feature_store.exists()

    def test_expands_variables_of_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HARBOUR_REDIS", "127.0.0.1:1,password=tide")
        store = open_store(*harbour_workspace(tmp_path / "h", REDIS))
        assert store.config.online_store.connection_string == "127.0.0.1:1,password=tide"

    @pytest.mark.parametrize("written", ["${HARBOUR_REDIS}", "$HARBOUR_REDIS"])
    def test_a_variable_that_is_not_set_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
    ) -> None:
        monkeypatch.delenv("HARBOUR_REDIS", raising=False)
        params, workspace = harbour_workspace(tmp_path / "h", {"type": "redis", "connection_string": written})
        with pytest.raises(UsageError, match=r"online_store\.connection_string = .* \$HARBOUR_REDIS is not set"):
            open_store(params, workspace)

    def test_a_variable_in_a_comment_need_not_be_set(self, harbour: tuple[Params, Workspace]) -> None:
        path = harbour[1].root / "feature_store.yaml"
        path.write_text("# password in ${NOT_SET_ANYWHERE}\n" + path.read_text())
        assert open_store(*harbour).project == "harbour"

    def test_a_password_that_breaks_the_file_is_not_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HARBOUR_REDIS", "'tide: [")
        with pytest.raises(UsageError, match="once HARBOUR_REDIS is expanded") as caught:
            open_store(*harbour_workspace(tmp_path / "h", REDIS))
        assert "tide" not in str(caught.value)

    def test_a_wrong_value_is_shown_as_it_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HARBOUR_REDIS", "4711")  # YAML reads a number
        with pytest.raises(UsageError, match=r"online_store\.connection_string = '\$\{HARBOUR_REDIS\}'") as caught:
            open_store(*harbour_workspace(tmp_path / "h", REDIS))
        assert "4711" not in str(caught.value)

    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("default:tide@127.0.0.1:6399,db=0", "part 1 of 2 .* must be host:port"),
            ("tide@127.0.0.1:6399,db=0", "part 1 of 2 .* must be host:port"),
            ("redis://:tide@127.0.0.1:6399/0", "part 1 of 1 .* must be host:port"),
            ("127.0.0.1:6399,db=0,password=high,tide", "part 4 of 4 .* cannot hold a comma"),
            ("127.0.0.1:6399,password=high,tide=", "part 3 of 3 .* no setting of a Redis client"),
            ("127.0.0.1:6399,ti-de=1", "part 2 of 2 .* name=value"),
            ("127.0.0.1,password=tide", "part 1 of 2 .* must be host:port"),
            ("127.0.0.1:tide", "part 1 of 1 .* a port of 1 to 65535"),
            ("127.0.0.1:0,password=tide", "part 1 of 2 .* a port of 1 to 65535"),
            ("127.0.0.1:65536,password=tide", "part 1 of 2 .* a port of 1 to 65535"),
            ("127.0.0.1:6399,,password=tide", "part 2 of 3 "),
            ("db=0,password=tide", "has no host:port"),
        ],
    )
    def test_an_address_of_redis_that_feast_would_misread_is_refused_and_not_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, said: str
    ) -> None:
        monkeypatch.setenv("HARBOUR_REDIS", address)
        pattern = rf"^[^\n]*feature_store\.yaml: online_store\.connection_string[^\n]*{said}[^\n]*$"
        with pytest.raises(UsageError, match=pattern) as caught:
            open_store(*harbour_workspace(tmp_path / "h", REDIS))
        assert not {"tide", "high", "127"} & set(re.findall(r"\w+", str(caught.value).partition("yaml")[2]))

    @pytest.mark.parametrize(
        "address",
        [
            "localhost:6379",
            "redis_1.harbour:1,db=0,ssl=true,username=ada,password=a=b:c@d",
            'h:65535,password="tide"',
            "a:1,b:2,password=tide",
        ],
    )
    def test_an_address_of_redis_as_feast_wants_it_is_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
    ) -> None:
        monkeypatch.setenv("HARBOUR_REDIS", address)
        assert open_store(*harbour_workspace(tmp_path / "h", REDIS)).config.online_store.connection_string == address

    def test_entity_keys_in_a_redis_are_of_the_version_that_is_known(self, tmp_path: Path) -> None:
        workspace = harbour_workspace(tmp_path / "h", {**REDIS, "connection_string": "h:1"})
        path = workspace[1].root / "feature_store.yaml"
        path.write_text(path.read_text().replace("version: 3", "version: 2"))
        with (
            pytest.warns(DeprecationWarning, match="version below 3"),
            pytest.raises(UsageError, match="entity_key_serialization_version = 2: in a Redis it must be 3"),
        ):
            open_store(*workspace)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (None, "is missing"),
            ("- a list", "must be a mapping"),
            ("project: {", "is not valid YAML"),
            ("project: harbour\nprovider: local\n", "Registry is not set"),
            ("project: 5\nregistry: r.db\n", "project = 5"),
            (
                "project: h\nregistry: r.db\nonline_store: {type: clearway.feature_store.embedded.EmbeddedOnlineStore,"
                " pfad: x}\n",
                r"unknown key online_store\.pfad",
            ),
            ("project: h\nregistry: r.db\nonline_store: {type: nowhere.NoOnlineStore}\n", "nowhere"),
            ("project: h\nregistry: r.db\nonline_store: {type: nonsense}\n", "nonsense"),
            ("project: h\nregistry: {path: 5}\n", r"registry\.path = 5"),
        ],
    )
    def test_a_wrong_file_is_one_line_that_names_it(
        self, harbour: tuple[Params, Workspace], content: str | None, said: str
    ) -> None:
        path = harbour[1].root / "feature_store.yaml"
        path.unlink()
        if content is not None:
            path.write_text(content)
        with pytest.raises(UsageError, match=f"^[^\n]*feature_store.yaml[^\n]*{said}[^\n]*$"):
            open_store(*harbour)


class TestSecrets:
    @pytest.mark.parametrize(
        ("address", "text", "shown"),
        [
            ("h:1,password=tide", "no 'tide' at h:1", "no '***' at h:1"),
            ("h:1,username=ada,password=tidemark", "ada: tidemark, tide", "***: ***, tide"),
            ("h:1,username=tide,password=tidemark", "tidemark tide", "*** ***"),
            ('h:1,password="tide"', "int('tide'), \"tide\"", "int('***'), ***"),
            ("h:1,password=it's", "\"it's\" '\"it\\'s'", '"***" \'"***\''),
            ("h:1,password=ti\\de", "ti\\de 'ti\\\\de'", "*** '***'"),
            ("h:1,password=a=b,db=0", "a=b at db=0", "*** at db=0"),
            ("h:1,ssl_password=tide", "tide", "***"),
            ("h:1,password=,db=0", "nothing to hide", "nothing to hide"),
            ("h:1", "h:1", "h:1"),
        ],
    )
    def test_of_a_redis_are_taken_out_of_a_text(self, tmp_path: Path, address: str, text: str, shown: str) -> None:
        config = open_store(*harbour_workspace(tmp_path / "h", {**REDIS, "connection_string": address})).config
        assert without_secrets(config, text) == shown

    def test_of_other_stores_are_too(self, harbour: tuple[Params, Workspace]) -> None:
        config = open_store(*harbour).config
        config.online_store.path = "postgresql://ada:tide@h:1/db"
        assert without_secrets(config, "ada with tide at h:1") == "*** with *** at h:1"


class TestApplying:
    def test_registers_everything_and_says_nothing(
        self, harbour: tuple[Params, Workspace], capfd: pytest.CaptureFixture[str]
    ) -> None:
        definitions = with_load()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store = open_store(*harbour)
            apply_definitions(store, definitions, feature_service("harbour_1", definitions))
        assert capfd.readouterr() == ("", "")
        fresh = open_store(*harbour)
        assert [entity.name for entity in fresh.list_entities() if entity.name == "ship"] == ["ship"]
        assert [found.name for found in fresh.list_feature_views()] == ["draughts"]
        service = fresh.get_feature_service("harbour_1")
        assert {p.name: {f.name for f in p.features} for p in service.feature_view_projections} == {
            "draughts": {"draught", "containers", "flag", "towed"},
            "loads": {"load"},
        }

    def test_deletes_what_is_no_longer_defined_and_keeps_earlier_services(
        self, harbour: tuple[Params, Workspace]
    ) -> None:
        store = open_store(*harbour)
        apply(store, draughts(), moorings(), service="first")
        apply(store, draughts(), service="second")
        fresh = open_store(*harbour)
        assert [view.name for view in fresh.list_feature_views()] == ["draughts"]
        assert {service.name for service in fresh.list_feature_services()} == {"first", "second"}
        with pytest.raises(ClearwayError, match="no table harbour_moorings"):
            read(fresh, moorings(), key(ship="a", berth="b"))

    def test_replaces_and_deletes_an_on_demand_view_whose_function_is_gone(
        self, harbour: tuple[Params, Workspace]
    ) -> None:
        renamed = with_load()
        renamed.on_demand[0].feature_transformation.udf_string = ""  # Feast cannot read it then
        for definitions in (renamed, renamed, with_load(), renamed):
            apply_definitions(open_store(*harbour), definitions, feature_service("first", definitions))
        assert [view.spec.name for view in open_store(*harbour).registry.proto().on_demand_feature_views] == ["loads"]
        apply(open_store(*harbour), draughts(), service="second")
        assert list(open_store(*harbour).registry.proto().on_demand_feature_views) == []

    def test_again_changes_nothing(self, harbour: tuple[Params, Workspace]) -> None:
        store = open_store(*harbour)
        apply(store, draughts())
        row = (key(ship="ada"), {}, NOON, None)
        store._get_provider().online_write_batch(store.config, draughts(), [row], None)
        apply(open_store(*harbour), draughts())
        assert read(store, draughts(), key(ship="ada"))[0][0] == NOON

    def test_a_changed_ttl_is_registered(self, harbour: tuple[Params, Workspace]) -> None:
        apply(open_store(*harbour), draughts())
        changed = draughts()
        changed.ttl = timedelta(hours=3)
        apply(open_store(*harbour), changed)
        assert open_store(*harbour).get_feature_view("draughts").ttl == timedelta(hours=3)

    def test_a_definition_that_feast_refuses_is_one_line(self, harbour: tuple[Params, Workspace]) -> None:
        with pytest.raises(UsageError, match=r"^the feature definitions are refused by Feast: [^\n]*draughts[^\n]*$"):
            apply(open_store(*harbour), draughts(), draughts())

    def test_half_a_registry_is_named(self, harbour: tuple[Params, Workspace]) -> None:
        apply(open_store(*harbour), draughts())
        registry = harbour[1].feature_store / "registry.db"
        registry.write_bytes(registry.read_bytes()[:-7])
        with pytest.raises(ClearwayError, match=r"registry\.db is not a whole registry: delete it"):
            apply(open_store(*harbour), draughts())

    def test_two_at_once_do_not_lose_each_others_service(self, harbour: tuple[Params, Workspace]) -> None:
        stores = [open_store(*harbour) for _ in range(4)]
        apply(stores[0], draughts())
        work = [
            threading.Thread(target=apply, args=(store, draughts()), kwargs={"service": f"service{number}"})
            for number, store in enumerate(stores)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join(60)
        services = {service.name for service in open_store(*harbour).list_feature_services()}
        assert services == {"first", *(f"service{number}" for number in range(4))}

    def test_another_that_does_not_end_is_named(
        self, harbour: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.01)
        store = open_store(*harbour)
        with (
            FileLock(harbour[1].feature_store / "registry.db.lock"),
            pytest.raises(ClearwayError, match=r"another process holds .*registry\.db\.lock"),
        ):
            apply(store, draughts())
