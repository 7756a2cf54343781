"""Pairs of scores of the same requests: alike, shifted, flipped, lost, and too few."""

import numpy as np
import pandas as pd
import pytest

from clearway.params import CanaryShadow
from clearway.shadow_verdict import ShadowVerdict, judge_shadow


def run(
    n: int = 1500, *, noise: float = 0.01, shift: float = 0.0, lost: float = 0.0, keys: int | None = None
) -> ShadowVerdict:
    random = np.random.default_rng(0)
    stable = random.beta(2, 5, n)
    canary = np.clip(stable + random.normal(shift, noise, n), 0, 1)
    canary[random.random(n) < lost] = np.nan
    entity = None if keys is None else [f"k{i % keys}" for i in range(n)]
    pairs = pd.DataFrame({"id": [f"q{i}" for i in range(n)], "entity": entity, "stable": stable, "canary": canary})
    return judge_shadow(pairs, CanaryShadow())


def test_scores_that_agree_let_it_answer() -> None:
    found = run()
    assert found.verdict == "agree", found.sentence
    assert found.difference is not None
    assert found.difference < found.difference_at_most < 0.1


@pytest.mark.parametrize("harm", [{"shift": 0.3}, {"lost": 0.3}])
def test_scores_that_are_far_apart_or_lost_stop_it(harm: dict[str, float]) -> None:
    assert run(**harm).verdict == "disagree"  # type: ignore[arg-type]


def test_too_few_pairs_or_keys_are_hold() -> None:
    assert run(400).verdict == "hold"
    assert run(keys=10).verdict == "hold"
    empty = run(0)
    assert (empty.verdict, empty.difference, empty.flips_at_most) == ("hold", None, 1.0)
