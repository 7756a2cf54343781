"""The hash of each feature's definition: what changes it, what does not, and how a difference is told."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from feast import types

from clearway.errors import ClearwayError, UsageError
from clearway.feature_store.code_hash import code_sha256
from clearway.feature_store.definitions import (
    Definitions,
    FeatureDefinition,
    definitions_hash,
    describe_features,
    differences,
    service_name,
)

FILES = {
    "__init__.py": "",
    "units.py": '''
"""Units."""
FACTOR = 1.8


def fahrenheit(celsius):
    """To °F."""
    return FACTOR * celsius + offset()


def offset():
    return 32  # at 0 °C


def unused(celsius):
    return celsius + 273
''',
    "rows.py": '''
import pandas as pd

from orchard import units
from orchard.units import FACTOR as UNUSED_HERE

SOILS = frozenset({"clay", "sand", "loam"})
NAMES = {"ph": "acidity"}
DEEP = pd.Timedelta(hours=3)


class Meter:
    limit = 5

    def read(self, value):
        return min(value, self.limit)


def weather(tables):
    rows = tables["weather"]
    return rows.assign(temp=units.fahrenheit(rows["celsius"]))


def soil(tables):
    """Rows of the soil."""
    from orchard.late import moist

    rows: pd.DataFrame = tables["soil"].rename(columns=NAMES)
    meter = Meter()
    return rows[rows["soil"].isin(SOILS)].assign(wet=moist(rows), depth=DEEP, read=rows["ph"].map(meter.read))


def age(given):
    return {"age": [_years(days) for days in given["days"]]}


def _years(days: float) -> float:
    return days / 365


def since(given):
    return {"since": [now - at for now, at in zip(given["prediction_time"], given["rained_at"])]}
''',
    "late.py": "def moist(rows):\n    return rows['wet'] * 2\n",
    "definitions.py": """
from datetime import timedelta

from clearway.feature_store.definitions import Definitions, on_demand_view
from feast import Entity, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.types import Float64, Int64, String

from orchard import rows

TREE = Entity(name="tree", join_keys=["tree"], value_type=ValueType.STRING)
FIELD = Entity(name="field", join_keys=["plot"], value_type=ValueType.STRING)


def view(name, entity, ttl, *names):
    source = FileSource(path=f"data/feature_tables/{name}.parquet", timestamp_field="known_at")
    schema = [Field(name=entity.join_key, dtype=String), *(Field(name=each, dtype=Float64) for each in names)]
    return FeatureView(name=name, entities=[entity], ttl=ttl, schema=schema, source=source, owner="gardener")


WEATHER = view("weather", FIELD, timedelta(hours=6), "temp", "rained_at")
SOIL = view("soil", TREE, timedelta(0), "acidity", "wet")
ASKED = RequestSource(
    name="asked",
    schema=[
        Field(name="days", dtype=Float64),
        Field(name="prediction_time", dtype=Float64),
        Field(name="slope", dtype=Float64, description="degrees"),
    ],
)
AGE = on_demand_view("age", rows.age, [Field(name="age", dtype=Float64, description="years")], [ASKED])
SINCE = on_demand_view("since", rows.since, [Field(name="since", dtype=Float64)], [ASKED, WEATHER[["rained_at"]]])
DEFINITIONS = Definitions(
    (TREE, FIELD), (WEATHER, SOIL), {"weather": rows.weather, "soil": rows.soil}, ASKED, (AGE, SINCE)
)
""",
}
NUMERIC = ("temp", "acidity", "wet", "age", "since", "slope")
CATEGORICAL = ("plot",)
WEATHER_FEATURES, SOIL_FEATURES = {"temp", "since"}, {"acidity", "wet"}

Orchard = Callable[..., Definitions]


@pytest.fixture
def orchard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Orchard:
    """The package, written to a new folder each time, with ``old`` in ``file`` replaced by ``new``."""

    def made(file: str = "", old: str = "", new: str = "") -> Definitions:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        (folder / "orchard").mkdir(parents=True)
        for name, text in FILES.items():
            assert name != file or old in text
            (folder / "orchard" / name).write_text(text.replace(old, new) if name == file else text)
        for name in [name for name in sys.modules if name.partition(".")[0] == "orchard"]:
            del sys.modules[name]
        with monkeypatch.context() as path:
            path.syspath_prepend(str(folder))
            definitions: Definitions = importlib.import_module("orchard.definitions").DEFINITIONS
            importlib.import_module("orchard.late")
        return definitions

    return made


def described(definitions: Definitions) -> dict[str, FeatureDefinition]:
    return describe_features(definitions, NUMERIC, CATEGORICAL)


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        # nothing that is computed
        ("units.py", "# at 0 °C", "# freezing", set()),
        ("units.py", '"""To °F."""', '"""Fahrenheit."""', set()),
        ("units.py", "FACTOR * celsius + offset()", "(FACTOR * celsius\n            + offset())", set()),
        ("units.py", "return celsius + 273", "return celsius + 274", set()),
        ("rows.py", "rows: pd.DataFrame =", "rows =", set()),
        ("rows.py", "def _years(days: float) -> float:", "def _years(days):", set()),
        ("rows.py", '{"clay", "sand", "loam"}', '{"loam", "clay", "sand"}', set()),
        ("definitions.py", 'owner="gardener"', 'owner="farmer"', set()),
        ("definitions.py", 'description="degrees"', 'description="°"', set()),
        ("definitions.py", 'description="years"', 'description="y"', set()),
        ("definitions.py", "(TREE, FIELD), (WEATHER, SOIL)", "(FIELD, TREE), (SOIL, WEATHER)", set()),
        # helpers and constants, however far away
        ("units.py", "return 32", "return 33", WEATHER_FEATURES),
        ("units.py", "FACTOR = 1.8", "FACTOR = 9 / 5 + 1e-9", WEATHER_FEATURES),
        ("late.py", "* 2", "* 3", SOIL_FEATURES),
        ("rows.py", '"loam"', '"chalk"', SOIL_FEATURES),
        ("rows.py", '{"ph": "acidity"}', '{"pH": "acidity"}', SOIL_FEATURES),
        ("rows.py", "hours=3", "hours=4", SOIL_FEATURES),
        ("rows.py", "limit = 5", "limit = 6", SOIL_FEATURES),
        ("rows.py", "return min(value, self.limit)", "return max(value, self.limit)", SOIL_FEATURES),
        ("rows.py", "days / 365", "days / 360", {"age"}),
        ("rows.py", "now - at for", "at - now for", {"since"}),
        # the declaration; what is computed of a stored feature changes with it
        ("definitions.py", "timedelta(hours=6)", "timedelta(hours=5)", WEATHER_FEATURES),
        ("definitions.py", 'join_keys=["plot"]', 'join_keys=["plot_id"]', {*WEATHER_FEATURES, "plot"}),
        ("definitions.py", 'AGE = on_demand_view("age", rows.age, [Field(name="age", dtype=Float64',
         'AGE = on_demand_view("age", rows.age, [Field(name="age", dtype=Int64', {"age"}),
        ("definitions.py", 'Field(name="slope", dtype=Float64', 'Field(name="slope", dtype=Int64',
         {"age", "since", "slope"}),
    ],
)  # fmt: skip
def test_a_change_names_exactly_the_features_that_it_feeds(
    orchard: Orchard, file: str, old: str, new: str, changed: set[str]
) -> None:
    before = described(orchard())
    definitions = orchard(file, old, new)
    after = describe_features(definitions, NUMERIC, () if "plot_id" in new else CATEGORICAL)
    assert {name for name in before if name not in after or before[name].sha256 != after[name].sha256} == changed
    assert (definitions_hash(before) == definitions_hash(after)) == (not changed)
    assert {phrase.partition(":")[0] for phrase in differences(before, after)} == changed


def test_hashes_are_the_same_in_another_process_and_folder(orchard: Orchard, tmp_path: Path) -> None:
    here = {name: feature.sha256 for name, feature in described(orchard()).items()}
    code = (
        "import clearway.feature_store, json\nfrom orchard.definitions import DEFINITIONS\n"
        "from clearway.feature_store.definitions import describe_features\n"
        f"found = describe_features(DEFINITIONS, {NUMERIC!r}, {CATEGORICAL!r})\n"
        "print(json.dumps({name: feature.sha256 for name, feature in found.items()}))"
    )
    folder = tmp_path / "elsewhere" / "deep"
    (folder / "orchard").mkdir(parents=True)
    for name, text in FILES.items():
        (folder / "orchard" / name).write_text(text)
    paths = os.pathsep.join([str(folder), str(Path(__file__).parents[4] / "src")])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "7"},
        capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(done.stdout) == here


def test_what_each_feature_is(orchard: Orchard) -> None:
    found = described(orchard())
    assert list(found) == [*NUMERIC, *CATEGORICAL]
    temp, since, slope, plot = (found[name] for name in ("temp", "since", "slope", "plot"))
    assert (temp.kind, temp.view, temp.entity, temp.ttl_seconds) == ("stored", "weather", ("field",), 21600.0)
    assert (temp.dtype, temp.owner, temp.sources) == ("Float64", "gardener", ("data/feature_tables/weather.parquet",))
    assert found["wet"].ttl_seconds is None
    assert (since.kind, since.view, since.entity) == ("on_demand", "since", ("field",))
    assert since.sources[-1] == "weather:rained_at"
    assert found["age"].description == "years"
    assert (slope.kind, slope.view, slope.dtype, slope.description) == ("request", None, "Float64", "degrees")
    assert (plot.kind, plot.entity, plot.dtype) == ("request", ("field",), "String")
    again = {name: FeatureDefinition.model_validate_json(each.model_dump_json()) for name, each in found.items()}
    assert again == found
    assert service_name("apples", definitions_hash(found)) == f"apples_{definitions_hash(found)[:12]}"


def test_differences_are_told_in_plain_phrases(orchard: Orchard) -> None:
    bundle = described(orchard())
    own = dict(described(orchard("definitions.py", "timedelta(hours=6)", "timedelta(hours=1)")))
    del own["wet"]
    assert differences(bundle, bundle) == ()
    assert differences(bundle, own) == (
        "temp: ttl 3600 s, the bundle has 21600 s",
        "wet: is not defined here",
        "since: the code that computes it differs from the bundle's, or its source's columns",
    )
    older = {name: feature for name, feature in bundle.items() if name != "wet"}
    assert not differences(older, bundle), "a bundle does without a feature that came later"


@pytest.mark.parametrize(
    ("file", "old", "new", "numeric", "said"),
    [
        ("rows.py", "", "", (*NUMERIC, "height"), r"feature height .* in none of its definitions\(\).*weather, soil"),
        ("definitions.py", '"acidity", "wet"', '"acidity", "wet", "temp"', NUMERIC,
         "feature temp .* defined 2 times, in weather and soil"),
        ("definitions.py", ', "soil": rows.soil', "", NUMERIC, "feature view soil has no event builder"),
        ("definitions.py", '"soil": rows.soil', '"soil": rows.soil, "rain": rows.soil', NUMERIC, "names 'rain'"),
        ("definitions.py", "(TREE, FIELD), (W", "(TREE,), (W", NUMERIC, "view weather: entity field is not among"),
        ("definitions.py", "(WEATHER, SOIL), {", "(SOIL,), {", NUMERIC, "names 'weather'"),
        ("definitions.py", "rows.soil}, ASKED", "rows.soil}, None", NUMERIC, "age: days, .* no field of definitions"),
        ("definitions.py", "data/feature_tables/{name}.parquet", "data/{name}.parquet", NUMERIC,
         "view weather: its source reads data/weather.parquet, .* to data/feature_tables/weather.parquet: make"),
        ("definitions.py", "data/feature_tables/{name}.parquet", "/data/feature_tables/{name}.parquet", NUMERIC,
         "view weather: its source reads /data/"),
        ("definitions.py", 'timestamp_field="known_at")', 'timestamp_field="known_at", field_mapping={"t": "temp"})',
         NUMERIC, "view weather: its source has field_mapping {'t': 'temp'}: take it out"),
        ("definitions.py", "timedelta(hours=6)", "timedelta(hours=-6)", NUMERIC, "view weather: ttl is -21600 s"),
        ("rows.py", "", "", (*NUMERIC, "tree"), "feature tree .* numeric, but its dtype in entity tree is String"),
    ],
)  # fmt: skip
def test_a_definition_that_does_not_fit_is_named(
    orchard: Orchard, file: str, old: str, new: str, numeric: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        describe_features(orchard(file, old, new), numeric, CATEGORICAL)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("dtype", "where", "name"),
    [("Int64", "view soil", "acidity"), ("Bool", "view soil", "wet"), ("Float64", "the request", "slope")],
)
def test_a_category_is_text_where_it_is_stored_and_where_it_is_sent(
    orchard: Orchard, dtype: str, where: str, name: str
) -> None:
    changed = orchard()
    for view in changed.views:
        for field in view.features:
            field.dtype = getattr(types, dtype)
    numeric = tuple(each for each in NUMERIC if each != name)
    with pytest.raises(UsageError, match=f"{name} .* categorical, but its dtype in {where} is {dtype}: make it String"):
        describe_features(changed, numeric, (*CATEGORICAL, name))


# --------------------------------------------------------------------------------- functions that are made at run time


def scaled(tables: dict[str, int], by: int) -> int:
    return tables["a"] * by


def maker(by: int) -> Callable[[dict[str, int]], int]:
    def build(tables: dict[str, int]) -> int:
        return scaled(tables, by)

    return build


def test_what_a_function_was_made_with_counts() -> None:
    assert code_sha256(maker(2)) == code_sha256(maker(2))
    assert code_sha256(maker(2)) != code_sha256(maker(3))
    assert code_sha256(partial(scaled, by=2)) == code_sha256(partial(scaled, by=2))
    assert code_sha256(partial(scaled, by=2)) != code_sha256(partial(scaled, by=3))
    twice = code_sha256(lambda tables: scaled(tables, 2))
    assert twice != code_sha256(lambda tables: scaled(tables, 3))


def test_a_function_without_source_is_refused() -> None:
    space: dict[str, Callable[[int], int]] = {}
    exec("def made(tables): return tables", {"__name__": __name__}, space)
    with pytest.raises(ClearwayError, match=r"the source of made\(\) cannot be read"):
        code_sha256(space["made"])
    with pytest.raises(ClearwayError, match="is no function"):
        code_sha256(len)
