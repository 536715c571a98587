"""Command lines of child engines, profiles, caches and the cache's size: all without an engine."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from atelier import profiles
from atelier.errors import PlanError, SettingsError, SourceError, StartError
from atelier.hardware.container import usable_cpus
from atelier.settings import Settings, load_settings
from atelier.text.child.command_line import command_line
from atelier.text.child.specs import SPECS, served_paths
from atelier.text.compile_cache import compile_cache
from atelier.text.embedded.capacity import plan_capacity
from atelier.text.refused_settings import check_embedded


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An engine's environment folder with nothing in it but names."""
    for name in ("python", "sglang", "llama-server"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).touch()
    return tmp_path


def line(environment: Path, **settings: object) -> list[str]:
    return command_line(
        Settings(engine_path=str(environment), **settings), Path("/m"), Path("/s"), 9
    )  # type: ignore[arg-type]


def test_settings_become_vllms_options(environment: Path) -> None:
    command = line(
        environment,
        engine="vllm",
        tensor_parallel_size=2,
        enable_expert_parallel=True,
        max_model_len=131072,
        kv_cache_dtype="fp8",
        tool_call_parser="glm47",
        dtype="float16",
        engine_args="--seed 3",
    )
    text = " ".join(command)
    for part in (
        "--tensor-parallel-size 2",
        "--enable-expert-parallel",
        "--max-model-len 131072",
        "--kv-cache-dtype fp8",
        "--tool-call-parser glm47 --enable-auto-tool-choice",
        "--dtype float16",
    ):
        assert part in text
    assert command[-2:] == ["--seed", "3"]


def test_what_is_not_set_is_left_to_the_engine(environment: Path) -> None:
    text = " ".join(line(environment, engine="vllm"))
    assert "--max-model-len" not in text
    assert "--gpu-memory-utilization" not in text
    assert "--tool-call-parser" not in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--enforce-eager", "ENGINE_FORCE"),
        ("--enable-chunked-prefill", "always on"),
        ("--num-scheduler-steps=8", "obsolete"),
    ],
)
def test_options_that_hurt_are_refused_with_the_reason(
    environment: Path, options: str, said: str
) -> None:
    with pytest.raises(StartError, match=said):
        line(environment, engine="vllm", engine_args=options)


def test_a_harmful_option_can_be_forced_and_an_obsolete_one_cannot(environment: Path) -> None:
    assert "--enforce-eager" in line(
        environment, engine="vllm", engine_args="--enforce-eager", engine_force=True
    )
    with pytest.raises(StartError):
        line(environment, engine="vllm", engine_args="--enable-chunked-prefill", engine_force=True)


def test_sglang_serves_image_models_through_its_own_command(environment: Path) -> None:
    assert line(environment, engine="sglang", task="image")[0].endswith("/bin/sglang")
    assert "sglang.launch_server" in line(environment, engine="sglang")
    with pytest.raises(StartError, match="no image models"):
        line(environment, engine="vllm", task="image")


@pytest.mark.parametrize("name", SPECS)
def test_a_setting_says_which_engines_heed_it(name: str) -> None:
    """One that is set and not passed on is named at start."""
    options = {option for spec in SPECS.values() for option in spec.options}
    heeded = {
        option
        for option in options
        if name in Settings.model_fields[option].json_schema_extra["heeded_by"]  # type: ignore[index,operator]
    }
    assert heeded == set(SPECS[name].options)


def test_adapters_are_not_dropped_without_a_word(environment: Path) -> None:
    with pytest.raises(
        StartError, match=r"LORA_PATHS .*ENGINE=sglang: use ENGINE=vllm, or .* ENGINE_ARGS"
    ):
        line(environment, engine="sglang", lora_paths="/x")


@pytest.mark.parametrize(
    ("engine", "setting", "said"),
    [
        ("vllm", "prompt_lookup", '"method": "ngram", "num_speculative_tokens": 3'),
        ("vllm", "draft", '"model": "{draft}", "num_speculative_tokens": 3}'),
        ("sglang", "prompt_lookup", "NGRAM --speculative-num-draft-tokens 4"),
        ("sglang", "draft", "STANDALONE --speculative-draft-model-path {draft} "),
        ("llamacpp", "prompt_lookup", "ngram-simple --spec-ngram-simple-size-n 3"),
        ("llamacpp", "prompt_lookup", "--spec-ngram-simple-size-m 3"),
        ("llamacpp", "draft", "draft-simple --spec-draft-model {draft}/small.gguf"),
        ("llamacpp", "draft", "--spec-draft-n-max 3"),
    ],
)
def test_guesses_are_handed_to_every_engine_in_its_words(
    environment: Path, tmp_path: Path, engine: str, setting: str, said: str
) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    for name in ("small.gguf", "config.json"):
        (draft / name).touch()
    (tmp_path / "weights.gguf").touch()
    given = {"prompt_lookup": True} if setting != "draft" else {"draft_model_id": str(draft)}
    settings = Settings(
        engine=engine, engine_path=str(environment), num_speculative_tokens=3, **given
    )  # type: ignore[arg-type]
    command = command_line(settings, tmp_path / "weights.gguf", Path("/s"), 9)
    assert said.replace("{draft}", str(draft)) in " ".join(command)
    for word in command:
        if word.startswith("{"):
            assert json.loads(word)["num_speculative_tokens"] == 3


def test_guesses_that_an_engine_cannot_have_are_refused_by_name(environment: Path) -> None:
    both = {"prompt_lookup": True, "draft_model_id": "/x"}
    with pytest.raises(StartError, match="PROMPT_LOOKUP=true and DRAFT_MODEL_ID=/x"):
        line(environment, engine="vllm", **both)
    with pytest.raises(SourceError, match="DRAFT_MODEL_ID=/nowhere is not a path"):
        line(environment, engine="vllm", draft_model_id="/nowhere")


def test_llamacpp_takes_the_gguf_file_of_a_folder(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").touch()
    settings = Settings(engine="llamacpp", engine_path=str(environment))
    assert str(tmp_path / "weights.gguf") in command_line(settings, tmp_path, Path("/s"), 9)
    with pytest.raises(StartError, match="gguf"):
        command_line(settings, environment / "bin", Path("/s"), 9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_model_len": 1024, "max_num_seqs": 8}, "--ctx-size 8192 --parallel 8"),
        ({"max_model_len": 1024}, "--ctx-size 4096 --parallel 4"),
        ({"max_num_seqs": 8}, "--parallel 8 --kv-unified"),
        ({}, "--kv-unified"),
    ],
)
def test_each_slot_of_llamacpp_may_hold_what_one_sequence_may(
    environment: Path, tmp_path: Path, given: dict[str, int], said: str
) -> None:
    (tmp_path / "weights.gguf").touch()
    settings = Settings(engine="llamacpp", engine_path=str(environment), **given)  # type: ignore[arg-type]
    command = " ".join(command_line(settings, tmp_path / "weights.gguf", Path("/s"), 9))
    assert said in command
    assert ("--kv-unified" in command) == ("max_model_len" not in given)


def test_llamacpp_counts_the_cpus_of_the_container(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").touch()

    def threads(**given: object) -> list[str]:
        settings = Settings(engine="llamacpp", engine_path=str(environment), **given)  # type: ignore[arg-type]
        command = command_line(settings, tmp_path / "weights.gguf", Path("/s"), 9)
        return [number for option, number in pairwise(command) if option in ("-t", "--threads")]

    assert threads(omp_num_threads=3) == ["3"]
    assert threads(omp_num_threads=None) == [str(max(1, int(usable_cpus())))]
    assert threads(omp_num_threads=3, engine_args="-t 5") == ["5"]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp"])
def test_responses_are_handed_to_every_engine(engine: str) -> None:
    assert "/v1/responses" in served_paths(Settings(engine=engine))  # type: ignore[arg-type]
    assert "/v1/responses" not in served_paths(Settings(engine=engine, task="image"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "setting",
    [
        {"tensor_parallel_size": 2},
        {"tool_call_parser": "mistral"},
        {"lora_paths": "/x"},
        {"engine_args": "--x"},
    ],
)
def test_the_embedded_engine_refuses_what_only_children_can(setting: dict[str, object]) -> None:
    with pytest.raises(StartError, match=next(iter(setting)).upper()):
        check_embedded(Settings(**setting))  # type: ignore[arg-type]


def test_a_missing_engine_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="ENGINE_PATH"):
        line(tmp_path / "nowhere", engine="vllm")


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_sets_valid_values(name: str) -> None:
    settings = load_settings(profile=name)
    assert settings.model_id == profiles.read(name).values["model_id"]


def test_the_environment_wins_over_a_profile_and_the_command_line_over_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROFILE", "qwen3-8b")
    monkeypatch.setenv("MAX_NUM_SEQS", "7")
    settings = load_settings(max_model_len=1000)
    assert (settings.engine, settings.max_num_seqs, settings.max_model_len) == ("vllm", 7, 1000)


def test_an_unknown_profile_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"qwen3-8b"):
        load_settings(profile="nonsense")


@pytest.mark.parametrize(
    ("gpus", "said"),
    [([24 * 2**30], "there are 1"), ([24 * 2**30, 8 * 2**30], "8.0 GiB"), ([], "0")],
)
def test_a_profile_that_needs_more_gpus_is_refused_with_numbers(gpus: list[int], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        profiles.read("glm-4.7-flash-awq-2x24g").check(gpus)


def test_a_damaged_cache_is_dropped_and_a_good_one_kept(tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path)
    cache = compile_cache(settings, tmp_path)
    cache.prepare()
    kernel = cache.folder / "inductor" / "kernel.bin"
    kernel.parent.mkdir()
    kernel.write_bytes(b"12345")
    cache.seal()
    cache.release()
    compile_cache(settings, tmp_path).prepare()
    assert kernel.exists()
    kernel.write_bytes(b"12")
    compile_cache(settings, tmp_path).prepare()
    assert not kernel.exists()


def test_a_cache_is_never_dropped_under_a_neighbour(tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path)
    neighbour, newcomer = (compile_cache(settings, tmp_path) for _ in range(2))
    neighbour.prepare()
    kernel = neighbour.folder / "kernel.bin"
    kernel.write_bytes(b"12345")
    newcomer.prepare()
    assert newcomer.folder == neighbour.folder and kernel.exists()
    neighbour.seal()
    kernel.write_bytes(b"12")
    newcomer.prepare()
    assert newcomer.folder != neighbour.folder and kernel.exists()


def test_what_a_start_that_died_left_unsealed_is_dropped(tmp_path: Path) -> None:
    cache = compile_cache(Settings(cache_dir=tmp_path), tmp_path)
    cache.prepare()
    (cache.folder / "whole").touch()
    cache.seal()
    (cache.folder / "half").touch()
    cache.prepare()
    assert (cache.folder / "whole").exists() and not (cache.folder / "half").exists()


def test_a_cache_that_was_never_sealed_is_dropped(tmp_path: Path) -> None:
    cache = compile_cache(Settings(cache_dir=tmp_path), tmp_path)
    cache.prepare()
    (cache.folder / "half").touch()
    cache.prepare()
    assert not (cache.folder / "half").exists()


def test_the_cache_gives_up_slots_before_context() -> None:
    plan = plan_capacity(Settings(), "cuda", limit=1000, token_bytes=10, budget=1000 * 10 * 40)
    assert (plan.slots, plan.context) == (40, 1000)
    plan = plan_capacity(Settings(), "cuda", limit=1000, token_bytes=10, budget=1000 * 10 * 4)
    assert (plan.slots, plan.context) == (32, 125)


def test_a_cache_that_was_asked_for_and_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(PlanError, match=r"4 sequences of 1000 tokens needs 0.0 GiB"):
        plan_capacity(Settings(max_num_seqs=4, max_model_len=1000), "cpu", 1000, 10, 39_999)
    with pytest.raises(PlanError, match="exceeds the model's own limit of 500"):
        plan_capacity(Settings(max_model_len=1000), "cpu", 500, 10, 10**9)
