"""Private names of libraries that the code relies on: each is there, each is on the page, and no
other is used. After an upgrade this fails first; docs/private-names.md says what each is for."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from multiprocessing import forkserver, reduction
from typing import Any

import botocore.client
import diffusers
import kserve
import pytest
import torch
import transformers
import uvicorn
from diffusers.hooks import HookRegistry, group_offloading
from diffusers.loaders import PeftAdapterMixin, lora_conversion_utils
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.utils import dummy_pt_objects
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.infer_type import InferInput
from kserve.protocol.rest.server import RESTServer
from tqdm.std import TqdmDefaultWriteLock

from tests.test_structure import FILES, ROOT

PAGE = (ROOT / "docs" / "private-names.md").read_text()


def assigned(where: Any, name: str) -> bool:
    """Whether instances get the attribute, which a class does not show."""
    return f"self.{name} =" in inspect.getsource(where)


def has(where: Any, name: str) -> Callable[[], bool]:
    return lambda: hasattr(where, name)


THERE: dict[str, Callable[[], bool]] = {
    "kserve.ModelServer._serve": lambda: inspect.iscoroutinefunction(kserve.ModelServer._serve),
    "kserve.ModelServer._rest_server": lambda: assigned(kserve.ModelServer, "_rest_server"),
    "kserve.ModelServer._grpc_server": lambda: assigned(kserve.ModelServer, "_grpc_server"),
    "RESTServer._server": lambda: assigned(RESTServer, "_server"),
    "GRPCServer._server": lambda: assigned(GRPCServer, "_server"),
    "InferInput._raw_data": lambda: InferInput("a", [1], "BYTES")._raw_data is None,
    "uvicorn.Server.handle_exit": lambda: (
        callable(uvicorn.Server.handle_exit) and assigned(uvicorn.Server, "should_exit")
    ),
    "TqdmDefaultWriteLock.mp_lock": lambda: "mp_lock" in inspect.getsource(TqdmDefaultWriteLock),
    "forkserver.ensure_running": has(forkserver, "ensure_running"),
    "reduction.DupFd": has(reduction, "DupFd"),
    "DiffusionPipeline._execution_device": has(diffusers.DiffusionPipeline, "_execution_device"),
    "DiffusionPipeline._all_hooks": lambda: assigned(diffusers.DiffusionPipeline, "_all_hooks"),
    "PeftAdapterMixin._hf_peft_config_loaded": has(PeftAdapterMixin, "_hf_peft_config_loaded"),
    "lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers": has(
        lora_conversion_utils, "_maybe_map_sgm_blocks_to_diffusers"
    ),
    "group_offloading._maybe_remove_and_reapply_group_offloading": has(
        group_offloading, "_maybe_remove_and_reapply_group_offloading"
    ),
    "ModelMixin._repeated_blocks": lambda: (
        "FluxTransformerBlock" in diffusers.FluxTransformer2DModel._repeated_blocks
    ),
    "Transformer2DModel._get_output_for_continuous_inputs": has(
        Transformer2DModel, "_get_output_for_continuous_inputs"
    ),
    "SchedulerMixin._compatibles": lambda: (
        "DDIMScheduler" in diffusers.EulerDiscreteScheduler._compatibles
    ),
    "DummyObject._backends": lambda: dummy_pt_objects.DDIMScheduler._backends == ["torch"],
    "StableDiffusionPipeline._num_timesteps": lambda: assigned(
        diffusers.StableDiffusionPipeline, "_num_timesteps"
    ),
    "FluxAttnProcessor._attention_backend": has(FluxAttnProcessor, "_attention_backend"),
    "FluxAttnProcessor._parallel_config": has(FluxAttnProcessor, "_parallel_config"),
    "FluxTransformer2DModel._cp_plan": lambda: "" in diffusers.FluxTransformer2DModel._cp_plan,
    "HookRegistry._diffusers_hook": lambda: (
        "module._diffusers_hook" in inspect.getsource(HookRegistry.check_if_exists_or_initialize)
        and "hook.fn_ref = " in inspect.getsource(HookRegistry.register_hook)
    ),
    "FluxPipeline._pack_latents": has(diffusers.FluxPipeline, "_pack_latents"),
    "FluxPipeline._prepare_latent_image_ids": has(
        diffusers.FluxPipeline, "_prepare_latent_image_ids"
    ),
    "PreTrainedModel._supports_sdpa": has(transformers.PreTrainedModel, "_supports_sdpa"),
    "GemmaTokenizer._vocab": lambda: assigned(transformers.GemmaTokenizer, "_vocab"),
    "GemmaTokenizer._merges": lambda: assigned(transformers.GemmaTokenizer, "_merges"),
    "torch.utils._pytree": lambda: all(
        hasattr(torch.utils._pytree, name)
        for name in ("tree_flatten", "tree_unflatten", "tree_leaves", "tree_map")
    ),
    "torch._dynamo": lambda: hasattr(torch._dynamo.config, "recompile_limit"),
    "torch._scaled_mm": has(torch, "_scaled_mm"),
    "torch._foreach_sub": has(torch, "_foreach_sub"),
    "torch._foreach_mul_": has(torch, "_foreach_mul_"),
    "torch._foreach_add_": has(torch, "_foreach_add_"),
    "torch._foreach_lerp": has(torch, "_foreach_lerp"),
    "torch._foreach_lerp_": has(torch, "_foreach_lerp_"),
    "torch._foreach_copy_": has(torch, "_foreach_copy_"),
    "torch.ops.aten._flash_attention_forward": has(torch.ops.aten, "_flash_attention_forward"),
    "torch.ops.mkldnn._reorder_linear_weight": has(torch.ops.mkldnn, "_reorder_linear_weight"),
    "torch.ops.mkldnn._linear_pointwise": has(torch.ops.mkldnn, "_linear_pointwise"),
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": has(
        torch.ops.mkldnn, "_is_mkldnn_bf16_supported"
    ),
    "torch.compile()._torchdynamo_orig_callable": lambda: hasattr(
        torch.compile(abs), "_torchdynamo_orig_callable"
    ),
    "torch.UntypedStorage._cdata": lambda: isinstance(torch.UntypedStorage(1)._cdata, int),
    "botocore.client.BaseClient._get_credentials": has(
        botocore.client.BaseClient, "_get_credentials"
    ),
}


@pytest.mark.parametrize("name", THERE)
def test_a_private_name_is_still_there(name: str) -> None:
    assert THERE[name](), f"{name} is gone: docs/private-names.md says what relies on it"


def test_the_page_lists_what_is_looked_up() -> None:
    assert re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE) == list(THERE)


def private(name: object) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"_[a-z]\w*", name))


def used(tree: ast.AST) -> set[str]:
    """Private attributes that are read or set, by name too, and private names that are imported;
    not those of `self`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found |= set() if own else {node.attr}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("getattr", "setattr", "hasattr") and len(node.args) > 1:
                found |= {getattr(node.args[1], "value", "")}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return {name for name in found if private(name)}


def defined(tree: ast.AST) -> set[str]:
    """Private names that a file of ours gives to functions and to attributes of `self`."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
    found |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    return found | {"_exit"}  # os._exit is documented


def test_no_other_private_name_is_used() -> None:
    listed = {name.rsplit(".", 1)[-1] for name in THERE}
    for module, path in FILES.items():
        if module.split(".")[0] in ("atelier", "atelier_training"):
            tree = ast.parse(path.read_text())
            unknown = used(tree) - defined(tree) - listed
            assert not unknown, f"{module} uses {sorted(unknown)}: list it in docs/private-names.md"
