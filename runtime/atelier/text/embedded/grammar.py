"""Structured output: a grammar follows one sequence and says which tokens may come next (llguidance
does the work)."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.errors import GenerationFailed, InvalidRequest

if TYPE_CHECKING:
    from atelier.text.request import TextRequest

JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write JSON: a small model left free to add white space may never stop doing so."""


class Grammar:
    """The state of one sequence within its grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> Tensor:
        """Boolean mask over the vocabulary, on the CPU.

        Raises:
            GenerationFailed: the grammar met a limit or a token it cannot follow.
        """
        allowed = torch.frombuffer(
            bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8
        ).bool()
        self._check()
        return (
            F.pad(allowed, (0, self._vocabulary - allowed.shape[0]))
            if allowed.shape[0] < self._vocabulary
            else allowed
        )

    def accept(self, token: int) -> bool:
        """Follow a token; true when the grammar can only end here."""
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationFailed(
                f"the grammar of the response format failed: {self._matcher.get_error()}"
            )


class GrammarCompiler:
    """Makes grammars for one tokenizer. Building the tokenizer's index takes about a second and is
    done once."""

    def __init__(self, tokenizer: Any, vocabulary: int, eos: set[int]) -> None:
        from llguidance.hf import from_tokenizer

        self._vocabulary = vocabulary
        self._tokenizer = from_tokenizer(
            tokenizer, n_vocab=vocabulary, eos_token=sorted(eos) or None
        )
        self._matcher = lru_cache(maxsize=64)(self._build)

    def compile(self, source: str) -> Grammar:
        """A fresh matcher of a grammar in llguidance's Lark dialect or JSON form.

        Raises:
            InvalidRequest: the grammar or schema is not one that can be followed.
        """
        return Grammar(self._matcher(source).deep_copy(), self._vocabulary)

    def _build(self, source: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, source, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().splitlines()[0]
            raise InvalidRequest(
                "the schema of response_format, or of the tool to be called, cannot be followed:"
                f" {reason}",
                "response_format",
            )
        return matcher


def grammar_source(request: TextRequest, tool_grammar: str | None = None) -> str | None:
    """The grammar a request asks for, or None. A forced tool call comes before the response
    format."""
    from llguidance import LLMatcher

    if tool_grammar is not None:
        return LLMatcher.grammar_from_lark(tool_grammar)
    wanted = request.response_format
    if wanted.type == "json_object":
        return LLMatcher.grammar_from_json_schema({"type": "object"}, JSON_STYLE)
    if wanted.type == "json_schema" and wanted.json_schema is not None:
        return LLMatcher.grammar_from_json_schema(
            json.dumps(wanted.json_schema["schema"]), JSON_STYLE
        )
    return None
