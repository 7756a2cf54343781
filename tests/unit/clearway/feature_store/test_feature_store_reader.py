"""Reading features by key: what is null and why, what is cached, how a store that fails is answered for."""

from orchard_store import ASKED, AT, NAMES, QUESTION, Orchard, filled  # first: it makes importing Feast quick

# isort: split
import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pytest
from feast import Entity, Field, RequestSource, ValueType
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, UnixTimestamp

from clearway.errors import ClearwayError, UsageError
from clearway.feature_store import batching
from clearway.feature_store.batching import plain_value, read_row
from clearway.feature_store.definitions import Definitions
from clearway.feature_store.online import FeatureReader, Lookup, Outcome, StoreUnavailable
from clearway.instants import EPOCH
from clearway.params import FeatureLookupParams
from clearway.serving.metrics import describe_readers


@pytest.fixture
def orchard(tmp_path: Path) -> Orchard:
    return filled(tmp_path)


def ask(reader: FeatureReader, *questions: dict[str, Any], at: float = AT) -> list[Lookup]:
    return asyncio.run(reader.read(questions, [at] * len(questions)))


async def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_stored_computed_and_passed_features_come_in_the_order_of_the_model(orchard: Orchard) -> None:
    with orchard.reader() as reader:
        (found,) = ask(reader, QUESTION)
        assert list(found.features.items()) == [
            ("acidity", 6.5),
            ("wetness", 0.25),
            ("rain", 3),
            ("age_hours", 2.0),
            ("ph_change", -0.5),
            ("variety", "gala"),
        ]
        assert isinstance(found.features["age_hours"], float), "as its definition says, whatever the function made"
        assert found.outcomes == {"soil": Outcome.PRESENT, "weather": Outcome.PRESENT}
        assert reader.looked_up == {"acidity", "wetness", "rain", "age_hours", "ph_change"}
        assert set(reader.inputs) == {"orchard", "station", "variety", "planted"}, "prediction_time is not sent"
        assert [reader.source(name) for name in ("rain", "age_hours", "variety")] == ["weather", "growth", None]


def test_unknown_key_null_key_and_null_field_are_null_and_say_which(orchard: Orchard) -> None:
    orchard.write("soil", "south", {"acidity": None, "wetness": math.nan, "unused": 1.0}, age=60)
    with orchard.reader(names=("acidity", "wetness", "rain")) as reader:
        found = ask(
            reader, QUESTION | {"station": "nowhere"}, QUESTION | {"orchard": None}, QUESTION | {"orchard": "south"}
        )
        assert [lookup.features for lookup in found] == [
            {"acidity": 6.5, "wetness": 0.25, "rain": None},
            {"acidity": None, "wetness": None, "rain": 3},
            {"acidity": None, "wetness": None, "rain": 3},
        ]
        assert found[0].outcomes == {"soil": "present", "weather": "missing"}
        assert found[1].outcomes == {"soil": "missing", "weather": "present"}
        assert found[2].outcomes == {"soil": "present", "weather": "present"}, "it is known that there is no value"
        assert reader.counts["soil"].outcomes == {"present": 2, "missing": 1}
        assert (reader.counts["soil"].fields, reader.counts["soil"].nulls) == (6, 4)
        assert "" not in [key for _, keys in orchard.batches for key in keys], "a null key is not asked for"


@pytest.mark.parametrize(
    ("age", "outcome"),
    [
        (6 * 3600, "present"),
        (6 * 3600 + 1e-6, "stale"),
        (0, "present"),
        (-5, "present"),
        (-5 - 1e-6, "future"),
    ],
)
def test_ttl_and_clock_tolerance_hold_to_the_microsecond(orchard: Orchard, age: float, outcome: str) -> None:
    orchard.write("soil", "edge", {"acidity": 6.0, "wetness": 1.0, "unused": 1.0}, age=age)
    with orchard.reader(names=("acidity",)) as reader:
        (found,) = ask(reader, QUESTION | {"orchard": "edge"})
        assert found.outcomes == {"soil": outcome}
        assert (found.features["acidity"] is None) == (outcome != "present")


def test_view_without_ttl_holds_for_ever(orchard: Orchard) -> None:
    orchard.write("weather", "old", {"rain": 9}, age=3e8)
    with orchard.reader(names=("rain",)) as reader:
        assert ask(reader, QUESTION | {"station": "old"})[0].features == {"rain": 9}


def test_questions_asked_together_are_one_read_of_distinct_keys(orchard: Orchard) -> None:
    with orchard.reader() as reader:

        async def ask_together() -> list[list[Lookup]]:
            questions = [QUESTION | {"orchard": name} for name in ("north", "south", "north", "west")]
            return await asyncio.gather(*(reader.read([question], [AT]) for question in questions))

        found = asyncio.run(ask_together())
        assert [lookup[0].features["acidity"] for lookup in found] == [6.5, None, 6.5, None]
        assert orchard.batches == [("soil", ["north", "south", "west"]), ("weather", ["hill"])]


def test_what_is_asked_while_the_store_is_busy_waits_for_one_read(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",), timeout_ms=9_000) as reader:

        async def ask_on() -> None:
            orchard.open.clear()
            first = asyncio.create_task(reader.read([QUESTION], [AT]))
            await until(lambda: orchard.batches)
            more = [asyncio.create_task(reader.read([QUESTION | {"orchard": str(n)}], [AT])) for n in range(20)]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in (first, *more)), "and the event loop is free meanwhile"
            orchard.open.set()
            await asyncio.gather(first, *more)

        asyncio.run(ask_on())
        assert orchard.batches == [("soil", ["north"]), ("soil", [str(n) for n in range(20)])]


def test_cache_is_used_within_its_bound_and_applies_the_ttl_again(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",), max_staleness_ms=60_000) as reader:
        for _ in range(3):
            assert ask(reader, QUESTION)[0].features == {"acidity": 6.5}
            assert ask(reader, QUESTION | {"orchard": "nowhere"})[0].outcomes == {"soil": "missing"}
        assert orchard.batches == [("soil", ["north"]), ("soil", ["nowhere"])]
        assert reader.cache_hits == 4
        orchard.write("soil", "north", {"acidity": 5.0, "wetness": 0.0, "unused": 0.0}, age=0)
        assert ask(reader, QUESTION)[0].features == {"acidity": 6.5}, "an older value, within the bound"
        (later,) = ask(reader, QUESTION, at=AT + 6 * 3600)
        assert (later.features, later.outcomes) == ({"acidity": None}, {"soil": "stale"})


def test_value_beyond_the_bound_is_read_again(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",), max_staleness_ms=30) as reader:
        ask(reader, QUESTION)
        time.sleep(0.05)
        orchard.write("soil", "north", {"acidity": 5.0, "wetness": 0.0, "unused": 0.0}, age=0)
        assert ask(reader, QUESTION)[0].features == {"acidity": 5.0}


def test_cache_drops_the_least_recently_used(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",), max_staleness_ms=60_000, cache_entries=2) as reader:
        for name in ("a", "b", "a", "c", "a", "b"):
            ask(reader, QUESTION | {"orchard": name})
        assert [keys[0] for _, keys in orchard.batches] == ["a", "b", "c", "b"]
        assert reader.cache_entries == 2


def test_without_a_bound_every_question_asks_the_store(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",)) as reader:
        ask(reader, QUESTION)
        ask(reader, QUESTION)
        assert (len(orchard.batches), reader.cache_entries, reader.cache_hits) == (2, 0, 0)


def test_failing_store_is_an_error_that_names_view_and_cause(orchard: Orchard) -> None:
    with orchard.reader() as reader:
        orchard.failure = OSError("the disk\nis full")
        with pytest.raises(StoreUnavailable, match=r"view soil: OSError: the disk is full$"):
            ask(reader, QUESTION)
        status = describe_readers([reader], None)
        assert (status["status"], status["last_error"], status["failures"]) == (
            "down",
            "view soil: OSError: the disk is full",
            1,
        )


def test_store_that_is_down_is_not_waited_for_and_recovers_by_itself(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",), timeout_ms=50) as reader:

        async def live_through_it() -> None:
            orchard.open.clear()
            with pytest.raises(StoreUnavailable, match="view soil: no answer within timeout_ms = 50"):
                await reader.read([QUESTION], [AT])
            for _ in range(100):  # nothing waits: with the timeout this would take 5 s
                with pytest.raises(StoreUnavailable):
                    await asyncio.wait_for(reader.read([QUESTION], [AT]), 0.04)
            assert len(orchard.batches) == 1, "and the store is left alone"
            orchard.open.set()
            await until(lambda: reader.store.health.up)
            assert (await reader.read([QUESTION], [AT]))[0].features == {"acidity": 6.5}

        asyncio.run(live_through_it())
        assert describe_readers([reader], None)["last_error"] == "view soil: no answer within timeout_ms = 50"


def test_those_who_wait_behind_a_read_that_takes_too_long_are_told_too(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",), timeout_ms=100) as reader:

        async def wait() -> list[Any]:
            orchard.open.clear()
            first = asyncio.create_task(reader.read([QUESTION], [AT]))
            await until(lambda: orchard.batches)
            return await asyncio.gather(first, reader.read([QUESTION], [AT]), return_exceptions=True)

        assert [type(each) for each in asyncio.run(wait())] == [StoreUnavailable, StoreUnavailable]


def test_store_slower_than_the_timeout_stays_down(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",), timeout_ms=20) as reader:
        inner = orchard._read

        def slow(*given: Any) -> Any:
            time.sleep(0.05)
            return inner(*given)

        orchard._read = slow

        async def watch() -> None:
            with pytest.raises(StoreUnavailable):
                await reader.read([QUESTION], [AT])
            await until(lambda: "longer than timeout_ms" in (reader.store.health.error or ""))
            assert not reader.store.health.up
            orchard._read = inner
            await until(lambda: reader.store.health.up)

        asyncio.run(watch())


def test_caller_who_leaves_takes_no_answer_from_the_others(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",), timeout_ms=5_000) as reader:

        async def leave() -> Lookup:
            orchard.open.clear()
            leaving, staying = (asyncio.create_task(reader.read([QUESTION], [AT])) for _ in range(2))
            await until(lambda: orchard.batches)
            leaving.cancel()
            await asyncio.sleep(0)
            orchard.open.set()
            return (await staying)[0]

        assert asyncio.run(leave()).features == {"acidity": 6.5}


def test_last_known_values_stand_in_within_their_bound_and_ttl(orchard: Orchard) -> None:
    settings = {"on_failure": "last_known", "last_known_seconds": 300}
    with orchard.reader(names=("acidity", "rain"), **settings) as reader:
        ask(reader, QUESTION)
        ask(reader, QUESTION | {"station": "nowhere"})
        orchard.failure = OSError("gone")
        (found,) = ask(reader, QUESTION)
        assert found.features == {"acidity": 6.5, "rain": 3}
        assert found.outcomes == {"soil": "last_known", "weather": "last_known"}
        (found,) = ask(reader, QUESTION | {"station": "nowhere"})
        assert found.outcomes == {"soil": "last_known", "weather": "missing"}
        (found,) = ask(reader, QUESTION, at=AT + 6 * 3600)
        assert found.features == {"acidity": None, "rain": 3}
        assert found.outcomes == {"soil": "stale", "weather": "last_known"}
        with pytest.raises(
            StoreUnavailable, match="OSError: gone; view soil has no value of this key read in the last"
        ):
            ask(reader, QUESTION | {"orchard": "never asked"})


def test_value_known_too_long_ago_does_not_stand_in(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",), on_failure="last_known", last_known_seconds=0.01) as reader:
        ask(reader, QUESTION)
        orchard.failure = OSError("gone")
        time.sleep(0.02)
        with pytest.raises(StoreUnavailable, match=r"in the last 0\.01 s"):
            ask(reader, QUESTION)


def test_many_keys_are_read_in_parts_and_keep_nobody_waiting_for_all_of_them(
    orchard: Orchard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "KEYS_AT_ONCE", 10)
    with orchard.reader(names=("acidity",)) as reader:
        done: list[str] = []

        async def note(name: str, questions: list[dict[str, Any]]) -> list[Lookup]:
            found = await reader.read(questions, [AT] * len(questions))
            done.append(name)
            return found

        async def ask_all() -> list[list[Lookup]]:
            many = [QUESTION | {"orchard": f"none{number}"} for number in range(34)] + [QUESTION]
            other = [QUESTION | {"orchard": f"other{number}"} for number in range(3)]
            return await asyncio.gather(note("many", many), note("few", other))

        many, few = asyncio.run(ask_all())
        assert [lookup.outcomes["soil"] for lookup in many] == ["missing"] * 34 + ["present"]
        assert [lookup.outcomes["soil"] for lookup in few] == ["missing"] * 3
        assert [len(keys) for _, keys in orchard.batches] == [10, 10, 10, 8]


def test_those_who_wait_for_later_parts_are_told_of_a_failure_too(
    orchard: Orchard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "KEYS_AT_ONCE", 2)
    with orchard.reader(names=("acidity",)) as reader:
        orchard.failure = OSError("gone")
        with pytest.raises(StoreUnavailable, match="OSError: gone"):
            ask(reader, *(QUESTION | {"orchard": str(number)} for number in range(9)))
        assert len(orchard.batches) == 1


def test_store_that_nobody_asks_is_known_to_be_down(orchard: Orchard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "IDLE_SECONDS", 0.02)
    with orchard.reader() as reader:
        assert reader.store.health.up
        orchard.failure = OSError("gone")
        asyncio.run(until(lambda: not reader.store.health.up))
        assert reader.store.health.error == "view soil: OSError: gone"


def test_store_that_is_silent_from_the_start_is_down_after_the_timeout(orchard: Orchard) -> None:
    orchard.open.clear()
    with orchard.reader(timeout_ms=30) as reader:
        assert not reader.store.health.up
        assert reader.store.health.error == "view soil: no answer within timeout_ms = 30"


def test_value_is_as_old_as_the_question_to_the_store_not_as_its_answer(orchard: Orchard) -> None:
    with orchard.reader(names=("acidity",), max_staleness_ms=200, timeout_ms=5_000) as reader:
        inner = orchard._read

        def slow(*given: Any) -> Any:
            found = inner(*given)
            time.sleep(0.3)
            return found

        orchard._read = slow
        ask(reader, QUESTION)
        ask(reader, QUESTION)
        assert len(orchard.batches) == 2


def test_store_that_fails_from_the_start_is_known_before_anyone_asks(orchard: Orchard) -> None:
    orchard.failure = OSError("gone")
    with orchard.reader() as reader:
        asyncio.run(until(lambda: not reader.store.health.up))
        orchard.failure = None
        asyncio.run(until(lambda: reader.store.health.up))
        assert ask(reader, QUESTION)[0].features["acidity"] == 6.5


def test_failing_function_names_view_and_cause(orchard: Orchard) -> None:
    with orchard.reader() as reader:
        with pytest.raises(
            ClearwayError, match="on-demand view growth failed: ZeroDivisionError: no such apple"
        ) as caught:
            ask(reader, QUESTION, QUESTION | {"variety": "bitter"})
        assert not isinstance(caught.value, StoreUnavailable)


def test_function_sees_missing_values_as_null_and_its_nan_is_null(orchard: Orchard) -> None:
    with orchard.reader(names=("ph_change", "age_hours")) as reader:
        (found,) = ask(reader, QUESTION | {"orchard": "nowhere", "planted": None})
        assert found.features == {"ph_change": None, "age_hours": None}
        assert found.outcomes == {"soil": "missing"}, "read for the function alone"


def test_function_that_answers_too_few_values_is_an_error(orchard: Orchard) -> None:
    view = orchard.definitions.on_demand[0]
    view.feature_transformation.udf = lambda given: {"age_hours": [1.0], "ph_change": [1.0, 2.0]}
    with orchard.reader() as reader, pytest.raises(ClearwayError, match="growth: age_hours has 1 values for 2 rows"):
        ask(reader, QUESTION, QUESTION)


def test_definitions_that_cannot_be_read_by_key_are_refused(orchard: Orchard) -> None:
    given = orchard.definitions
    (growth,) = given.on_demand
    numbered = Entity(name="orchard", join_keys=["orchard"], value_type=ValueType.INT64)
    twice = RequestSource(name="asked", schema=[Field(name="rain", dtype=Float64)])
    timed = RequestSource(name="asked", schema=[Field(name="when", dtype=UnixTimestamp)])
    single = OnDemandFeatureView(
        name="growth",
        sources=[given.views[0]],
        schema=growth.features,
        feature_transformation=growth.feature_transformation,
        mode="python",
        singleton=True,
    )
    cases = [
        (given, ("nonsense",), "feature 'nonsense' is defined in no view"),
        (
            Definitions((numbered, given.entities[1]), given.views, {}, given.request),
            NAMES[:3],
            "join keys are strings",
        ),
        (Definitions(given.entities, given.views, {}, twice), ("rain",), "'rain' is defined twice"),
        (
            Definitions(given.entities, given.views, {}, timed),
            ("rain",),
            "request field 'when' is of type UnixTimestamp",
        ),
        (Definitions(given.entities, given.views, {}, given.request, (single,)), NAMES, "growth.*function of lists"),
    ]
    for definitions, names, said in cases:
        with pytest.raises(UsageError, match=said):
            FeatureReader(orchard.store, definitions, names, FeatureLookupParams())


def test_row_of_redis_without_any_value_is_no_row() -> None:
    empty = {"acidity": Value(), "wetness": Value()}
    assert read_row(("acidity", "wetness"), EPOCH, empty, 1.0).values is None
    assert read_row(("acidity", "wetness"), ASKED, empty, 1.0).values == (None, None)
    assert read_row(("acidity",), None, None, 1.0).values is None
    naive = read_row(("acidity",), ASKED.replace(tzinfo=None), {"acidity": Value(double_val=1.5)}, 1.0)
    assert (naive.values, naive.event) == ((1.5,), round(AT * 1e6))


def test_values_are_plain() -> None:
    given = [Value(double_val=math.nan), Value(null_val=0), Value(), None, Value(string_val=""), Value(bool_val=False)]
    assert [plain_value(value) for value in given] == [None, None, None, None, "", False]
