"""The kernels of fused residual blocks, which only a GPU runs: against plain torch in float64,
alone and in a batch, and that no size has them compiled anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

from torch.nn import functional  # noqa: E402

from atelier.images import compilation  # noqa: E402
from atelier.images.group_norm import group_norm, summed  # noqa: E402
from atelier.images.interception import Gate  # noqa: E402
from atelier.images.residual_blocks import fuse  # noqa: E402
from tests.images.test_residual_blocks import CASES, changed, vae  # noqa: E402

SHAPES = [  # rows, places, channels, groups
    (1, 16, 32, 8),
    (2, 1023, 960, 32),
    (3, 64 * 257, 96, 32),
    (1, 1 << 20, 128, 32),
    (16, 1024, 1280, 32),
    (2, 49, 2560, 32),
    (2, 300, 24, 3),
]
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""Of the largest value. The types have 24, 11 and 8 bits."""


def noise(*shape: int, dtype: Any) -> Any:
    return torch.randn(shape, device="cuda").to(dtype)


def apart(one: Any, wanted: Any) -> float:
    return float((one.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("before", ["nothing", "for all rows", "for each row"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_equal_plain_ones_and_a_row_is_what_it_is_alone(
    shape: tuple[int, int, int, int], before: str, dtype: Any
) -> None:
    rows, places, channels, groups = shape
    torch.manual_seed(0)
    values = 3 * noise(rows, places, channels, dtype=dtype) + 20 * noise(channels, dtype=dtype)
    weight, bias = noise(channels, dtype=dtype), noise(channels, dtype=dtype)
    added = {
        "nothing": None,
        "for all rows": bias.expand(rows, -1),
        "for each row": noise(rows, channels, dtype=dtype),
    }[before]
    moved = values.double() if added is None else values.double() + added.double()[:, None]
    wanted = functional.group_norm(
        moved.transpose(1, 2), groups, weight.double(), bias.double(), 1e-5
    ).transpose(1, 2)
    for silu in (False, True):
        result = group_norm(values, groups, weight, bias, 1e-5, added, silu)
        assert result.dtype == dtype
        assert apart(result, functional.silu(wanted) if silu else wanted) < ROUNDING[dtype]
        for row in {0, rows - 1}:
            own = values[row : row + 1].clone()
            own_added = None if added is None else added[row : row + 1]
            alone = group_norm(own, groups, weight, bias, 1e-5, own_added, silu)
            assert torch.equal(alone[0], result[row])


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_sums_equal_plain_ones(dtype: Any) -> None:
    for rows, places, channels, _ in SHAPES:
        one, other = (noise(rows, places, channels, dtype=dtype) for _ in range(2))
        bias = noise(channels, dtype=dtype)
        wanted = one.double() + other.double() + bias.double()
        assert apart(summed(one, other, bias), wanted) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_fused_model_computes_the_same_on_a_gpu(case: str, dtype: Any) -> None:
    make, run = CASES[case]
    wanted = run(make())
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        model = make().to("cuda", dtype)
        plain = run(model).cpu().double() - wanted.double()
        assert fuse(model)
        fused = run(model).cpu().double() - wanted.double()
    size = wanted.double().norm()
    assert fused.norm() < (1e-5 * size if dtype == torch.float32 else 1.3 * plain.norm())
    assert plain.norm() < 0.02 * size


def test_a_model_on_the_gpu_is_fused() -> None:
    model = vae().cuda()
    compilation.speed_up([Gate("vae", model, "decode")], "regional")
    assert changed(model)


def test_a_model_that_is_partly_in_ram_is_not_fused() -> None:
    model = vae().cuda()
    model.encoder.cpu()
    compilation.speed_up([Gate("vae", model, "decode")], "regional")
    assert not changed(model)


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Names of kernels that Triton had to compile or look for since."""
    import triton

    seen: list[str] = []
    triton.knobs.compilation.listener = lambda src, **told: seen.append(src.name)
    yield seen
    triton.knobs.compilation.listener = None


def test_no_size_has_kernels_compiled_anew(compiled: list[str]) -> None:
    model = vae().cuda()
    fuse(model)

    def decode(rows: int, height: int, width: int) -> None:
        model.decode(torch.randn(rows, 4, height, width, device="cuda"))

    with torch.no_grad():
        decode(1, 8, 8)
        compiled.clear()
        for rows, height, width in ((2, 8, 8), (1, 7, 9), (3, 64, 48), (1, 1, 1), (16, 130, 66)):
            decode(rows, height, width)
    assert compiled == []
