"""A model is loaded from verified bytes only, and answers what its estimator answered."""

import copy
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from clearway.bundle import BundleError, pack, payload_digest
from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature
from clearway.errors import ClearwayError
from clearway.export import to_onnx, to_skops
from clearway.files import write_json
from clearway.model import load_estimator, load_model, load_payload

SCHEMA = InputSchema(
    features=(NumericFeature(name="size"), CategoricalFeature(name="colour", categories=("green", "red")))
)
RANDOM = np.random.default_rng(2)
MATRIX = np.column_stack([RANDOM.normal(size=200), RANDOM.integers(0, 2, 200)]).astype(np.float32)
LABELS = (MATRIX[:, 0] + MATRIX[:, 1] > 0.5).astype(int)


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    folder = tmp_path / "payload"
    folder.mkdir()
    estimator = LogisticRegression().fit(MATRIX, LABELS)
    (folder / "model.skops").write_bytes(to_skops(estimator))
    (folder / "model.onnx").write_bytes(to_onnx(estimator, 2))
    write_json(folder / "schema.json", SCHEMA.model_dump(mode="json"))
    write_json(folder / "features.json", {"definitions_sha256": "0" * 64})
    train = {"estimator": "sklearn.linear_model.LogisticRegression", "arguments": {}, "threads": 1}
    write_json(folder / "params.json", {"project": "toy", "seed": 1, "threshold": 0.3, "train": train})
    return folder


def test_a_bundle_scores_as_its_estimator(payload: Path, tmp_path: Path) -> None:
    bundle = pack(payload, {}, tmp_path / "bundle")
    model = load_model(bundle.path, bundle.digest)
    assert (model.digest, model.threshold, model.schema) == (bundle.digest, 0.3, SCHEMA)
    scores = model.score(MATRIX)
    assert (scores.dtype, scores.shape) == (np.float64, (200,))
    np.testing.assert_allclose(scores, load_estimator(bundle.payload).predict_proba(MATRIX)[:, 1], atol=1e-6)
    np.testing.assert_allclose(model.score(MATRIX[3:4]), scores[3:4], atol=1e-7)
    assert model.score(MATRIX[:0]).shape == (0,)


def test_it_runs_on_one_thread(payload: Path) -> None:
    options = load_payload(payload, payload_digest(payload)).session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert "SEQUENTIAL" in str(options.execution_mode)


def test_nothing_is_deserialised_before_the_digest_is_verified(payload: Path, tmp_path: Path) -> None:
    bundle = pack(payload, {}, tmp_path / "bundle")
    for name in ("model.onnx", "schema.json", "params.json", "model.skops"):
        original = (bundle.payload / name).read_bytes()
        (bundle.payload / name).write_bytes(b"not even parseable")
        with pytest.raises(BundleError, match=rf"payload/{name} has changed: expected sha256"):
            load_model(bundle.path, bundle.digest)
        (bundle.payload / name).write_bytes(original)
    load_model(bundle.path, bundle.digest)


def test_a_payload_of_another_digest_is_refused(payload: Path) -> None:
    digest = payload_digest(payload)
    (payload / "params.json").write_text("{}")
    with pytest.raises(BundleError, match=f"payload has changed since it was trained: expected digest {digest}"):
        load_payload(payload, digest)


def test_a_payload_with_a_file_too_many_or_too_few_is_refused(payload: Path) -> None:
    digest = payload_digest(payload)
    (payload / "notes.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"is no payload: expected .*model\.skops.*, found .*notes\.txt"):
        load_payload(payload, digest)
    (payload / "notes.txt").unlink()
    (payload / "model.onnx").unlink()
    with pytest.raises(BundleError, match="is no payload"):
        load_payload(payload, digest)


def test_a_well_hashed_graph_that_is_none_is_one_clear_line(payload: Path) -> None:
    (payload / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ClearwayError, match=r"model\.onnx is not a model ONNX Runtime can load") as caught:
        load_payload(payload, payload_digest(payload))
    assert "\n" not in str(caught.value)


def test_another_shape_or_type_is_refused(payload: Path) -> None:
    model = load_payload(payload, payload_digest(payload))
    for wrong in (MATRIX[:, :1], MATRIX[0], MATRIX.astype(np.float64)):
        with pytest.raises(ClearwayError, match="scores float32 rows of 2 features, got"):
            model.score(wrong)


class Stranger(LogisticRegression):
    """A type that no allow-list knows."""


def test_a_type_outside_the_allow_list_is_refused_by_name(payload: Path) -> None:
    skops.io.dump(Stranger().fit(MATRIX, LABELS), payload / "model.skops")
    with pytest.raises(ClearwayError, match=r"model\.skops: refused, .*allow-list of clearway\.model: .*Stranger$"):
        load_estimator(payload)


def test_trees_are_on_the_allow_list_though_skops_asks(payload: Path) -> None:
    tree = DecisionTreeClassifier(max_depth=3).fit(MATRIX, LABELS)
    content = to_skops(tree)
    assert skops.io.get_untrusted_types(data=content) == ["sklearn.tree._tree.Tree"]
    (payload / "model.skops").write_bytes(content)
    np.testing.assert_array_equal(load_estimator(payload).predict_proba(MATRIX), tree.predict_proba(MATRIX))


class Bomb:
    """Pickled, it touches a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_the_estimator_is_not_run(payload: Path, tmp_path: Path) -> None:
    (payload / "model.skops").write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    with pytest.raises(ClearwayError, match=r"model\.skops: not a readable skops file"):
        load_estimator(payload)
    assert not (tmp_path / "went off").exists()


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused_by_name(payload: Path) -> None:
    path = payload / "model.skops"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.npy", bytes(5_000_000))
    with pytest.raises(ClearwayError, match=r"model\.skops: refused, 'zeros\.npy' in it is compressed"):
        load_estimator(payload)


def test_entries_that_overlap_are_refused(payload: Path) -> None:
    """Many names for the same stored bytes."""
    path = payload / "model.skops"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("once.npy", bytes(50_000))
        first = archive.getinfo("once.npy")
        for number in range(20):
            again = copy.copy(first)
            again.filename = f"again{number}.npy"
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(ClearwayError, match=r"model\.skops: refused, its [\d,]+ bytes claim to hold 1,0\d\d,\d+"):
        load_estimator(payload)


def test_a_damaged_or_missing_estimator_is_one_clear_line(payload: Path) -> None:
    (payload / "model.skops").write_bytes(b"PK nonsense")
    with pytest.raises(ClearwayError, match=r"model\.skops: not a readable skops file"):
        load_estimator(payload)
    (payload / "model.skops").unlink()
    with pytest.raises(ClearwayError, match=r"model\.skops cannot be read"):
        load_estimator(payload)
