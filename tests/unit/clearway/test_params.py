import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clearway.errors import UsageError
from clearway.params import load_params

FLAT = """
project: {name: pets}
sources: {pets: {kind: csv, path: pets.csv}}
data: {table: pets, label: cat}
environments: {production: {port: 0}}
"""


SPACE = "train: {tune: {space: {depth: %s}}}"


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def test_a_flat_project_needs_four_sections(tmp_path: Path) -> None:
    params = load_params(write(tmp_path, FLAT))
    assert params.model_name == "pets"
    assert params.time() is None
    assert [step.weight for step in params.canary.steps] == [10, 25, 50, 100]


@pytest.mark.parametrize("text", ["'2013-07-01T00:00:00Z'", "'2013-07-01T02:00:00+02:00'", "'2013-07-01'"])
def test_every_way_to_write_a_time_means_utc(tmp_path: Path, text: str) -> None:
    assert load_params(write(tmp_path, FLAT + f"as_of: {text}\n")).time() == datetime(2013, 7, 1, tzinfo=UTC)


def test_unresolved_auto_is_refused_by_the_stages(tmp_path: Path) -> None:
    params = load_params(write(tmp_path, FLAT + "as_of: auto\n"))
    with pytest.raises(UsageError, match="as_of is auto"):
        params.time()


@pytest.mark.parametrize(
    ("addition", "named"),
    [
        ("gates: {flors: {roc_auc: 0.7}}", "unknown key gates.flors"),
        ("seed: many", "seed = 'many'"),
        ("registry: {model: fruit/apples}", "registry.model = 'fruit/apples'"),
        ("registry: {model: '..'}", r"registry.model = '\.\.'"),
        ("split: {holdout_days: 0}", "split.holdout_days = 0"),
        ("as_of: yesterday", "as_of.*= 'yesterday'"),
        ("canary: {steps: [{weight: 50, margin: 0.1}, {weight: 10, margin: 0.1}]}", "steps must rise"),
        ("as_of: 2013-07-01", "as_of = 2013-07-01 must be quoted"),
        ("canary: {steps: []}", "steps must rise"),
        (
            "canary: {control: 30, steps: [{weight: 80, margin: 0.1}, {weight: 90, margin: 0.1}]}",
            "leaves the canary 70%",
        ),
        ("deployment: {strategy: ab}", "nothing measures it"),
        ("canary: {business: [{name: sold, function: 'a:b', low: 1, high: 1, margin: 1}]}", "low must be below high"),
        ("train: {threshold: 1.5}", "train.threshold = 1.5"),
        ("train: {tune: {space: {}}}", "train.tune.space: .* at least 1 item"),
        (SPACE % "{kind: int, low: 5, high: 2}", r"train.tune.space.depth.*low = 5 is above high = 2"),
        (SPACE % "{kind: float, low: 0, high: 2, log: true}", r"train.tune.space.depth.*log = true needs low above 0"),
        (SPACE % "{kind: int, low: 1, high: 9, log: true, step: 2}", r"log = true and step = 2 exclude each other"),
        (SPACE % "{kind: categorical, choices: [a, b, a]}", r"train.tune.space.depth.*choices has 'a' twice"),
        (SPACE % "{kind: categorical, choices: []}", r"train.tune.space.depth.*choices"),
        (SPACE % "{kind: number, low: 1, high: 2}", r"train.tune.space.depth.*'number'"),
        ("as_of: garbage", ": as_of = 'garbage'"),
        ('decision: {override_veto: "         "}', "decision.override_veto = "),
        ("decision: {override_veto: true}", "decision.override_veto = True"),
        ("decision: {drift: {windows: {required: 3, of: 2}}}", "required = 3 of 2 windows can never be"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path, addition: str, named: str) -> None:
    path = write(tmp_path, FLAT + addition + "\n")
    with pytest.raises(UsageError, match=named) as raised:
        load_params(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="key environments is missing"):
        load_params(write(tmp_path, FLAT.replace("environments: {production: {port: 0}}", "")))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (FLAT.replace("data: {table: pets, label: cat}", ""), "data is missing"),
        (FLAT.replace("table: pets", "table: dogs"), "dogs"),
        (FLAT.replace("{name: pets}", "{name: pets, package: pets}"), "data describes a flat table"),
        (FLAT.replace("{port: 0}", "{port: 81}, staging: {port: 81}"), "environments.staging.port 81 is that of"),
        (FLAT.replace("{port: 0}", "{port: 0, requires: staging}"), "requires 'staging' is no environment"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load_params(write(tmp_path, text))


def test_a_setting_that_stands_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, FLAT + "gates: {latency_ms: 100}\nseed: 1\ngates: {latency_ms: 5000}\n")
    with pytest.raises(UsageError, match="line 8: key gates stands twice, first in line 6: keep one") as raised:
        load_params(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("text", ["project: [", "- a list", ""])
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"params\.yaml"):
        load_params(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is missing"):
        load_params(tmp_path / "params.yaml")


def test_an_unknown_environment_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'live'.*production"):
        load_params(write(tmp_path, FLAT)).environment("live")


@pytest.mark.parametrize(
    ("environments", "named"),
    [
        ("{}", "environments: .*at least 1"),
        ("{live: {port: 0, requires: live}}", "circle: live → live"),
        ("{a: {port: 0, requires: b}, b: {port: 0, requires: a}}", "circle: a → b → a"),
    ],
)
def test_environments_that_nothing_could_reach_are_refused(tmp_path: Path, environments: str, named: str) -> None:
    text = FLAT.replace("environments: {production: {port: 0}}", f"environments: {environments}")
    with pytest.raises(UsageError, match=named):
        load_params(write(tmp_path, text))


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(UsageError, match=r"params\.yaml cannot be read"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Not a directory"):
        load_params(tmp_path / "file" / "params.yaml")


@pytest.mark.parametrize(
    ("kind", "estimator", "floors", "metric", "margin"),
    [
        ("binary", "HistGradientBoostingClassifier", {"roc_auc": 0.65}, "roc_auc", 0.15),
        ("multiclass", "HistGradientBoostingClassifier", {"roc_auc_ovr": 0.65}, "accuracy", 0.15),
        ("regression", "HistGradientBoostingRegressor", {"r2": 0.1}, "r2", 0.5),
    ],
)
def test_each_kind_of_target_has_defaults_of_its_own(
    tmp_path: Path, kind: str, estimator: str, floors: dict[str, float], metric: str, margin: float
) -> None:
    params = load_params(write(tmp_path, FLAT + f"target: {{kind: {kind}}}\n"))
    assert params.train.estimator.endswith(estimator)
    assert params.gates.floors == floors
    assert params.gates.champion.metric == params.decision.performance.metric == metric
    assert params.canary.score_margin == margin
    assert type(params).model_validate(params.model_dump(by_alias=True)) == params


def test_what_is_written_stands_beside_the_defaults_of_the_kind(tmp_path: Path) -> None:
    said = "target: {kind: regression}\ngates: {champion: {margin: 2.0}, floors: {rmse: 9}}\n"
    said += "train: {resources: {threads: 2}}\n"
    params = load_params(write(tmp_path, FLAT + said))
    assert (params.gates.champion.metric, params.gates.champion.margin) == ("r2", 2.0)
    assert params.gates.floors == {"rmse": 9}
    assert (params.train.resources.threads, params.train.baseline) == (2, "sklearn.linear_model.Ridge")


@pytest.mark.parametrize(
    ("kind", "addition", "named"),
    [
        ("trinary", "", "target.kind = 'trinary'"),
        (
            "binary",
            "gates: {floors: {r2: 0.5}}",
            r"gates\.floors\.r2 .* 'binary': .*judges numbers.*: choose one of roc_auc, ",
        ),
        ("regression", "gates: {floors: {roc_auc: 0.7}}", r"gates\.floors\.roc_auc .* choose one of rmse, mae, r2"),
        (
            "multiclass",
            "gates: {champion: {metric: roc_auc}}",
            r"gates\.champion\.metric .* matthews_corrcoef, not 'roc_auc'",
        ),
        ("multiclass", "gates: {slices: {metric: r2}}", r"gates\.slices\.metric"),
        ("regression", "decision: {performance: {metric: f1}}", r"decision\.performance\.metric"),
        (
            "binary",
            "train: {tune: {metric: luck, space: {depth: {kind: int, low: 1, high: 2}}}}",
            r"train\.tune\.metric .* choose one of roc_auc, .* not 'luck'",
        ),
        ("regression", "train: {class_weights: balanced}", r"train\.class_weights .* remove it"),
        ("regression", "train: {calibration: {method: sigmoid}}", r"train\.calibration .* remove it"),
        ("regression", "gates: {calibration: {max_error: 0.1}}", r"gates\.calibration\.max_error .* remove it"),
        ("regression", "gates: {calibration: {champion_margin: 0.1}}", r"gates\.calibration\.champion_margin"),
        ("regression", "gates: {fairness: {min_ratio: 0.8}}", r"gates\.fairness\.min_ratio"),
        ("regression", "gates: {fairness: {ratio_margin: 0.8}}", r"gates\.fairness\.ratio_margin"),
        ("regression", "gates: {fairness: {classes: [a]}}", r"gates\.fairness\.classes"),
        ("regression", "gates: {leakage: {max_single_auc: 0.9}}", r"gates\.leakage\.max_single_auc"),
        ("binary", "gates: {leakage: {max_single_r2: 0.9}}", r"gates\.leakage\.max_single_r2"),
        ("binary", "gates: {classes: {min_rows: 20}}", r"gates\.classes "),
        ("binary", "gates: {noise: {tolerance: 0.2}}", r"gates\.noise\.tolerance"),
        ("multiclass", "train: {threshold: 0.3}", r"train\.threshold .* applies to binary only"),
        (
            "multiclass",
            "gates: {behaviour: [{name: x, column: y, add: 1, expect: up}]}",
            r"gates\.behaviour\.x .* add of_class",
        ),
        (
            "regression",
            "gates: {behaviour: [{name: x, column: y, add: 1, expect: up, of_class: a}]}",
            r"gates\.behaviour\.x\.of_class",
        ),
    ],
)
def test_a_setting_that_cannot_apply_to_the_kind_is_refused(
    tmp_path: Path, kind: str, addition: str, named: str
) -> None:
    path = write(tmp_path, FLAT + f"target: {{kind: {kind}}}\n{addition}\n")
    with pytest.raises(UsageError, match=named) as raised:
        load_params(path)
    assert "\n" not in str(raised.value)


def test_the_positive_value_of_a_label_is_for_binary_targets(tmp_path: Path) -> None:
    text = FLAT.replace("label: cat}", "label: cat, positive: tabby}") + "target: {kind: multiclass}\n"
    with pytest.raises(UsageError, match=r"data\.positive does not fit target.kind = 'multiclass'"):
        load_params(write(tmp_path, text))


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("arguments: {C: .inf}", "train.arguments: C = inf must be a finite number"),
        ("baseline_arguments: {tol: .nan}", "train.baseline_arguments: tol = nan must be a finite number"),
        ("arguments: {layers: [1, [.inf]]}", "train.arguments: layers.1.0 = inf must be"),
        ("arguments: {class_weight: {0: 1, a: 2}}", "class_weight = {0: 1, 'a': 2}: keys must be all text"),
        ("arguments: {seed: !!binary aGVq}", "train.arguments: seed = b'hej' is neither text, number"),
        ("tune: {space: {C: {kind: categorical, choices: [1, .inf]}}}", "choices.1 = inf must be a finite number"),
        ("tune: {space: {C: {kind: categorical, choices: [{0: 1}]}}}", "choices.0 = {0: 1}: keys must be text"),
    ],
)
def test_arguments_that_no_payload_can_hold_are_named(train: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"{FLAT}train: {{{train}}}\n")
    with pytest.raises(UsageError, match=re.escape(said)) as raised:
        load_params(path)
    assert str(path) in str(raised.value)
