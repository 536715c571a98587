"""Graphs of denoiser calls, with a recorder that records as a GPU does and needs none; what only a
GPU can show is in tests/gpu."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.images import graphs
from atelier.images.adapters import PLAIN, Adaptation
from atelier.images.batch import BatchRunner
from atelier.images.graphs import GraphStore, map_tensors
from atelier.images.interception import Call, Gate, Stage
from atelier.images.model import ImageModel
from atelier.images.verifier import Verifier
from atelier.settings import Settings
from tests.gpu.drawing import draw_together
from tests.images.test_adapters import save_adapter
from tests.tiny_pipelines import FAMILIES

BYTES = 100


class FakeRecording:
    """Keeps its inputs in buffers of its own and writes its outputs over the last ones."""

    bytes = BYTES

    def __init__(self, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
        self.function, self.replays = function, 0
        self.inputs = map_tensors(dict(kwargs), torch.clone)

    def replay(self, kwargs: Mapping[str, Any]) -> Any:
        self.replays += 1
        for own, given in zip(self.inputs.values(), kwargs.values(), strict=True):
            own.copy_(given)
        return self.function(**self.inputs)


class Denoiser:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        self.calls += 1
        return (2 * x,)


class Doubling(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (2 * x,)


@pytest.fixture
def recorded() -> list[FakeRecording]:
    return []


@pytest.fixture
def store(recorded: list[FakeRecording]) -> GraphStore:
    def record(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> FakeRecording:
        recorded.append(FakeRecording(function, kwargs))
        return recorded[-1]

    return GraphStore(record, max_bytes=3 * BYTES)


def draw(store: GraphStore, key: object, value: float, denoiser: Denoiser | None = None) -> float:
    (result,) = store.call(key, denoiser or Denoiser(), {"x": torch.full((2, 3), value)})
    return float(result[0, 0])


def test_a_key_is_recorded_when_it_comes_again(
    store: GraphStore, recorded: list[FakeRecording]
) -> None:
    assert [draw(store, "a", value) for value in (1, 2, 3, 4)] == [2, 4, 6, 8]
    assert len(recorded) == 1
    assert recorded[0].replays == 3  # the check at capture, and two calls


def test_only_what_will_not_change_any_more_is_worth_timing(
    store: GraphStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The plain call before a recording and the recording itself tell nothing of a replay."""
    settled = [(draw(store, "a", 1), store.settled)[1] for _ in range(4)]
    assert settled == [False, False, True, True]

    def refuse(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    refusing = GraphStore(refuse, max_bytes=BYTES)
    settled = [(draw(refusing, "a", 1), refusing.settled)[1] for _ in range(4)]
    assert settled == [False, False, True, True]


def test_the_pace_learns_from_replays_alone(store: GraphStore) -> None:
    runner = BatchRunner(8, Verifier(), store)
    gate = Gate("transformer", Doubling(), "forward", Stage.DENOISE)
    call = Call(gate, (torch.ones(2, 3),), {})
    call.layout = gate.stacker.layout(call.args, call.kwargs, id)
    typical = [(runner.run("pipeline", [call]), runner.typical)[1] for _ in range(4)]
    assert typical == [False, False, True, True]


def test_what_is_seldom_used_goes_first(store: GraphStore, recorded: list[FakeRecording]) -> None:
    for key in "abc":
        draw(store, key, 1), draw(store, key, 1)
    draw(store, "a", 1)
    draw(store, "d", 1), draw(store, "d", 1)
    assert len(store) == 3
    before = recorded[0].replays
    draw(store, "a", 1)
    assert recorded[0].replays == before + 1
    assert draw(store, "b", 5) == 10
    assert len(recorded) == 5  # b was forgotten and is recorded anew


def test_a_call_that_cannot_be_recorded_runs_as_before(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    store = GraphStore(refuse, max_bytes=BYTES)
    with caplog.at_level(logging.WARNING):
        assert [draw(store, "a", value) for value in (1, 2, 3)] == [2, 4, 6]
    assert len(caplog.records) == 1
    assert "not permitted" in caplog.text


def test_a_replay_that_differs_is_never_used(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(FakeRecording):
        def replay(self, kwargs: Mapping[str, Any]) -> Any:
            return (super().replay(kwargs)[0] + 1,)

    store = GraphStore(Wrong, max_bytes=BYTES)
    assert [draw(store, "a", value) for value in (1, 2, 3)] == [2, 4, 6]
    assert len(store) == 0
    assert "differs" in caplog.text


def test_clearing_forgets_what_was_recorded(
    store: GraphStore, recorded: list[FakeRecording]
) -> None:
    draw(store, "a", 1), draw(store, "a", 1)
    store.clear()
    assert (len(store), store.bytes) == (0, 0)
    draw(store, "a", 1)
    assert len(recorded) == 1


def test_a_pool_serves_as_long_as_a_graph_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch cannot be asked here; tests/gpu/test_graphs.py does."""

    class PooledRecording(FakeRecording):
        def __init__(self, function: Any, kwargs: Mapping[str, Any], pool: int) -> None:
            super().__init__(function, kwargs)
            self.pool = pool

    pools = itertools.count(1)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(graphs, "CudaRecording", PooledRecording)
    store = GraphStore(graphs.CudaRecorder(), 9 * BYTES)

    def pools_in_use() -> set[Any]:
        return {recording.pool for recording in store._graphs.values()}  # type: ignore[attr-defined]

    for key in "aabb":
        draw(store, key, 1)
    assert (len(store), pools_in_use()) == (2, {1})
    store.forget(lambda key: key == "a")
    draw(store, "c", 1), draw(store, "c", 1)
    assert pools_in_use() == {1}
    store.clear()
    for key in "aabb":
        draw(store, key, 1)
    assert (len(store), pools_in_use()) == (2, {2})


def test_what_a_denoiser_takes_out_of_its_arguments_is_there_the_next_time(
    store: GraphStore,
) -> None:
    """T2I-Adapters' features are taken out of the list that a UNet is given."""

    def taking(x: torch.Tensor, features: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (x + features.pop(),)

    for _ in range(2):
        arguments = {"x": torch.ones(2, 3), "features": [torch.ones(2, 3)]}
        (result,) = store.call("a", taking, arguments)
        assert float(result[0, 0]) == 2 and len(arguments["features"]) == 1


def test_an_adapter_that_is_loaded_again_is_recorded_again(
    store: GraphStore, recorded: list[FakeRecording]
) -> None:
    runner = BatchRunner(8, Verifier(), store)
    gate = Gate("transformer", Doubling(), "forward", Stage.DENOISE)
    call = Call(gate, (torch.ones(2, 3),), {})
    call.layout = gate.stacker.layout(call.args, call.kwargs, id)
    with_ink, with_oil = (Adaptation(loras=((name, 0.5),)) for name in ("ink", "oil"))
    for adaptation in (with_ink, with_oil, PLAIN):
        for _ in range(3):
            runner.run("pipeline", [call], adaptation)
    assert len(recorded) == len(store) == 3
    runner.forget_adapter("ink")
    assert len(store) == 2
    old, plain = recorded[0].replays, recorded[2].replays
    for _ in range(3):
        runner.run("pipeline", [call], with_ink)
    assert len(recorded) == 4 and recorded[0].replays == old
    runner.run("pipeline", [call], PLAIN)
    assert recorded[2].replays == plain + 1


def test_what_max_loras_drops_leaves_no_graph(tmp_path: Path) -> None:
    class Repeating:
        bytes = 1

        def __init__(self, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
            self.replay = lambda kwargs: function(**map_tensors(dict(kwargs), torch.clone))

        def again(self) -> None: ...

    folder = FAMILIES["sd15"](tmp_path)
    for seed, name in enumerate(("ink", "oil")):
        save_adapter(folder, tmp_path / "loras", f"{name}.safetensors", seed)
    given = {"model_id": str(folder), "device": "cpu", "warmup": "off", "max_loras": 1}
    model = ImageModel(Settings(**given, lora_paths=[str(tmp_path / "loras")]))
    model.load()
    try:
        assert model._engine is not None
        store = model._engine.runner._graphs = GraphStore(Repeating, max_bytes=1000)
        drawn = {"prompt": "a cup", "num_inference_steps": 4, "width": 64, "height": 64}
        for name in ("ink", "oil", "ink"):
            asyncio.run(draw_together(model, [drawn | {"lora": {name: 1.0}}]))
            assert {key[0][2].loras for key in store._graphs} == {((name, 1.0),)}
    finally:
        model.close()
