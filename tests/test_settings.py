"""Settings: every bad value is told in a line, secrets stay secret, and the tables on the
settings page are the class's own."""

from __future__ import annotations

import json
import logging
from itertools import groupby
from pathlib import Path

import pytest
from pydantic import SecretStr

from atelier.cli.settings_table import BEGIN, END, markdown, renew, renewed
from atelier.errors import SettingsError
from atelier.logs import _Json, _Text
from atelier.settings import Settings, ignored, load_settings, rows
from atelier.settings.groups import GROUPS
from atelier.settings.loading import OLD_NAMES

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
SECRETS = (
    "HF_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "API_KEYS",
    "MCP_ENDPOINT_KEY",
)

BAD = [
    ("TASK", "video", "'auto', 'image' or 'text'"),
    ("WEIGHTS_CACHE", "memory", "'disk' or 'off'"),
    ("MAX_LORAS", "0", "greater than or equal to 1"),
    ("DEFAULT_LORA", "ink=much", "name or name=number"),
    ("ALLOW_PICKLE", "perhaps", "true or false"),
    ("PROMPT_LOOKUP", "4", "true or false"),
    ("NUM_SPECULATIVE_TOKENS", "17", "less than or equal to 16"),
    ("TRUST_REMOTE_CODE", "2", "true or false"),
    ("DEVICE", "gpu", "auto, cpu, cuda"),
    ("DTYPE", "fp8", "'bfloat16'"),
    ("QUANTIZATION", "int4", "'nf4'"),
    ("ENABLE_LOW_CPU_MEM", "low", "'auto', 'true' or 'false'"),
    ("ENABLE_ATTENTION_SLICING", "max", "'auto', 'true' or 'false'"),
    ("ENABLE_VAE_SLICING", "8", "'auto', 'true' or 'false'"),
    ("ENABLE_VAE_TILING", "2", "'auto', 'true' or 'false'"),
    ("ENABLE_CPU_OFFLOAD", "model", "'auto', 'true' or 'false'"),
    ("SHARD_WEIGHTS", "half", "'auto', 'true' or 'false'"),
    ("COMPILE", "fast", "'regional'"),
    ("WARMUP_SIZES", "1024x1024,big", "WIDTHxHEIGHT"),
    ("SKIP_WARMUP", "skip", "true or false"),
    ("MEMORY_FRACTION", "1.5", "less than or equal to 1"),
    ("OMP_NUM_THREADS", "0", "greater than or equal to 1"),
    ("MAX_PIXELS", "4", "greater than or equal to 64"),
    ("SIZE_FALLBACK", "closest", "'refuse' or 'nearest'"),
    ("MAX_STEPS", "many", "a valid integer"),
    ("MAX_IMAGES_PER_REQUEST", "-1", "greater than or equal to 1"),
    ("MAX_BODY_BYTES", "64 megabytes", "a valid integer"),
    ("ALLOWED_ORIGINS", "app.example.com", "an origin such as https://app.example.com"),
    ("ALLOWED_IMAGE_HOSTS", "*.example.com", "names of hosts, one by one"),
    ("PUBLIC_URL", "pictures.example.com", "a URL such as https://host"),
    ("MAX_BATCH_SIZE", "0", "greater than or equal to 1"),
    ("MAX_QUEUE_SIZE", "1.5", "a valid integer"),
    ("SAFETY_ACTION", "hide", "'block', 'blur' or 'flag'"),
    ("SAFETY_LABELS", "nsfw=high", "name or name=number"),
    ("PROMPT_LABELS", "violence=1=2", "name or name=number"),
    ("PROVENANCE", "exif", "'off', 'metadata' or 'c2pa'"),
    ("OUTPUT_URL", "https://bucket/x", "s3://bucket/prefix"),
    ("ALLOWED_OUTPUTS", "s3://kept/a,s3://kept/../b", "no empty, . or .. parts"),
    ("REQUEST_TIMEOUT", "0", "greater than 0"),
    ("MCP_INLINE_BYTES", "1", "greater than or equal to 4096"),
    ("DRAIN_SECONDS", "-1", "greater than or equal to 0"),
    ("ENGINE", "tgi", "'transformers', 'vllm', 'sglang', 'vllm-omni' or 'llamacpp'"),
    ("ENGINE_FORCE", "maybe", "true or false"),
    ("TENSOR_PARALLEL_SIZE", "0", "greater than or equal to 1"),
    ("MAX_MODEL_LEN", "1", "greater than or equal to 16"),
    ("GPU_MEMORY_UTILIZATION", "1.2", "less than or equal to 1"),
    ("WARMUP", "long", "'auto' or 'off'"),
    ("WARMUP_PROMPTS", "long", "a valid integer"),
    ("LOG_FORMAT", "xml", "'text' or 'json'"),
    ("LOG_LEVEL", "loud", "'debug'"),
    ("LOG_PROMPTS", "ja", "true or false"),
    ("HF_HUB_OFFLINE", "maybe", "true or false"),
]
ANY_TEXT = (str, list[str], Path, SecretStr, SecretStr | None, list[SecretStr])


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(("variable", "value", "allowed"), BAD)
def test_a_bad_value_is_one_line_with_variable_value_and_what_is_allowed(
    variable: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as told:
        load_settings()
    line = told.value.message
    assert "\n" not in line
    assert line.startswith(f"{variable}='{value}' is not valid: allowed: ")
    assert allowed in line


@pytest.mark.parametrize(
    "name", [n for n, f in Settings.model_fields.items() if f.annotation not in ANY_TEXT]
)
def test_no_variable_that_is_not_text_takes_nonsense(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name.upper(), "?!")
    with pytest.raises(SettingsError) as told:
        load_settings()
    line = told.value.message
    assert "\n" not in line
    assert line.startswith(f"{name.upper()}=") and " is not valid: allowed: " in line


def test_all_bad_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_STEPS", "x")
    monkeypatch.setenv("DTYPE", "y")
    with pytest.raises(SettingsError) as told:
        load_settings()
    assert sorted(line.split("=")[0] for line in told.value.message.splitlines()) == [
        "DTYPE",
        "MAX_STEPS",
    ]


def test_options_override_variables_and_variables_override_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().max_steps == 150
    monkeypatch.setenv("MAX_STEPS", "99")
    assert load_settings().max_steps == 99
    assert load_settings(max_steps=7).max_steps == 7
    assert load_settings(max_steps=None).max_steps == 99  # an option that was not given


def test_words_and_names_may_come_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("enable_vae_tiling", "True")
    monkeypatch.setenv("DTYPE", "BFloat16")
    assert (load_settings().enable_vae_tiling, load_settings().dtype) == ("true", "bfloat16")


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_PATHS", "/a, /b,")
    monkeypatch.setenv("DEFAULT_LORA", "ink=0.5,paper")
    settings = load_settings()
    assert settings.lora_paths == ["/a", "/b"]
    assert settings.default_adapters == {"ink": 0.5, "paper": 1.0}


SPELLED: list[tuple[str, str, str, object]] = [
    ("MAX_STEPS", "  \n", "max_steps", 150),
    ("AWS_DEFAULT_REGION", "\n", "aws_default_region", "us-east-1"),
    ("HF_TOKEN", " ", "hf_token", None),
    ("API_KEYS", "\n", "api_keys", []),
    ("MAX_STEPS", '"50"', "max_steps", 50),
    ("MODEL_ID", "'s3://bucket/sd'\n", "model_id", "s3://bucket/sd"),
    ("ENGINE_ARGS", '--name "a b"', "engine_args", '--name "a b"'),
    ("ENABLE_CUDA_GRAPHS", "Yes", "enable_cuda_graphs", "true"),
    ("ENABLE_VAE_TILING", "0", "enable_vae_tiling", "false"),
    ("ENABLE_VAE_SLICING", "on", "enable_vae_slicing", "true"),
    ("MAX_BODY_BYTES", "64Mi", "max_body_bytes", 64 * 2**20),
    ("RESULT_BYTES", "1.5 GB", "result_bytes", 1_500_000_000),
    ("LORA_PATHS", "a/ring\nb/cup\n", "lora_paths", ["a/ring", "b/cup"]),
    ("LORA_PATHS", '["a/ring", "b/cup"]', "lora_paths", ["a/ring", "b/cup"]),
    ("ALLOWED_ORIGINS", "https://App.example.com/", "allowed_origins", ["https://app.example.com"]),
    ("ALLOWED_IMAGE_HOSTS", "https://A.example.com/x,b:8080", "allowed_image_hosts",
     ["a.example.com", "b"]),
]  # fmt: skip


@pytest.mark.parametrize(("variable", "text", "field", "value"), SPELLED)
def test_a_variable_in_the_spellings_of_manifests_and_env_files(
    variable: str, text: str, field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings(), field) == value


@pytest.mark.parametrize("empty", ["", " ", "\n", '""'])
def test_an_empty_variable_hides_no_profile_and_is_no_old_name(
    empty: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("MEMORY_FRACTION", "GPU_MEMORY_UTILIZATION", "SKIP_WARMUP", "WARMUP"):
        monkeypatch.setenv(name, empty)
    settings = load_settings(profile="qwen3-32b-awq-2x24g")
    assert (settings.memory_fraction, settings.warmup) == (0.92, "auto")
    assert settings.warmup_prompts == load_settings().warmup_prompts
    assert caplog.messages == []


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_shown_nowhere(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(secret, "hunter2,hunter3")
    settings = load_settings()
    [row] = [row for row in rows(settings) if row.variable == secret]
    assert row.value == "set"
    record = logging.LogRecord("a", logging.INFO, "", 0, "settings %s", (settings,), None)
    record.fields = {"settings": settings}
    shown = [
        str(rows(settings)),
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        markdown(),
    ]
    shown += [_Json("").format(record), _Text("").format(record)]
    assert not [text for text in shown if "hunter" in text]


def test_a_bad_secret_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as told:
        load_settings(hf_token=["hunter2"])
    assert told.value.message.startswith("HF_TOKEN=(hidden) is not valid: ")
    assert "hunter2" not in told.value.message


def test_the_name_in_urls_is_made_of_the_model_id() -> None:
    names = {
        "builtin/shapes": "shapes",
        "/mnt/models/": "models",
        "s3://bucket/some/sdxl": "sdxl",
        "owner/name@v1": "name",
        "/a/my model.safetensors": "my-model",
    }
    assert {source: load_settings(model_id=source).served_name for source in names} == names
    assert load_settings(model_id="builtin/shapes", model_name="other").served_name == "other"


def test_every_variable_has_a_line_of_help() -> None:
    assert [row.variable for row in rows() if not row.help.endswith(".")] == []


def test_the_page_has_the_current_tables() -> None:
    text = PAGE.read_text()
    assert renewed(text, "settings.md") == text, "run: atelier settings --into docs/settings.md"


def test_the_table_is_renewed_between_its_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_STEPS", "99")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert renew(page) and not renew(page)
    assert page.read_text() == f"before\n{BEGIN}\n\n{markdown()}\n\n{END}\nafter\n"
    assert "| `MAX_STEPS` | `150` | Largest num_inference_steps. |" in markdown()


@pytest.mark.parametrize(
    "text", ["none", f"{BEGIN} no end", f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"]
)
def test_a_page_without_room_for_the_table_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=f"page.md needs the lines {BEGIN}"):
        renewed(text, "page.md")


def test_json_log_lines_parse_whatever_is_in_them() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, 'say "%s"\n', ("äß\x00",), None)
    assert json.loads(_Json("").format(record))["message"] == 'say "äß\x00"\n'


OLD = [
    ("GPU_MEMORY_UTILIZATION", "0.7", "memory_fraction", 0.7, "0.6", 0.6),
    ("SKIP_WARMUP", "true", "warmup", "off", "auto", "auto"),
    ("SKIP_WARMUP", "False", "warmup", "auto", "off", "off"),
    ("WARMUP", "64, 256", "warmup_prompts", [64, 256], "32", [32]),
]


@pytest.mark.parametrize(("old", "text", "field", "means", "new", "wins"), OLD)
def test_an_old_name_works_with_one_warning_and_the_new_one_wins(
    old: str,
    text: str,
    field: str,
    means: object,
    new: str,
    wins: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(old, text)
    settings = load_settings()
    assert getattr(settings, field) == means
    assert field in settings.model_fields_set
    [line] = caplog.messages
    assert f"{old}={text}" in line and field.upper() in line
    caplog.clear()
    monkeypatch.setenv(field.upper(), new)
    assert getattr(load_settings(), field) == wins
    [line] = caplog.messages
    assert f"{old} is the old name of {field.upper()}" in line


def test_every_old_name_is_tested() -> None:
    assert {name.variable for name in OLD_NAMES} == {row[0] for row in OLD}


def test_a_variable_that_is_gone_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STEP_CACHE_THRESHOLD", "0.08")
    load_settings()
    [line] = caplog.messages
    assert line.startswith("STEP_CACHE_THRESHOLD=0.08 is ignored: STEP_CACHE names a level")


def test_old_names_that_collide_with_new_ones_work_together(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WARMUP", "128")
    monkeypatch.setenv("SKIP_WARMUP", "true")
    settings = load_settings()
    assert (settings.warmup, settings.warmup_prompts) == ("off", [128])
    assert len(caplog.messages) == 2


def test_an_old_name_overrides_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(profile="qwen3-32b-awq-2x24g").memory_fraction == 0.92
    monkeypatch.setenv("GPU_MEMORY_UTILIZATION", "0.8")
    assert load_settings(profile="qwen3-32b-awq-2x24g").memory_fraction == 0.8


def test_the_bad_value_of_an_old_name_is_told_with_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"SKIP_WARMUP": "skip", "GPU_MEMORY_UTILIZATION": "2", "TASK": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as told:
        load_settings()
    assert sorted(line.split("=")[0] for line in told.value.message.splitlines()) == [
        "GPU_MEMORY_UTILIZATION",
        "SKIP_WARMUP",
        "TASK",
    ]


def test_settings_come_in_groups_each_in_one_piece() -> None:
    titles = [group.title for group in GROUPS]
    assert [title for title, _ in groupby(row.group for row in rows())] == titles
    assert len(titles) == 11


def test_what_the_server_does_not_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_STEPS", "9")
    monkeypatch.setenv("KV_CACHE_DTYPE", "fp8")
    monkeypatch.setenv("MAX_QUEUE_SIZE", "9")
    monkeypatch.setenv("MAX_LORAS", "8")  # the default: nothing is lost by not reading it
    settings = load_settings()
    assert ignored(settings, "image") == ["KV_CACHE_DTYPE"]
    assert ignored(settings, "vllm") == ["MAX_STEPS"]
    assert ignored(settings, "text") == ["MAX_STEPS", "KV_CACHE_DTYPE"]
    assert ignored(load_settings(max_steps=None), "llamacpp") == ["MAX_STEPS", "KV_CACHE_DTYPE"]
