"""The judge's verdicts on made-up traffic: healthy, broken in each way, silent, and without a control."""

import numpy as np
import pandas as pd
import pytest

from clearway.canary import OBSERVED, CanaryVerdict, Extra, MetricVerdict, draw_steps, judge, measure
from clearway.params import CanaryParams, CanaryStep
from clearway.reporting import draw

PARAMS = CanaryParams()
STEP = CanaryStep(weight=25, margin=0.05, min_requests=500)


def traffic(
    n_stable: int = 4500,
    n_canary: int = 1500,
    *,
    errors: float = 0.01,
    slow: float = 0.005,
    shift: float = 0.0,
    per_entity: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Both arms with 1% errors and 0.5% slow answers; the canary's own rates and score shift as given."""
    random = np.random.default_rng(seed)
    n = n_stable + n_canary
    canary = random.permutation(np.arange(n) < n_canary)
    failed = random.random(n) < np.where(canary, errors, 0.01)
    late = random.random(n) < np.where(canary, slow, 0.005)
    score = np.clip(random.beta(2, 5, n) + np.where(canary, shift, 0.0), 0, 1)
    entity = np.where(canary, "c", "s") + pd.Series(np.arange(n) // per_entity).astype(str)
    return pd.DataFrame(
        {
            "id": [f"q{i}" for i in range(n)],
            "version": np.where(canary, "new", "old"),
            "role": np.where(canary, "canary", "stable"),
            "entity": entity,
            "served_at": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(n), unit="ms"),
            "status": np.where(failed, 500, 200),
            "latency_ms": np.where(late, 250.0, 5.0),
            "score": np.where(failed, np.nan, score),
        }
    )


def metric(verdict: CanaryVerdict, name: str) -> MetricVerdict:
    return next(found for found in verdict.metrics if found.name == name)


def test_a_healthy_canary_is_promoted() -> None:
    verdict = judge(traffic(), STEP, PARAMS)
    assert verdict.verdict == "promote"
    assert [found.status for found in verdict.metrics] == ["pass", "pass", "pass"]
    assert all(found.upper <= found.margin for found in verdict.metrics)
    assert "proven harmless" in verdict.sentence


def test_errors_from_one_to_ten_percent_are_rolled_back() -> None:
    verdict = judge(traffic(errors=0.10), STEP, PARAMS)
    assert verdict.verdict == "rollback"
    found = metric(verdict, "errors")
    assert (found.status, found.n_canary, found.n_stable) == ("fail", 1500, 4500)
    assert 0 < found.lower < 0.09
    assert "errors: canary " in verdict.sentence
    assert metric(verdict, "slow").status != "fail"


def test_a_canary_that_refuses_what_stable_accepts_is_rolled_back() -> None:
    refusing = traffic(errors=0.10)
    refusing.loc[(refusing["role"] == "canary") & (refusing["status"] == 500), "status"] = 422
    verdict = judge(refusing, STEP, PARAMS)
    assert (verdict.verdict, metric(verdict, "errors").status) == ("rollback", "fail")


def test_a_slow_canary_is_rolled_back() -> None:
    verdict = judge(traffic(slow=0.2), STEP, PARAMS)
    assert verdict.verdict == "rollback"
    assert [found.name for found in verdict.metrics if found.status == "fail"] == ["slow"]


@pytest.mark.parametrize("shift", [0.35, -0.28])
def test_a_score_shifted_either_way_is_rolled_back(shift: float) -> None:
    verdict = judge(traffic(shift=shift), STEP, PARAMS)
    assert verdict.verdict == "rollback"
    assert [found.name for found in verdict.metrics if found.status == "fail"] == ["score"]


def test_a_small_shift_of_the_score_is_not_held_against_it() -> None:
    assert judge(traffic(shift=0.03), STEP, PARAMS).verdict == "promote"


def test_no_traffic_is_hold() -> None:
    verdict = judge(traffic(0, 0), STEP, PARAMS)
    assert verdict.verdict == "hold"
    assert verdict.model_dump(mode="json")["metrics"][0]["estimate"] is None
    assert judge(pd.DataFrame(columns=list(OBSERVED)), STEP, PARAMS).verdict == "hold"


def test_control_traffic_alone_is_hold() -> None:
    verdict = judge(traffic(5000, 0), STEP, PARAMS)
    assert (verdict.verdict, verdict.n_stable) == ("hold", 5000)
    assert "no request" in verdict.sentence


def test_canary_traffic_without_a_control_is_hold_however_good_it_looks() -> None:
    verdict = judge(traffic(0, 5000, errors=0.0, slow=0.0), STEP, PARAMS)
    assert verdict.verdict == "hold"
    assert "5,000 of 5,000 routing keys saw the canary where 25.0% were to" in verdict.sentence
    few = judge(traffic(0, 4, errors=0.0, slow=0.0), STEP.model_copy(update={"min_requests": 1}), PARAMS)
    assert (few.verdict, "without control traffic" in few.sentence) == ("hold", True)


def test_one_request_short_of_the_minimum_is_hold_and_the_minimum_is_not() -> None:
    perfect = {"errors": 0.0, "slow": 0.0}
    assert "fewer canary requests" in judge(traffic(1500, 499, **perfect), STEP, PARAMS).sentence
    assert "fewer canary requests" not in judge(traffic(1500, 500, **perfect), STEP, PARAMS).sentence


@pytest.mark.parametrize("harm", [{"errors": 1.0}, {"slow": 1.0}])
def test_proven_harm_is_rolled_back_before_the_minimum(harm: dict[str, float]) -> None:
    assert judge(traffic(180, 60, **harm), STEP, PARAMS).verdict == "rollback"
    assert judge(traffic(9, 3, **harm), STEP, PARAMS).verdict == "hold", "three bad answers prove nothing yet"


def test_too_little_evidence_is_hold_and_says_what_is_open() -> None:
    tight = CanaryStep(weight=25, margin=0.001, min_requests=500)
    verdict = judge(traffic(), tight, PARAMS)
    assert verdict.verdict == "hold"
    assert "not decided yet: errors at most +" in verdict.sentence
    assert verdict.more_requests is not None
    assert verdict.more_requests > 10_000


@pytest.mark.parametrize("score", [float("nan"), 1.5, float("inf")])
def test_a_score_that_is_no_probability_counts_as_an_error(score: float) -> None:
    observations = traffic()
    broken = (observations["role"] == "canary") & (np.random.default_rng(1).random(len(observations)) < 0.3)
    observations.loc[broken, "score"] = score
    observations.loc[broken, "status"] = 200
    verdict = judge(observations, STEP, PARAMS)
    assert verdict.verdict == "rollback"
    assert metric(verdict, "errors").status == "fail"


def test_an_unknown_latency_counts_as_slow() -> None:
    observations = traffic()
    observations.loc[observations["role"] == "canary", "latency_ms"] = np.nan
    assert metric(judge(observations, STEP, PARAMS), "slow").status == "fail"


def test_the_score_counts_each_entity_once_and_nameless_requests_each() -> None:
    observations = traffic(4500, 1500, errors=0.0, per_entity=1)
    observations.loc[observations["role"] == "canary", "entity"] = "the only aircraft"
    found = metric(judge(observations, STEP, PARAMS), "score")
    assert found.n_canary == 1
    assert found.status == "open"
    observations["entity"] = None
    assert metric(judge(observations, STEP, PARAMS), "score").n_canary == 1500


def test_the_order_of_rows_in_the_log_files_does_not_matter() -> None:
    observations = traffic()
    shuffled = observations.sample(frac=1.0, random_state=3)
    assert judge(shuffled, STEP, PARAMS) == judge(observations, STEP, PARAMS)


def test_testers_are_no_sample_of_either_side() -> None:
    observations = traffic()
    testers = traffic(errors=1.0, seed=9).assign(role="tester")
    assert judge(pd.concat([observations, testers]), STEP, PARAMS) == judge(observations, STEP, PARAMS)


def test_a_healthy_rollout_judged_again_and_again_is_never_rolled_back() -> None:
    rolled_back = 0
    for seed in range(5):
        observations = traffic(3000, 1000, seed=seed)
        looks = range(400, 4001, 600)
        rolled_back += any(judge(observations[:look], STEP, PARAMS).verdict == "rollback" for look in looks)
    assert rolled_back == 0


def test_the_drawing_is_a_picture() -> None:
    png = draw(draw_steps([(STEP, measure(traffic(200, 100), STEP, PARAMS))]))
    assert png.startswith(b"\x89PNG")
    assert draw(draw_steps([(STEP, measure(traffic(0, 0), STEP, PARAMS))])).startswith(b"\x89PNG")


# --- evidence over steps, by key, and what must hold before it counts ---


def two_steps(late_errors: float = 0.01, n: int = 3000) -> pd.DataFrame:
    """A quarter of the traffic, then half of it."""
    first = traffic(3 * n // 4, n // 4, seed=1).assign(segment=0, weight=25)
    then = traffic(n // 2, n // 2, seed=2, errors=late_errors).assign(segment=1, weight=50)
    then["served_at"] += pd.Timedelta(hours=1)
    then["entity"] = "then " + then["entity"]
    then["id"] = "then " + then["id"]
    return pd.concat([first, then])


HALF = CanaryStep(weight=50, margin=0.02, min_requests=500)


def test_what_earlier_steps_said_still_counts() -> None:
    both = judge(two_steps(), HALF, PARAMS, segment=1)
    alone = judge(two_steps()[lambda rows: rows["segment"] == 1].assign(segment=0), HALF, PARAMS)
    assert metric(both, "errors").upper < metric(alone, "errors").upper
    assert (both.n_canary, metric(both, "errors").n_canary) == (1500, 2250)


def test_a_step_without_traffic_of_its_own_is_hold_whatever_the_steps_before_said() -> None:
    before = two_steps()[lambda rows: rows["segment"] == 0]
    assert judge(before, STEP, PARAMS).verdict == "promote"
    verdict = judge(before, HALF, PARAMS, segment=1)
    assert (verdict.verdict, verdict.n_canary) == ("hold", 0)
    assert "no traffic proves nothing" in verdict.sentence


def test_a_step_that_contradicts_the_ones_before_is_not_passed() -> None:
    calm, n = two_steps(n=40_000), 600
    calm = pd.concat([calm[calm["segment"] == 0], calm[calm["segment"] == 1][: 2 * n]])
    assert judge(calm, HALF, PARAMS, segment=1).verdict == "promote"
    worse = two_steps(late_errors=0.045, n=40_000)
    worse = pd.concat([worse[worse["segment"] == 0], worse[worse["segment"] == 1][: 2 * n]])
    assert judge(worse, HALF, PARAMS, segment=1).verdict != "promote"


def test_a_key_that_fails_each_time_is_one_failure_and_not_forty() -> None:
    broken = traffic(errors=0.01, per_entity=1)
    rows = np.flatnonzero(broken["role"] == "canary")[:40]
    broken.loc[rows, ["status", "score"]] = [500, np.nan]
    assert judge(broken, STEP, PARAMS).verdict == "rollback"
    broken.loc[rows, "entity"] = "one aircraft"
    verdict = judge(broken, STEP, PARAMS)
    assert metric(verdict, "errors").status != "fail"
    assert metric(verdict, "errors").design > 10


def test_a_hold_whose_failures_stick_to_few_keys_says_so() -> None:
    even = STEP.model_copy(update={"weight": 50})
    sticky = traffic(3000, 3000, errors=0.0, per_entity=30)
    names = pd.Series(sticky["entity"].unique())
    bad = sticky["entity"].isin(names[names.str.startswith("c")].head(3))
    sticky.loc[bad, ["status", "score"]] = (500, np.nan)
    held = judge(sticky, even, PARAMS)
    assert held.verdict == "hold"
    design = metric(held, "errors").design
    assert f"in which {design:.0f} requests say as much as one, because few of the " in held.sentence
    assert (
        "say as much as one"
        not in judge(traffic(300, 100), STEP.model_copy(update={"min_requests": 50}), PARAMS).sentence
    )


def test_keys_that_are_not_split_as_promised_are_hold_and_said_to_be() -> None:
    verdict = judge(traffic(4500, 600), STEP, PARAMS)
    assert verdict.verdict == "hold"
    assert "600 of 5,100 routing keys saw the canary where 25.0% were to" in verdict.sentence
    assert verdict.sample_ratio is not None
    assert not verdict.sample_ratio.holds
    assert verdict.more_requests is None


def test_one_key_that_asks_often_does_not_upset_the_split() -> None:
    busy = traffic()
    busy.loc[busy.index[:1500], "entity"] = "c of a hub"
    busy.loc[busy.index[:1500], "role"] = "canary"
    verdict = judge(busy, STEP, PARAMS)
    assert verdict.sample_ratio is not None
    assert verdict.sample_ratio.holds


def test_a_step_lasts_its_minutes() -> None:
    slow = STEP.model_copy(update={"min_minutes": 60.0})
    early = judge(traffic(), slow, PARAMS, minutes=12.0)
    assert early.verdict == "hold"
    assert "12.0 of the 60 minutes that the step asks for have passed" in early.sentence
    assert early.more_minutes == pytest.approx(48, abs=3)
    assert judge(traffic(), slow, PARAMS, minutes=60.0).verdict == "promote"
    assert judge(traffic(errors=0.1), slow, PARAMS, minutes=1.0).verdict == "rollback"


def test_a_hold_says_how_much_more_traffic_will_end_it() -> None:
    verdict = judge(traffic(450, 150), STEP, PARAMS, minutes=10.0)
    assert verdict.verdict == "hold"
    assert verdict.more_requests is not None
    assert 1350 <= verdict.more_requests < 6000
    assert verdict.more_minutes == pytest.approx(verdict.more_requests / 60, rel=0.01)


def lost(observations: pd.DataFrame, canary: float, late: bool = False) -> Extra:
    """What each answer lost, of a tenth on average by stable."""
    random = np.random.default_rng(4)
    mean = np.where(observations["role"] == "canary", canary, 0.1)
    values = np.clip(mean + random.normal(0, 0.05, len(observations)), 0, 1)
    return Extra("sales", pd.Series(values, index=observations["id"]), margin=2.0, scale=100.0, late=late)


def test_a_metric_of_the_projects_own_rolls_back_in_its_own_unit() -> None:
    observations = traffic()
    verdict = judge(observations, STEP, PARAMS, extras=[lost(observations, 0.2)])
    assert verdict.verdict == "rollback"
    assert [found.name for found in verdict.metrics if found.status == "fail"] == ["sales"]
    assert metric(verdict, "sales").estimate == pytest.approx(10, abs=1)
    assert judge(observations, STEP, PARAMS, extras=[lost(observations, 0.1)]).verdict == "promote"


def test_a_late_metric_can_roll_back_and_is_not_waited_for() -> None:
    observations = traffic()
    nothing = Extra("accuracy", pd.Series(dtype="float64"), 0.02, "rate", late=True)
    waiting = judge(observations, STEP, PARAMS, extras=[nothing])
    assert (waiting.verdict, waiting.provisional) == ("promote", True)
    assert "provisional until accuracy can be told" in waiting.sentence
    bad = judge(observations, STEP, PARAMS, extras=[lost(observations, 0.3, late=True)])
    assert bad.verdict == "rollback"
    known = judge(observations, STEP, PARAMS, extras=[lost(observations, 0.1, late=True)])
    assert (known.verdict, known.provisional) == ("promote", False)


def test_a_metric_may_be_known_of_one_versions_answer_only() -> None:
    observations = traffic().assign(id=lambda rows: [f"q{i // 2}" for i in range(len(rows))])
    wrong = (observations["role"] == "canary").astype(float)
    index = pd.MultiIndex.from_frame(observations[["id", "version"]])
    values = pd.Series(wrong.to_numpy(), index=index)
    values = values[~index.duplicated()]
    found = metric(judge(observations, STEP, PARAMS, extras=[Extra("wrong", values, 0.02, "rate")]), "wrong")
    assert (found.canary, found.stable) == (1.0, 0.0)


def test_bounds_and_status_say_the_same() -> None:
    for seed in range(4):
        for errors in (0.01, 0.04, 0.06):
            for found in judge(traffic(1500, 500, errors=errors, seed=seed), STEP, PARAMS).metrics[:2]:
                assert (found.status == "fail") == (found.lower > 0)
                if found.status == "pass":
                    assert found.upper <= found.margin + 1e-4
