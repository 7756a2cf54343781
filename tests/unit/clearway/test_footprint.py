from pathlib import Path

import numpy as np
import pytest

from clearway.footprint import MemoryGrowth, measure_memory, memory_gate, payload_bytes, size_gate


def test_a_payload_is_as_large_as_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 1000)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "schema.json").write_bytes(b"y" * 24)
    assert payload_bytes(tmp_path) == 1024


@pytest.mark.parametrize(("size", "status"), [(2**20, "pass"), (2**20 + 1, "fail"), (0, "fail")])
def test_a_bundle_is_at_most_as_large_as_allowed_and_not_empty(size: int, status: str) -> None:
    gate = size_gate(size, 1.0)
    assert (gate.name, gate.status, gate.estimate, gate.threshold) == ("bundle_size", status, size / 2**20, 1.0)


@pytest.mark.parametrize(("mb", "status"), [(99.9, "pass"), (100.0, "pass"), (100.1, "fail")])
def test_memory_is_at_most_what_is_allowed(mb: float, status: str) -> None:
    gate = memory_gate(MemoryGrowth(mb), 100)
    assert (gate.name, gate.status, gate.estimate, gate.threshold) == ("memory", status, mb, 100)


@pytest.mark.parametrize("growth", [MemoryGrowth(None, "it was killed"), MemoryGrowth(float("nan"))])
def test_memory_that_was_not_measured_fails(growth: MemoryGrowth) -> None:
    gate = memory_gate(growth, 1e9)
    assert gate.status == "fail"
    assert gate.detail == f"memory was not measured: {growth.problem or 'no number'}"


def test_without_rows_nothing_is_measured(tmp_path: Path) -> None:
    growth = measure_memory(tmp_path, "0" * 64, np.empty((0, 3), dtype=np.float32))
    assert growth == MemoryGrowth(None, "there are no rows to score")
