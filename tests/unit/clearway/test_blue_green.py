"""When a switch is undone, kept, or left without a verdict."""

import numpy as np
import pandas as pd
import pytest

from clearway.blue_green import Answers, _answers, judge_switch
from clearway.ledger import Entry
from clearway.params import BlueGreenParams


def answers(count: int, errors: float = 0.0, slow: float = 0.0, seed: int = 1) -> Answers:
    random = np.random.default_rng(seed)
    return Answers(*((random.random(count) < share).astype("float64") for share in (errors, slow)))


def test_a_version_that_fails_half_is_undone_after_a_few_dozen_answers() -> None:
    found = judge_switch(answers(2000), answers(60, errors=0.5), BlueGreenParams())
    assert found.verdict == "rollback"
    assert "errors rose from 0.00% to" in found.sentence
    assert found.shifts[0].lower > 0


def test_one_that_is_slow_is_undone_too_but_not_within_the_margin() -> None:
    before, now = answers(5000), answers(5000, slow=0.05)
    assert "slow answers rose" in judge_switch(before, now, BlueGreenParams()).sentence
    assert judge_switch(before, now, BlueGreenParams(margin=0.1)).verdict == "keep"


def test_what_counts_as_failed_and_slow_is_what_the_canarys_judge_counts() -> None:
    log = pd.DataFrame({
        "version": "new", "role": "stable", "revision": 2, "status": [200, 200, 422, 500, 200],
        "score": [0.5, np.nan, np.nan, np.nan, 0.5], "latency_ms": [1.0, 1.0, 1.0, 900.0, np.nan],
    })  # fmt: skip
    switch = Entry.model_construct(sequence=2)
    found = _answers(log, "new", 100.0, switch, past=False)
    assert found.errors.tolist() == [0, 1, 1, 1, 0]
    assert found.slow.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(("count", "verdict"), [(0, "hold"), (99, "hold"), (100, "keep")])
def test_too_few_answers_prove_nothing(count: int, verdict: str) -> None:
    assert judge_switch(answers(1000), answers(count), BlueGreenParams()).verdict == verdict


def test_without_answers_of_the_version_before_nothing_is_proved_either_way() -> None:
    found = judge_switch(answers(0), answers(500, errors=1.0), BlueGreenParams())
    assert (found.verdict, found.shifts[0].before) == ("hold", None)


def test_a_version_as_good_as_the_one_before_is_seldom_undone_however_often_it_is_looked_at() -> None:
    undone = 0
    for seed in range(20):
        before, all_of_it = answers(1000, 0.02, 0.05, seed), answers(1000, 0.02, 0.05, seed + 1000)
        looks = range(20, 1001, 70)
        parts = [Answers(all_of_it.errors[:n], all_of_it.slow[:n]) for n in looks]
        undone += any(judge_switch(before, now, BlueGreenParams()).verdict == "rollback" for now in parts)
    assert undone == 0
