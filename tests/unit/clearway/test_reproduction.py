"""What is pinned, what differs: the decisions of a rebuild, without rebuilding anything."""

from pathlib import Path
from typing import Any

import pytest

from clearway.errors import ClearwayError
from clearway.lineage import Lineage
from clearway.reproduction import (
    File,
    Pins,
    Predictions,
    Reproduction,
    changed_packages,
    changed_tables,
    choose_pins,
    compare_files,
    first_difference,
    local_files,
    made_here,
    other_processor,
    own_store,
    search_again,
)
from clearway.snapshot import Snapshot

HOME, OTHER = Path("/line"), Path("/models")
OURS, THEIRS = "1" * 40, "2" * 40


def lineage(git_commit: str | None, code_commit: str | None) -> Lineage:
    said: dict[str, Any] = {
        **{"project": "toy", "role": "challenger", "as_of": None, "snapshot_sha256": "1" * 64},
        **{"recipe_sha256": "e" * 64, "training_rows": 3, "labelled_rows": 4, "metrics": {}, "lock_sha256": None},
        **{"trigger": "local", "reasons": [], "packages": {}, "git_commit": git_commit, "code_commit": code_commit},
    }
    return Lineage.model_validate(said)


def snapshot(**tables: str) -> Snapshot:
    described = {
        name: {"rows": 3, "bytes": 9, "sha256": sha256, "source": f"{name}.csv"} for name, sha256 in tables.items()
    }
    return Snapshot.model_validate({"as_of": None, "tables": described})


def test_a_project_in_the_lines_repository_is_pinned_by_one_commit() -> None:
    assert choose_pins(lineage(OURS, OURS), home=HOME, project=HOME) == Pins(OURS, OURS)


def test_a_bundle_of_before_the_lines_commit_was_recorded_is_pinned_in_one_repository_only() -> None:
    assert choose_pins(lineage(OURS, None), home=HOME, project=HOME) == Pins(OURS, OURS)
    with pytest.raises(ClearwayError, match="code_commit is null"):
        choose_pins(lineage(OURS, None), home=HOME, project=OTHER)


def test_a_project_of_its_own_repository_is_pinned_by_two_commits() -> None:
    assert choose_pins(lineage(THEIRS, OURS), home=HOME, project=OTHER) == Pins(OURS, THEIRS)


@pytest.mark.parametrize("project", [None, OTHER])
def test_what_no_commit_pins_is_said(project: Path | None) -> None:
    pins = choose_pins(lineage(None, OURS), home=HOME, project=project)
    assert (pins.line, pins.project) == (OURS, None)
    assert "in no git repository: its schema, code and settings are taken as they are now" in pins.notes[0]


def test_a_recorded_commit_is_not_silently_given_up() -> None:
    with pytest.raises(ClearwayError, match=f"git_commit = {THEIRS}, but the project folder is in no git repository"):
        choose_pins(lineage(THEIRS, OURS), home=HOME, project=None)


@pytest.mark.parametrize(
    ("project", "line", "named"),
    [
        (THEIRS + "-dirty", OURS, f"git_commit = {THEIRS}-dirty:"),
        (THEIRS, OURS + "-dirty", f"code_commit = {OURS}-dirty:"),
        (THEIRS + "-dirty", OURS + "-dirty", "code_commit = .* and git_commit = "),
    ],
)
def test_a_dirty_commit_promises_nothing_and_may_be_tried(project: str, line: str, named: str) -> None:
    with pytest.raises(ClearwayError, match=f"{named}.*--allow-dirty"):
        choose_pins(lineage(project, line), home=HOME, project=OTHER)
    pins = choose_pins(lineage(project, line), home=HOME, project=OTHER, allow_dirty=True)
    assert (pins.line, pins.project) == (OURS, THEIRS)
    assert "-dirty" in pins.notes[0]


def test_a_table_that_changed_is_named_with_both_hashes() -> None:
    recorded, found = snapshot(rows="a" * 64, same="c" * 64), snapshot(rows="b" * 64, same="c" * 64)
    (said,) = changed_tables(recorded, found)
    assert said == f"table rows: recorded sha256 {'a' * 64} (3 rows), found {'b' * 64} (3 rows)"


def test_tables_that_came_or_went_are_named() -> None:
    said = changed_tables(snapshot(gone="a" * 64), snapshot(new="a" * 64))
    assert said == ["table gone is missing", "table new is new"]


def test_equal_tables_of_two_snapshots_leave_their_time_and_names() -> None:
    (said,) = changed_tables(snapshot(rows="a" * 64), snapshot(rows="a" * 64))
    assert "as_of" in said


def test_packages_that_differ_are_listed_and_new_ones_do_not_matter() -> None:
    recorded = {"numpy": "1.0", "gone": "3.0", "same": "2.0"}
    said = changed_packages(recorded, {"numpy": "2.0", "same": "2.0", "new": "1.0"})
    assert said == ["numpy 1.0 then, 2.0 now", "gone 3.0 then, not known now"]


def test_files_of_either_payload_are_compared() -> None:
    files = compare_files({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"})
    assert files == (File("a", "1", "1"), File("b", "2", "9"), File("c", "3", None), File("d", None, "4"))
    assert [file.equal for file in files] == [True, False, False, False]


def test_a_difference_is_told_by_the_first_file_that_differs() -> None:
    files = compare_files({"a": "1", "b": "2", "c": "3"}, {"a": "1", "c": "9"})
    made = Reproduction("1" * 64, "2" * 64, files, None, ())
    assert made.sentence.startswith("built twice, and different, first in b (2 and missing): recorded 1111")
    assert Reproduction("1" * 64, "1" * 64, files[:1], None, ()).sentence.endswith("the same digest: " + "1" * 64)


@pytest.mark.parametrize(
    ("difference", "processors", "accepted"), [(1e-6, "a", True), (1e-6, "", False), (1.0, "a", False)]
)
def test_other_bytes_are_accepted_from_another_processor_alone_and_with_the_same_answers(
    difference: float, processors: str, accepted: bool
) -> None:
    files = compare_files({"a": "1"}, {"a": "2"})
    made = Reproduction("1" * 64, "2" * 64, files, Predictions(90, difference, 1e-5), (), processors)
    assert made.accepted is accepted
    assert not made.same
    assert ("with the same answers" in made.sentence) is accepted
    assert "and different, first in a" in made.sentence or "90 holdout rows 1e-06, at most 1e-05" in made.sentence


@pytest.mark.parametrize(
    ("recorded", "found", "said"),
    [
        ("0.3.30 SkylakeX, 0.3.31 SkylakeX", "0.3.30 Haswell", "SkylakeX then, Haswell now"),
        ("0.3.30 Zen, 0.3.31 Zen", "0.3.32 Zen", ""),
        ("0.3.30 Zen", "0.3.30", ""),
        ("", "0.3.30 Zen", ""),
        ("unknown", "0.3.30 Zen", ""),
    ],
)
def test_a_processor_is_told_by_its_kind_and_not_by_the_librarys_version(recorded: str, found: str, said: str) -> None:
    assert other_processor(recorded, found) == said


def lock(**stages: dict[str, str]) -> dict[str, Any]:
    made = {name: [{"path": path, "md5": md5} for path, md5 in outs.items()] for name, outs in stages.items()}
    return {"schema": "2.0", "stages": {name: {"outs": outs} for name, outs in made.items()}}


def test_the_first_stage_whose_data_differ_is_named_and_reports_do_not_count() -> None:
    recorded = lock(train={"build/model": "1"}, features={"data/features": "1"}, ingest={"data/raw": "1"})
    reports = lock(ingest={"data/raw": "1", "reports/x.html": "2"}, train={"build/model": "2"})
    assert first_difference(recorded, reports) == ""
    both = lock(ingest={"data/raw": "2"}, features={"data/features": "2"})
    assert first_difference(recorded, both) == "ingest (data/raw)"
    assert first_difference(recorded, lock(features={"data/features": "2"})) == "features (data/features)"
    assert first_difference({}, both) == ""


@pytest.mark.parametrize(("difference", "within"), [(0.0, True), (1e-5, True), (2e-5, False), (None, False)])
def test_predictions_that_could_not_be_compared_are_not_within_the_tolerance(
    difference: float | None, within: bool
) -> None:
    assert Predictions(64, difference, 1e-5).within is within


def test_nan_is_beyond_every_tolerance() -> None:
    assert not Predictions(64, float("nan"), 1e-5).within


def test_only_files_of_this_machine_relative_to_the_project_are_local() -> None:
    sources = {
        "a": {"kind": "csv", "path": "a.csv"},
        "b": {"kind": "parquet", "path": "../b.parquet"},
        "url": {"kind": "csv", "path": "https://example.org/a.csv"},
        "inside": {"kind": "csv", "path": "zip://a.csv::b.zip"},
        "absolute": {"kind": "csv", "path": "/data/a.csv"},
        "package": {"kind": "package", "distribution": "d", "path": "p.csv"},
        "database": {"kind": "sql", "url": "postgresql://host/name", "query": "select 1"},
        "file": {"kind": "sql", "url": "sqlite:///pets.db", "query": "select 1"},
    }
    assert local_files({"sources": sources}) == {"a": "a.csv", "b": "../b.parquet", "file": "pets.db"}


def test_a_rebuild_never_fills_the_store_that_is_live() -> None:
    live = {"project": "toy", "offline_store": {"type": "file"}, "registry": {"path": "s3://live/registry.db"}}
    redis = {"type": "redis", "connection_string": "live:6379"}
    own = own_store({**live, "online_store": redis})
    assert "live" not in str(own)
    assert own["project"] == "toy"
    assert own["offline_store"] == {"type": "file"}
    assert not Path(own["online_store"]["path"]).is_absolute()
    assert not Path(own["registry"]["path"]).is_absolute()


def test_a_search_is_run_again_with_the_trials_it_had_finished_and_without_its_timeout() -> None:
    model = {"train": {"tune": {"trials": 7}}}
    params = {"seed": 1, "train": {"estimator": "a", "tune": {"space": {}, "timeout_seconds": 5, "trials": 50}}}
    again = {"seed": 1, "train": {"estimator": "a", "tune": {"space": {}, "trials": 7}}}
    assert search_again(params, model, "challenger") == again
    assert search_again(again, model, "challenger") is None
    assert search_again(params, {}, "baseline") == {"seed": 1, "train": {"estimator": "a", "tune": None}}
    assert search_again({"train": {"estimator": "a"}}, {}, "challenger") is None
    unsaid = {"train": {"tune": {"space": {}}}}
    assert search_again(unsaid, {"train": {"tune": {"trials": 20}}}, "challenger") is None


def test_a_rebuild_needs_no_cluster_and_keeps_to_no_limit_of_another_machine() -> None:
    resources = {"threads": 2, "memory_mb": 900, "time_limit_seconds": 1}
    train = {"estimator": "a", "joblib": {"backend": "dask", "address": "tcp://gone:1"}, "resources": resources}
    assert made_here({"seed": 1, "train": train}) == {
        "seed": 1,
        "train": {"estimator": "a", "resources": {"threads": 2}},
    }
    for params in ({"seed": 1}, {"seed": 1, "train": {"estimator": "a"}}):
        assert made_here(params) == params
