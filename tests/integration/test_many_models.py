"""Many models in one server: loaded when asked, unloaded when forgotten, and none in another's way."""

import asyncio
import contextlib
import gc
import json
import shutil
import threading
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from live_server import Server, deploy, running, until
from tiny_projects import deployed_tiny, write_tiny, write_tiny_bundle

from clearway import local_target
from clearway.deployment import Outcome, rollback
from clearway.deployment import deploy as deploy_model
from clearway.errors import ClearwayError, UsageError
from clearway.ledger import read_ledger
from clearway.local_target import ServerRefusedError, describe_server, ensure_serving, find_server, stop
from clearway.params import Params, ServingParams, load_params
from clearway.prediction_log import PredictionLog, read_log
from clearway.serving import models as hosting_module
from clearway.serving.answering import Answerer
from clearway.serving.app import Endpoint, _hosted_endpoint
from clearway.serving.housekeeping import Housekeeper
from clearway.serving.models import Hosting, Models, NotLoadedError, UnknownModelError, hosting
from clearway.serving.state import Follower
from clearway.serving.whole import Desk
from clearway.workspace import Workspace

MANY, KINDS = 100, 10
"""Models of the server, and different ones among them."""


def weight_of(number: int) -> float:
    return (number % KINDS + 1) / 100


def make_models(root: Path, folders: dict[str, Path], **serving: Any) -> Models:
    """Of a server whose own project has nothing deployed."""
    workspace = write_tiny(root, "own")
    params = load_params(workspace.params_file)
    log = PredictionLog(root / "predictions")
    follower, answerer = Follower(params, workspace, "staging"), Answerer(params.serving, log)
    own = Endpoint(params.serving, "staging", follower, log, answerer, Desk.alone(), "own")
    log.close()
    return Models(ServingParams(**serving), "staging", own, Hosting("own", folders), _hosted_endpoint)


async def stable_of(models: Models, name: str) -> str:
    async with models.use(name) as endpoint:
        active = endpoint._follower.active
        assert active is not None
        return active.table.stable


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three projects with one model each."""
    root = tmp_path_factory.mktemp("trio")
    return {name: deployed_tiny(root / name, weight).root for name, weight in (("a", 0.1), ("b", 0.2), ("c", 0.3))}


def test_the_least_recently_used_model_makes_room(tmp_path: Path, trio: dict[str, Path]) -> None:
    async def main() -> None:
        models = make_models(tmp_path, trio, max_loaded_models=2)
        assert models.loaded == ()
        for name, expected in (("a", "a"), ("b", "ab"), ("a", "ba"), ("c", "ac"), ("c", "ac"), ("b", "cb")):
            await stable_of(models, name)
            assert "".join(models.loaded) == expected
        assert (models.loads.done, models.loads.undone) == (4, 2)
        await models.close()
        assert models.loaded == ()

    asyncio.run(main())


def test_a_model_in_use_is_not_unloaded_and_the_next_waits_for_it(tmp_path: Path, trio: dict[str, Path]) -> None:
    async def main() -> None:
        models = make_models(tmp_path, trio, max_loaded_models=1)
        async with models.use("a") as endpoint:
            waiting = asyncio.create_task(stable_of(models, "b"))
            await asyncio.sleep(0.3)
            assert (models.loaded, waiting.done()) == (("a",), False)
            assert (await endpoint._answerer.answer_one({"x": 1.0}, None, endpoint._follower.active, 0.0, "1"))[0][
                "score"
            ]
        await asyncio.wait_for(waiting, 20)
        assert models.loaded == ("b",)
        await models.close()

    asyncio.run(main())


def test_a_request_for_which_no_room_comes_free_is_told_so(tmp_path: Path, trio: dict[str, Path]) -> None:
    async def main() -> None:
        models = make_models(tmp_path, trio, max_loaded_models=1)
        async with models.use("a"):
            models._settings = ServingParams(max_loaded_models=1, load_seconds=0.1)
            with pytest.raises(NotLoadedError, match=r"^model 'b' is not loaded: all 1 models that fit are in use"):
                await stable_of(models, "b")
            models._settings = ServingParams(max_loaded_models=1)
            later = asyncio.create_task(stable_of(models, "b"))
            await asyncio.sleep(0)
        await asyncio.wait_for(later, 20)  # it is not held against it
        assert (models.loaded, models._taken) == (("b",), 1)
        await models.close()

    asyncio.run(main())


def test_all_who_ask_for_a_model_wait_for_one_load(tmp_path: Path, trio: dict[str, Path]) -> None:
    async def main() -> None:
        models = make_models(tmp_path, trio, max_loaded_models=1)
        asked = ["a"] * 10 + ["b"] * 10 + ["c"] * 10
        found = await asyncio.wait_for(asyncio.gather(*(stable_of(models, name) for name in asked)), 60)
        assert [len(set(found[at : at + 10])) for at in (0, 10, 20)] == [1, 1, 1]
        assert len(set(found)) == 3
        assert models.loads.done == 3
        await models.close()

    asyncio.run(main())


def test_an_unknown_name_is_told_the_known_ones(tmp_path: Path, trio: dict[str, Path]) -> None:
    async def main() -> None:
        models = make_models(tmp_path, trio)
        with pytest.raises(UnknownModelError, match=r"^no model is called 'd' \(models: own, a, b, c\)$"):
            await stable_of(models, "d")
        async with models.use("own") as endpoint:
            assert endpoint is models._own

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no folder", "params.yaml is missing"),
        ("no environment", "environment 'staging' is not in params.yaml"),
        ("nothing deployed", "nothing was deployed here yet"),
        ("damaged", "was changed|differs|expected"),
        ("stored features", "looks its features up in a feature store, by code of its own project"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named_with_its_cause(tmp_path: Path, fault: str, said: str) -> None:
    folder = tmp_path / "bad"
    if fault == "no environment":
        write_tiny(folder, environments={"production": {"port": 0}})
    elif fault == "nothing deployed":
        write_tiny(folder)
    elif fault == "damaged":
        workspace = deployed_tiny(folder, 0.5)
        next(workspace.bundles.glob("*/payload/model.onnx")).write_bytes(b"something else")
    elif fault == "stored features":
        workspace = write_tiny(folder)
        digest = write_tiny_bundle(workspace, 0.5, features={"definitions": {"x": {"sha256": "0" * 64}}})
        deploy(workspace.environment("staging"), digest)

    async def main() -> None:
        models = make_models(tmp_path / "own", {"bad": folder})
        with pytest.raises(NotLoadedError, match=rf"^model 'bad' is not loaded: .*({said})") as caught:
            await stable_of(models, "bad")
        assert caught.value.retry_after >= 1
        assert "\n" not in str(caught.value)
        assert models.loaded == ()
        assert models._taken == 0
        assert models.describe()["models"]["bad"]["error"] in str(caught.value)

    asyncio.run(main())


def test_a_failed_model_is_left_alone_for_a_while_and_loads_when_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting_module, "FIRST_RETRY_SECONDS", 600.0)
    monkeypatch.setattr(hosting_module, "LONGEST_RETRY_SECONDS", 600.0)
    workspace = write_tiny(tmp_path / "late")

    async def main() -> None:
        models = make_models(tmp_path / "own", {"late": workspace.root})
        for _ in range(3):
            with pytest.raises(NotLoadedError, match="nothing was deployed") as caught:
                await stable_of(models, "late")
        assert models.loads.failed == 1
        assert 590 < caught.value.retry_after <= 600
        digest = write_tiny_bundle(workspace, 0.5)
        deploy(workspace.environment("staging"), digest)
        assert await stable_of(models, "late") == digest, "what has changed is tried at once"
        assert models.describe()["models"]["late"]["error"] is None
        await models.close()

    asyncio.run(main())


def test_a_failed_model_is_tried_again_when_its_time_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting_module, "FIRST_RETRY_SECONDS", 0.2)
    workspace = deployed_tiny(tmp_path / "hidden", 0.5)
    network = next(workspace.bundles.glob("*/payload/model.onnx"))
    network.rename(tmp_path / "aside.onnx")

    async def main() -> None:
        models = make_models(tmp_path / "own", {"hidden": workspace.root})
        with pytest.raises(NotLoadedError, match=r"model\.onnx"):
            await stable_of(models, "hidden")
        (tmp_path / "aside.onnx").rename(network)  # which no table tells of
        async with asyncio.timeout(20):
            while not models.loaded:
                with contextlib.suppress(NotLoadedError):
                    await stable_of(models, "hidden")
                await asyncio.sleep(0.02)
        assert models.loads.failed == 1
        await models.close()

    asyncio.run(main())


def test_loading_a_model_does_not_keep_the_others_waiting(
    tmp_path: Path, trio: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, begun = threading.Event(), threading.Event()
    load = Follower._load

    def held(follower: Follower) -> Any:
        if follower._folder.is_relative_to(trio["b"]):
            begun.set()
            assert hold.wait(30)
        return load(follower)

    monkeypatch.setattr(Follower, "_load", held)

    async def main() -> None:
        models = make_models(tmp_path, trio, max_loaded_models=3)
        await stable_of(models, "a")
        waiting = asyncio.create_task(stable_of(models, "b"))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        await asyncio.wait_for(stable_of(models, "a"), 20)
        await asyncio.wait_for(stable_of(models, "c"), 20)
        assert not waiting.done()
        hold.set()
        await asyncio.wait_for(waiting, 20)
        await models.close()

    asyncio.run(main())


def test_two_models_of_one_name_or_folder_are_refused(tmp_path: Path) -> None:
    def params(models: dict[str, str]) -> Params:
        workspace = write_tiny(tmp_path, "own", environments={"staging": {"port": 0, "models": models}})
        return load_params(workspace.params_file)

    assert list(hosting(params({"a": "../a"}), Workspace(tmp_path), "staging").folders) == ["a"]
    for models, said in (
        ({"own": "../a"}, r"environments\.staging\.models\.own: this project's own model is called so"),
        ({"a": "../x", "b": "./../x/"}, r"models\.b is the folder of models\.a too"),
        ({"a": "."}, r"models\.a is this project itself"),
        ({"A b": "../x"}, "A b"),
    ):
        with pytest.raises(UsageError, match=said):
            params(models)
    text = (tmp_path / "params.yaml").read_text().replace("A b: ../x", "a: ../x\n      a: ../y")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UsageError, match="twice"):
        load_params(tmp_path / "params.yaml")


def test_what_is_replaced_or_unloaded_is_freed_without_the_collector(tmp_path: Path) -> None:
    """What a server holds is frozen out of the collector's sight: nothing it drops may hang in a circle."""
    workspace = write_tiny(tmp_path / "a")
    digests = [write_tiny_bundle(workspace, weight) for weight in (0.1, 0.2)]
    deploy(workspace.environment("staging"), digests[0])

    def watched(endpoint: Endpoint) -> list[Any]:
        active = endpoint._follower.active
        assert active is not None
        return [weakref.ref(each) for each in (active, active.stable.encoder, active.stable.version.model.session)]

    async def freed(left: list[Any]) -> None:
        async with asyncio.timeout(20):  # threads let go of what they did last in their own time
            while any(ref() is not None for ref in left):
                await asyncio.sleep(0.01)

    async def answer(endpoint: Endpoint, wanted: str | None = None) -> None:
        active = endpoint._follower.active
        assert active is not None
        await endpoint._answerer.answer_one({"x": 1.0}, wanted, active, 0.0, "1")

    async def main() -> None:
        models = make_models(tmp_path / "own", {"a": workspace.root, "b": tmp_path / "none"}, max_loaded_models=1)
        async with models.use("a") as endpoint:
            follower = endpoint._follower
            await answer(endpoint)
            first = watched(endpoint)
            gc.collect()
            gc.disable()
            table = deploy(workspace.environment("staging"), digests[1], canary=digests[0], weight=10)
            while follower.active is None or follower.active.table.revision != table.revision:
                await asyncio.sleep(0.01)
            await freed(first[:2])
            assert first[2]() is not None, "the first model is now the canary"
            await answer(endpoint, digests[0])
            table = deploy(workspace.environment("staging"), digests[1])
            while follower.active.table.revision != table.revision:
                await asyncio.sleep(0.01)
            await freed(first)
            await answer(endpoint)
            second = [*watched(endpoint), weakref.ref(endpoint), weakref.ref(follower)]
        del endpoint, follower
        models._unload(models._hosted["a"])
        while models._hosted["a"].unloading is not None:
            await asyncio.sleep(0.01)
        await freed(second)
        await models.close()

    try:
        asyncio.run(main())
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model of its own and a hundred others, of which five fit."""
    root = tmp_path_factory.mktemp("many")
    names = [f"m{number:03}" for number in range(MANY)]
    for number, name in enumerate(names):
        if number < KINDS:
            deployed_tiny(root / name, weight_of(number))
        else:  # to write a bundle is to wait for the disk
            shutil.copytree(root / names[number % KINDS], root / name)
    workspace = write_tiny(
        root / "own",
        "own",
        environments={"staging": {"port": 0, "models": {name: f"../{name}" for name in names} | {"gone": "../gone"}}},
        serving={"max_loaded_models": 5},
    )
    deploy(workspace.environment("staging"), write_tiny_bundle(workspace, 0.5))
    with running(workspace) as made:
        yield made


def ask(server: Server, name: str, x: float = 1.0) -> float:
    body = json.dumps({"x": x}).encode()
    status, answer, _ = server.ask("POST", f"/models/{name}/predict", body, content_type="application/json")
    assert status == 200, answer
    return float(answer["score"])


def test_a_hundred_models_answer_from_one_process_whose_memory_comes_back(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    for number in range(5):  # what the first ones need stays: threads, pools of the allocator
        ask(server, f"m{number:03}")
    before = process.memory_info().rss
    highest = 0
    for _ in range(2):
        for number in range(MANY):
            assert ask(server, f"m{number:03}") == pytest.approx(weight_of(number))
            highest = max(highest, process.memory_info().rss)
    listed = server.ask("GET", "/models")[1]
    assert sum(model["loaded"] for model in listed["models"].values()) == 5
    assert listed["loads"] - listed["unloads"] == 5
    assert listed["loads"] >= 2 * MANY
    until(lambda: process.memory_info().rss < before * 1.1, f"memory returns to about {before >> 20} MB")
    assert highest < before * 1.25
    print(f"rss {before >> 20} MB before, {highest >> 20} MB at most, {process.memory_info().rss >> 20} MB after")


def test_many_callers_of_more_models_than_fit_all_get_the_right_answer(server: Server) -> None:
    def one(caller: int) -> None:
        for turn in range(6):
            number = (caller * 7 + turn * 3) % 12
            assert ask(server, f"m{number:03}", 2.0) == pytest.approx(2 * weight_of(number))
            assert server.predict({"x": 1.0})[1]["score"] == pytest.approx(0.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))


def test_a_hosted_model_follows_its_own_project_and_writes_its_log(server: Server) -> None:
    workspace = Workspace(server.workspace.root.parent / "m007")
    ask(server, "m007")
    newer = write_tiny_bundle(workspace, 0.9)
    table = deploy(workspace.environment("staging"), newer)
    until(lambda: server.ask("GET", "/models/m007")[1]["revision"] == table.revision, "the new revision")
    assert ask(server, "m007") == pytest.approx(0.9)
    for number in range(20, 26):  # so that it is unloaded, and its log written out
        ask(server, f"m{number:03}")
    folder = workspace.environment("staging") / "predictions"
    until(lambda: newer in set(read_log(folder)["version"]), "the log")
    assert newer not in set(read_log(server.folder / "predictions")["version"])


def test_a_hosted_project_deploys_tries_and_rolls_back_on_its_host(server: Server) -> None:
    workspace = Workspace(server.workspace.root.parent / "m003")
    params = load_params(workspace.params_file)
    first = read_ledger(workspace.environment("staging"), "staging")[-1].stable
    newer = write_tiny_bundle(workspace, 0.7)

    def act(action: Callable[..., Outcome], *arguments: Any) -> tuple[str | None, str | None]:
        outcome = action(params, workspace, "staging", *arguments, actor="test", reason="test")
        assert outcome.server is not None
        assert (outcome.server.pid, outcome.server.path) == (server.process.pid, "/models/m003")
        state = describe_server(outcome.server)
        assert state is not None
        return state["stable"], state["canary"]

    assert act(deploy_model, newer, 50) == (first, newer)
    assert {round(ask(server, "m003"), 6) for _ in range(40)} == {round(weight_of(3), 6), 0.7}
    assert act(rollback) == (first, None)
    assert ask(server, "m003") == pytest.approx(weight_of(3))
    another = write_tiny_bundle(workspace, 0.8)
    assert act(deploy_model, another) == (another, None)
    assert ask(server, "m003") == pytest.approx(0.8)
    with pytest.raises(
        ClearwayError, match=r"staging is hosted at http://127\.0\.0\.1:\d+/models/m003 by the server of"
    ):
        stop(workspace, "staging")
    for path, status in (("/", 200), ("/v2/health/ready", 200), ("/v2/health/nothing", 404)):
        assert server.ask("GET", "/models/m003" + path)[0] == status


def test_a_deployment_that_its_host_refuses_is_told_why(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_target, "REFUSAL_SECONDS", 0.5)
    workspace = Workspace(server.workspace.root.parent / "m004")
    table = deploy(workspace.environment("staging"), "f" * 64)
    with pytest.raises(ServerRefusedError, match=r"bundle ffffffffffff is not in .*m004"):
        ensure_serving(load_params(workspace.params_file), workspace, "staging", table.revision)
    assert server.ask("GET", "/v2/health/ready")[0] == 200


def test_a_host_that_stops_withdraws_and_leaves_a_projects_own_server_alone(tmp_path: Path) -> None:
    theirs = {name: deployed_tiny(tmp_path / name, 0.5) for name in ("a", "b")}
    own = write_tiny(
        tmp_path / "own", "own", environments={"staging": {"port": 0, "models": {"a": "../a", "b": "../b"}}}
    )
    with running(theirs["b"]) as alone:
        with running(own) as host:
            found = {name: find_server(workspace, "staging") for name, workspace in theirs.items()}
            assert found["a"] is not None
            assert found["b"] is not None
            assert (found["a"].pid, found["b"].pid) == (host.process.pid, alone.process.pid)
            host.stop()
        assert not (theirs["a"].environment("staging") / "server.json").exists()
        assert (theirs["b"].environment("staging") / "server.json").exists()


def test_the_log_of_a_hosted_project_is_compacted_as_its_own_params_say(tmp_path: Path) -> None:
    theirs = {name: write_tiny(tmp_path / name, serving=serving) for name, serving in (
        ("a", {"log": {"compact_minutes": 0.001}}), ("b", {"log": {"compact_minutes": None}})
    )}  # fmt: skip
    logs = {name: workspace.environment("staging") / "predictions" for name, workspace in theirs.items()}
    for folder in logs.values():
        log = PredictionLog(folder)
        log.append({"id": "1", "revision": 1, "version": "v", "status": 200, "served_at": datetime.now(UTC)})
        log.close()
    folders = [workspace.root for workspace in theirs.values()]
    keeper = Housekeeper(Workspace(tmp_path / "own"), "staging", 0.001, folders)
    try:
        until(lambda: any(logs["a"].glob("parquet/day=*/part-*.parquet")), "compaction")
    finally:
        keeper.stop()
    assert list(read_log(logs["a"])["id"]) == ["1"]
    assert not (logs["b"] / "parquet").exists()


def test_what_models_are_asked_is_counted_also_after_they_were_unloaded(server: Server) -> None:
    def counted() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    name = 'clearway_model_requests_total{model="m050",status="200"}'
    before = counted().get(name, 0.0)
    for number in (50, 51, 52, 53, 54, 55, 50):
        ask(server, f"m{number:03}")
    after = counted()
    assert after[name] == before + 2
    assert after['clearway_model_request_seconds_count{model="m050"}'] == before + 2
    assert after["clearway_models_loaded"] == 5
    assert after["clearway_model_loads_total"] - after["clearway_model_unloads_total"] == 5


def test_unknown_and_absent_models_are_named(server: Server) -> None:
    body = b'{"x": 1}'
    status, answer, _ = server.ask("POST", "/models/nobody/predict", body, content_type="application/json")
    assert status == 404
    assert answer["error"].startswith("no model is called 'nobody' (models: own, gone, m000, m001, ")
    assert answer["error"].endswith(" and 90 more)")
    told = {"content_type": "application/json", "x_request_id": "order-7"}
    status, answer, headers = server.ask("POST", "/models/gone/predict", body, **told)
    assert (status, int(headers["retry-after"]) >= 1, headers["x-request-id"]) == (503, True, "order-7")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as metrics:
        assert b'clearway_model_requests_total{model="gone",status="503"} ' in metrics.read()
    assert answer["error"].startswith("model 'gone' is not loaded: ")
    assert "params.yaml is missing" in answer["error"]
    assert ask(server, "own") == pytest.approx(0.5)
    assert server.ask("GET", "/v2/health/ready")[0] == 200
    assert (
        "gone/params.yaml" in (server.workspace.root / "server.log").read_text()
        or "gone has no params.yaml" in (server.workspace.root / "server.log").read_text()
    )
