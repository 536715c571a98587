"""Other people's clients, as they come, against real servers: what each case of a program in
`programs/` must give. Their versions are pinned in requirements.txt and package.json."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.conftest import PROGRAMS, RunProgram

ROUND = "a red circle"
DRAWN = "a red circle above a blue square"
SAID = f"Here is your picture: {DRAWN}."
THING = {"shape": "circle", "color": "red"}
VECTORS = [256, 256]
"""Lengths of the embeddings of two texts."""

SQUARE, NATIVE = [128, 128], [128, 128]
"""What 1024x1024 becomes, and the size that nobody named."""

CUT = [112, 80]
"""An edit without a size has its picture's, 120x90, cut to the model's multiple."""

EXPECTED: dict[str, dict[str, Any]] = {
    "litellm_cases.py": {
        "completion": ROUND,
        "stream": {"text": ROUND, "tokens": 4},
        "tools": ["generate_image", f'{{"prompt": "{DRAWN}"}}'],
        "json_mode": '{"shape": "circle", "color": "red"}',
        "embedding": VECTORS,
        "generation": NATIVE,
        "generation_with_all_fields": [SQUARE, SQUARE],
        "edit": CUT,
        "edit_with_size": SQUARE,
        "error": [
            400,
            "litellm.BadRequestError: OpenAIException - max_tokens=-1 is not valid: Input should be"
            " greater than or equal to 0",
        ],
    },
    "langchain_cases.py": {
        "chat": [ROUND, ROUND],
        "stream": [ROUND, ROUND],
        "usage": [4, 4],
        "tool_loop": [[{"prompt": DRAWN}, SAID]] * 2,
        "structured": [THING] * 5,
        "one_tool_at_a_time": ["generate_image"],
        "embeddings": VECTORS,
        "image": SQUARE,
    },
    "llama_index_cases.py": {
        "chat": ROUND,
        "stream": ROUND,
        "complete": " a large red circle",
        "tools": ["generate_image", {"prompt": DRAWN}],
        "structured": THING,
        "embeddings": VECTORS,
    },
    "pydantic_ai_cases.py": {
        "chat": [ROUND, ROUND],
        "tool_loop": [[SAID, [DRAWN]]] * 2,
        "structured": [THING] * 3,
        "instructed": [THING] * 3,
    },
    "openai_cases.mjs": {
        "models": ["scenes"],
        "chat": ROUND,
        "stream": ROUND,
        "tool_loop": [SAID, [DRAWN]],
        "structured": THING,
        "embeddings": VECTORS,
        "generate": SQUARE,
        "generate_stream": ["image_generation.partial_image", "image_generation.completed"],
        "edit": CUT,
        "error": ["BadRequestError", 400, "max_completion_tokens"],
    },
    "anthropic_cases.mjs": {
        "message": [{"type": "text", "text": ROUND}],
        "stream": [ROUND, "end_turn", 4],
        "tool_loop": ["tool_use", {"prompt": DRAWN}, [{"type": "text", "text": SAID}]],
        "object": THING,
        "count": True,
        "error": ["BadRequestError", 400, "invalid_request_error"],
    },
    "ai_sdk_cases.mjs": {
        "text": [ROUND, 4, "stop"],
        "stream": [ROUND, 4],
        "tool_loop": [SAID, [DRAWN]],
        "object": THING,
        "object_stream": [THING, True],
        "response": [ROUND, 4, "stop"],
        "response_stream": [ROUND, 4],
        "response_tool_loop": [SAID, [DRAWN]],
        "response_tool_loop_by_items": [SAID, [DRAWN]],
        "response_object": THING,
        "completion": 4,
        "embeddings": VECTORS,
        "image": [SQUARE, SQUARE],
        "edit": [CUT],
    },
}


@pytest.mark.parametrize(
    ("program", "case"), [(program, case) for program, cases in EXPECTED.items() for case in cases]
)
def test_a_client_gets_what_it_asked_for(program: str, case: str, run_program: RunProgram) -> None:
    told = run_program(program)
    assert told[case] == {"gave": EXPECTED[program][case]}, told[case].get("failed")


@pytest.mark.parametrize("program", EXPECTED)
def test_no_case_of_a_program_is_passed_over(program: str, run_program: RunProgram) -> None:
    assert set(run_program(program)) == set(EXPECTED[program])


def test_no_program_is_passed_over() -> None:
    programs = {path.name for path in PROGRAMS.iterdir() if path.is_file()}
    assert programs - {"cases.py", "cases.mjs"} == set(EXPECTED)
