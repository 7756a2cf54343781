"""Where the parts of a fit run; what a real cluster does is in tests/integration/test_training_on_a_cluster.py."""

import threading

import numpy as np
import pytest
from joblib import Parallel, delayed
from threadpoolctl import threadpool_info

from clearway.errors import UsageError
from clearway.parallel import different_versions, in_order, joblib_backend, numeric_threads
from clearway.params import JoblibParams


def threads_of(api: str) -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == api}


def test_linear_algebra_has_one_thread_whatever_is_asked_for() -> None:
    with numeric_threads(2):
        assert threads_of("blas") == {1}
        assert threads_of("openmp") <= {2}


def workers(count: int) -> int:
    meet = threading.Barrier(count, timeout=10)
    return len(
        set(
            Parallel(prefer="threads")(delayed(lambda: (meet.wait(), threading.get_ident())[1])() for _ in range(count))
        )
    )


def test_tasks_that_ask_for_no_number_get_the_configured_threads_and_in_order_one() -> None:
    with joblib_backend(JoblibParams(), threads=3):
        assert workers(3) == 3
        with in_order():
            assert workers(1) == 1
            assert len(set(Parallel(n_jobs=3)(delayed(threading.get_ident)() for _ in range(9)))) == 1


def test_workers_must_have_the_same_versions() -> None:
    here = {"scikit-learn": "1.9.1", "numpy": "2.4.0"}
    assert different_versions(here, {"tcp://a": {**here, "pandas": "1"}}) == ""
    there = {"tcp://a": here, "tcp://b": {**here, "numpy": "2.3.0"}}
    assert different_versions(here, there) == "worker tcp://b has numpy 2.3.0, here it is 2.4.0"
    assert "worker tcp://c has numpy (not installed)" in different_versions(
        here, {"tcp://c": {"scikit-learn": "1.9.1"}}
    )


def test_a_backend_that_is_not_installed_names_what_to_run() -> None:
    pytest.importorskip("joblib")
    try:
        import ray  # noqa: F401
    except ImportError:
        chosen = JoblibParams(backend="ray", address="auto")
        with (
            pytest.raises(UsageError, match=r"train\.joblib\.backend = ray .*: run `pip install -e '\.\[ray\]'`"),
            joblib_backend(chosen, 1),
        ):
            pass


@pytest.mark.parametrize(
    ("backend", "address"),
    [("dask", None), ("ray", None), ("local", "tcp://127.0.0.1:8786")],
)
def test_a_cluster_needs_an_address_and_this_machine_has_none(backend: str, address: str | None) -> None:
    with pytest.raises(ValueError, match=r"give the address of a cluster, and none for local"):
        JoblibParams.model_validate({"backend": backend, "address": address})


@pytest.mark.parametrize("address", ["http://127.0.0.1:8786", "tcp://127.0.0.1", "hello world", ""])
def test_an_address_that_dask_cannot_have_is_named_before_it_is_asked(address: str) -> None:
    with pytest.raises(ValueError, match=r"give one such as tcp://HOST:PORT"):
        JoblibParams.model_validate({"backend": "dask", "address": address})
