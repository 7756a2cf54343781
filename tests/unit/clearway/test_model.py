"""A model is loaded from verified bytes only, and answers what its estimator answered."""

import copy
import io
import json
import os
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
from clearway.export import to_joblib, to_onnx, to_skops
from clearway.files import write_json
from clearway.model import check_readable, load_estimator, load_model, load_payload
from clearway.trust import Trust

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
    np.testing.assert_allclose(
        scores, load_estimator(bundle.payload, bundle.digest).predict_proba(MATRIX)[:, 1], atol=1e-6
    )
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
    (payload / "model.joblib").write_bytes(b"a second estimator")
    with pytest.raises(BundleError, match=r"is no payload: expected .*either model\.skops or model\.joblib"):
        load_payload(payload, digest)
    (payload / "model.joblib").unlink()
    (payload / "model.onnx").unlink()  # a payload, but another
    with pytest.raises(BundleError, match=f"has changed since it was trained: expected digest {digest}"):
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


STRANGER = f"{Stranger.__module__}.{Stranger.__qualname__}"


def replace_estimator(payload: Path, content: bytes, name: str = "model.skops") -> str:
    """Another estimator, whatever was there, and the digest that goes with it."""
    (payload / "model.skops").unlink(missing_ok=True)
    (payload / name).write_bytes(content)
    return payload_digest(payload)


def test_a_type_outside_the_allow_list_is_refused_with_its_name_and_both_ways_out(payload: Path) -> None:
    digest = replace_estimator(payload, skops.io.dumps(Stranger().fit(MATRIX, LABELS)))
    ways = r"name them in params\.yaml: trust\.types, or train with train\.format: joblib and trust\.joblib: true$"
    with pytest.raises(ClearwayError, match=rf"model\.skops: refused, .*allow-list .*: {STRANGER}; .*{ways}"):
        load_estimator(payload, digest)
    with pytest.raises(ClearwayError, match=STRANGER):
        load_estimator(payload, digest, Trust(frozenset({"some.Other"})))
    assert isinstance(load_estimator(payload, digest, Trust(frozenset({STRANGER}))), Stranger)


def test_a_payload_cannot_allow_its_own_types(payload: Path, tmp_path: Path) -> None:
    (payload / "model.onnx").unlink()
    params = json.loads((payload / "params.json").read_bytes())
    write_json(payload / "params.json", {**params, "train": {**params["train"], "types": [STRANGER]}})
    digest = replace_estimator(payload, skops.io.dumps(Stranger().fit(MATRIX, LABELS)))
    bundle = pack(payload, {}, tmp_path / "bundle")
    for refused in (
        lambda: load_payload(payload, digest),
        lambda: load_model(bundle.path, digest),
        lambda: check_readable(bundle, Trust()),
    ):
        with pytest.raises(ClearwayError, match=rf"model\.skops: refused, .*{STRANGER}; .*trust\.types"):
            refused()
    allowed = Trust(frozenset({STRANGER}))
    check_readable(bundle, allowed)
    assert load_model(bundle.path, digest, allowed).runtime == "scikit-learn"


def test_trees_are_on_the_allow_list_though_skops_asks(payload: Path) -> None:
    tree = DecisionTreeClassifier(max_depth=3).fit(MATRIX, LABELS)
    content = to_skops(tree)
    assert skops.io.get_untrusted_types(data=content) == ["sklearn.tree._tree.Tree"]
    loaded = load_estimator(payload, replace_estimator(payload, content))
    np.testing.assert_array_equal(loaded.predict_proba(MATRIX), tree.predict_proba(MATRIX))


def test_without_onnx_scikit_learn_answers(payload: Path, tmp_path: Path) -> None:
    fast = load_payload(payload, payload_digest(payload))
    (payload / "model.onnx").unlink()
    bundle = pack(payload, {}, tmp_path / "bundle")
    assert bundle.digest != fast.digest
    for slow in (load_payload(payload, bundle.digest), load_model(bundle.path, bundle.digest)):
        assert (fast.runtime, slow.runtime, slow.session) == ("onnx", "scikit-learn", None)
        scores = slow.score(MATRIX)
        assert (scores.dtype, scores.shape) == (np.float64, (200,))
        np.testing.assert_allclose(scores, fast.score(MATRIX), atol=1e-6)
        assert slow.score(MATRIX[:0]).shape == (0,)
        with pytest.raises(ClearwayError, match="scores float32 rows of 2 features, got"):
            slow.score(MATRIX[:, :1])


class Bomb:
    """Pickled, it touches a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_the_estimator_is_not_run(payload: Path, tmp_path: Path) -> None:
    digest = replace_estimator(payload, pickle.dumps(Bomb(tmp_path / "went off")))
    with pytest.raises(ClearwayError, match=r"model\.skops: not a readable skops file"):
        load_estimator(payload, digest, Trust(joblib=True, vouched=frozenset({digest})))
    assert not (tmp_path / "went off").exists()


def test_a_joblib_file_is_opened_only_if_allowed_and_vouched_for(payload: Path, tmp_path: Path) -> None:
    (payload / "model.onnx").unlink()
    digest = replace_estimator(payload, pickle.dumps(Bomb(tmp_path / "went off")), "model.joblib")
    bundle = pack(payload, {}, tmp_path / "bundle")
    vouched = frozenset({digest})
    for trust, reason in (
        (Trust(), "params.yaml: trust.joblib is false"),
        (Trust(vouched=vouched), "params.yaml: trust.joblib is false"),
        (Trust(joblib=True), f"neither a ledger nor the last training of this project knows digest {digest}"),
        (Trust(joblib=True, vouched=frozenset({"0" * 64})), f"knows digest {digest}; nothing in it was run"),
    ):
        for refused in (
            lambda trust=trust: load_payload(payload, digest, trust),
            lambda trust=trust: load_estimator(payload, digest, trust),
            lambda trust=trust: load_model(bundle.path, digest, trust),
            lambda trust=trust: check_readable(bundle, trust),
        ):
            with pytest.raises(ClearwayError, match=rf"payload/model\.joblib is a pickle, refused: .*{reason}"):
                refused()
    check_readable(bundle, Trust(joblib=True, vouched=vouched))
    assert not (tmp_path / "went off").exists(), "what is vouched for may run, and only loading runs it"
    with pytest.raises(AttributeError):  # it went off: a Path.touch is no estimator
        load_payload(payload, digest, Trust(joblib=True, vouched=vouched)).score(MATRIX)
    assert (tmp_path / "went off").exists()


def test_a_joblib_bomb_under_the_digest_of_a_good_model_is_not_run(payload: Path, tmp_path: Path) -> None:
    (payload / "model.onnx").unlink()
    digest = replace_estimator(payload, to_joblib(LogisticRegression().fit(MATRIX, LABELS)), "model.joblib")
    bundle = pack(payload, {}, tmp_path / "bundle")
    trust = Trust(joblib=True, vouched=frozenset({digest}))
    assert load_model(bundle.path, digest, trust).score(MATRIX).shape == (200,)
    for folder in (payload, bundle.payload):
        (folder / "model.joblib").write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    for refused in (
        lambda: load_model(bundle.path, digest, trust),
        lambda: load_payload(payload, digest, trust),
        lambda: load_estimator(payload, digest, trust),
    ):
        with pytest.raises(BundleError, match="has changed"):
            refused()
    assert not (tmp_path / "went off").exists()


def test_with_onnx_the_pickle_beside_it_is_never_opened(payload: Path, tmp_path: Path) -> None:
    digest = replace_estimator(payload, pickle.dumps(Bomb(tmp_path / "went off")), "model.joblib")
    assert load_payload(payload, digest, Trust(joblib=True, vouched=frozenset({digest}))).runtime == "onnx"
    assert not (tmp_path / "went off").exists()


def test_a_pipe_or_a_link_in_a_payload_is_refused_and_not_opened(payload: Path) -> None:
    digest = payload_digest(payload)
    (payload / "schema.json").rename(payload.parent / "schema.json")
    (payload / "schema.json").symlink_to(payload.parent / "schema.json")
    with pytest.raises(BundleError, match=r"schema\.json: expected a file, found a link"):
        load_payload(payload, digest)
    (payload / "schema.json").unlink()
    os.mkfifo(payload / "schema.json")
    with pytest.raises(BundleError, match=r"schema\.json: expected a file, found a link or a special file"):
        load_payload(payload, digest)


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused_by_name(payload: Path) -> None:
    path = payload / "model.skops"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.npy", bytes(5_000_000))
    with pytest.raises(ClearwayError, match=r"model\.skops: refused, 'zeros\.npy' in it is compressed"):
        load_estimator(payload, payload_digest(payload))


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
        load_estimator(payload, payload_digest(payload))


def test_an_archive_in_an_archive_that_unpacks_to_more_is_refused(
    payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse matrix is read by skops whatever class it claims to be, and is compressed."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", bytes(5_000_000))
    with zipfile.ZipFile(payload / "model.skops", "a") as archive:
        archive.writestr("bomb.npz", inner.getvalue())
    load_estimator(payload, payload_digest(payload))  # what nothing refers to is read by nobody
    monkeypatch.setattr("clearway.model.MOST_INNER_BYTES", 4_999_999)
    with pytest.raises(ClearwayError, match=r"model\.skops: refused, archives in it claim to hold 5,000,000 bytes"):
        load_estimator(payload, payload_digest(payload))


def test_a_damaged_or_missing_estimator_is_one_clear_line(payload: Path) -> None:
    (payload / "model.skops").write_bytes(b"PK nonsense")
    with pytest.raises(ClearwayError, match=r"model\.skops: not a readable skops file"):
        load_estimator(payload, payload_digest(payload))
    (payload / "model.skops").unlink()
    with pytest.raises(BundleError, match=r"is no payload: expected .*, found features\.json, model\.onnx"):
        load_estimator(payload, payload_digest(payload))
