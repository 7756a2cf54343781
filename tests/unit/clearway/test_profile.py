"""The drift reference: deterministic bytes, a seeded sample, and clear words for a file that is none."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clearway.errors import ClearwayError, UsageError
from clearway.profile import read_reference, sample_positions, write_reference


def rows(count: int) -> tuple[pd.DataFrame, np.ndarray]:
    generator = np.random.default_rng(count)
    frame = pd.DataFrame(
        {
            "row_id": [str(i) for i in range(count)],
            "label": generator.integers(0, 2, count).astype(float),
            "amount": np.arange(count, dtype=np.float32),
            "colour": pd.array(generator.choice(["red", "blue"], count), dtype="string"),
        }
    )
    return frame, generator.random(count)


def test_it_keeps_features_and_scores_and_nothing_reserved(tmp_path: Path) -> None:
    frame, scores = rows(50)
    write_reference(frame, scores, tmp_path / "reference.parquet")
    back = read_reference(tmp_path / "reference.parquet")
    assert list(back.columns) == ["amount", "colour", "score"]
    assert back["score"].to_numpy() == pytest.approx(scores)
    assert back["amount"].tolist() == frame["amount"].tolist()


def test_answers_and_times_stay_beside_their_rows(tmp_path: Path) -> None:
    frame, scores = rows(1_000)
    times = pd.Series(pd.date_range("2013-01-01", periods=1_000, freq="h", tz="UTC"), index=frame.index[::-1])
    write_reference(
        frame, scores, tmp_path / "reference.parquet", labels=frame["label"], times=times, seed=3, max_rows=100
    )
    back = read_reference(tmp_path / "reference.parquet")
    assert list(back.columns) == ["amount", "colour", "score", "label", "prediction_time"]
    chosen = back["amount"].astype(int).to_numpy()
    assert chosen.tolist() == sample_positions(1_000, seed=3, max_rows=100).tolist()
    assert back["label"].tolist() == frame["label"].iloc[chosen].tolist()
    assert back["prediction_time"].tolist() == times.iloc[chosen].tolist()
    with pytest.raises(ClearwayError, match="one label per row"):
        write_reference(frame, scores, tmp_path / "other.parquet", labels=frame["label"].head(3))


def test_the_same_rows_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    frame, scores = rows(1_000)
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_reference(frame, scores, tmp_path / name, seed=seed, max_rows=100)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] != written[2]


def test_a_sample_keeps_each_row_whole_and_in_order(tmp_path: Path) -> None:
    frame, scores = rows(1_000)
    write_reference(frame, scores, tmp_path / "reference.parquet", seed=3, max_rows=100)
    back = read_reference(tmp_path / "reference.parquet")
    chosen = back["amount"].astype(int).to_numpy()
    assert len(set(chosen)) == 100
    assert list(chosen) == sorted(chosen)
    assert back["score"].to_numpy() == pytest.approx(scores[chosen])


def test_what_cannot_be_a_reference_is_refused(tmp_path: Path) -> None:
    frame, scores = rows(5)
    with pytest.raises(UsageError, match="'score'"):
        write_reference(frame.assign(score=1.0), scores, tmp_path / "reference.parquet")
    with pytest.raises(ClearwayError, match="one score per row, got 5 rows and 4"):
        write_reference(frame, scores[:4], tmp_path / "reference.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "reference.parquet"
    with pytest.raises(ClearwayError, match=r"reference\.parquet is missing"):
        read_reference(path)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ClearwayError, match="not a readable Parquet file"):
        read_reference(path)
    pd.DataFrame({"amount": [1.0]}).to_parquet(path)
    with pytest.raises(ClearwayError, match="no column 'score'"):
        read_reference(path)
