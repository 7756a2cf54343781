import pytest

from clearway.served_latency import ServedLatency, served_latency_gate, served_memory_gate

MEASURED = ServedLatency(p50_ms=2.0, p95_ms=8.0, p99_ms=20.0, rss_mb=150.0, requests=300)


@pytest.mark.parametrize(
    ("p95", "p99", "status"),
    [(8.0, None, "pass"), (7.9, None, "fail"), (8.0, 20.0, "pass"), (8.0, 19.9, "fail"), (7.9, 30.0, "fail")],
)
def test_p95_is_limited_and_p99_where_it_is_asked(p95: float, p99: float | None, status: str) -> None:
    gate = served_latency_gate(MEASURED, p95, p99)
    assert (gate.name, gate.status, gate.estimate) == ("served_latency_p95_ms", status, 8.0)
    assert (gate.threshold, gate.n) == (p95, 300)
    assert "p50 2, p95 8, p99 20 ms" in gate.detail


@pytest.mark.parametrize(("most", "status"), [(150.0, "pass"), (149.9, "fail")])
def test_memory_of_the_server_is_limited(most: float, status: str) -> None:
    gate = served_memory_gate(MEASURED, most)
    assert (gate.name, gate.status, gate.estimate, gate.n) == ("served_memory_mb", status, 150.0, 300)
    assert gate.detail.startswith("after 300 requests the server's process takes 150 MB")


@pytest.mark.parametrize("served", [ServedLatency(problem="it did not start"), ServedLatency(1.0, float("nan"), 1.0)])
def test_what_was_not_measured_fails(served: ServedLatency) -> None:
    gate = served_latency_gate(served, 1e9)
    assert gate.status == "fail"
    assert gate.detail == f"latency through the server was not measured: {served.problem or 'no number'}"
    memory = served_memory_gate(served, 1e9)
    assert memory.status == "fail"
    assert memory.detail == f"memory of the server was not measured: {served.problem or 'no number'}"
