"""Recording of CUDA graphs beside other threads, and what a failure leaves behind. `make test-gpu`
runs this."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

from atelier.images.graphs import CudaRecorder, GraphStore  # noqa: E402


@pytest.fixture
def store() -> GraphStore:
    return GraphStore(CudaRecorder(), 1 << 30)


def test_another_thread_fetches_a_picture_while_a_call_is_recorded(store: GraphStore) -> None:
    picture = torch.full((64, 64), 7.0, device="cuda")
    fetched = []

    def fetch() -> float:
        with torch.cuda.stream(torch.cuda.Stream()):
            return float((picture * torch.ones(64, 64, device="cuda")).cpu().mean())

    def double(x: Any) -> Any:
        if torch.cuda.is_current_stream_capturing():
            fetched.append(other.submit(fetch).result(60))
        return x * 2

    with ThreadPoolExecutor(1) as other:
        for value in (1.0, 2.0, 3.0):
            x = torch.full((8,), value, device="cuda")
            assert store.call("double", double, {"x": x}).tolist() == [2 * value] * 8
    assert fetched == [7.0]
    assert len(store) == 1


def test_calls_are_recorded_again_after_all_graphs_were_forgotten(store: GraphStore) -> None:
    weights = torch.randn(512, 512, device="cuda")

    def product(x: Any) -> Any:
        return x @ weights  # cuBLAS keeps a workspace, and takes it from the pool of the graph

    x = torch.randn(16, 512, device="cuda")
    for _ in range(3):
        for _ in range(3):
            assert torch.allclose(store.call("product", product, {"x": x}), x @ weights, atol=1e-3)
        assert len(store) == 1
        store.clear()


def test_a_graph_counts_the_memory_that_its_call_needs(store: GraphStore) -> None:
    def spread(x: Any) -> Any:
        return x.repeat(1 << 23).mean() + x  # 256 MiB on the way

    x = torch.ones(8, device="cuda")
    for _ in range(2):
        cached = torch.empty(1 << 28, device="cuda")  # 1 GiB, which recording gives back
        del cached
        store.call("spread", spread, {"x": x})
    assert 256 << 20 <= store.bytes < 1 << 30


def test_a_call_that_cannot_be_recorded_runs_on_the_stream_of_before(store: GraphStore) -> None:
    def largest(x: Any) -> Any:
        return x * float(x.max())  # waits for the device, which a recording must not

    before = torch.cuda.current_stream()
    for value in (1.0, 2.0, 3.0):
        x = torch.full((8,), value, device="cuda")
        assert store.call("largest", largest, {"x": x}).tolist() == [value * value] * 8
        assert torch.cuda.current_stream() == before
        assert torch.randn(8, device="cuda").shape == (8,)
    assert len(store) == 0


def test_graphs_that_are_garbage_do_not_end_a_recording(store: GraphStore) -> None:
    def forgotten() -> None:
        graph = torch.cuda.CUDAGraph()
        y = torch.ones(8, device="cuda")
        with torch.cuda.graph(graph):
            y * 2
        circle: list[Any] = [graph]
        circle.append(circle)

    def double(x: Any) -> Any:
        if torch.cuda.is_current_stream_capturing():
            kept = [[number] for number in range(300_000)]  # has Python look for garbage
            assert len(kept) == 300_000
        return x * 2

    x = torch.ones(8, device="cuda")
    gc.collect()
    for number in range(2):
        if number:
            forgotten()
        store.call("double", double, {"x": x})
    assert len(store) == 1
    assert gc.isenabled()
