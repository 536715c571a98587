"""Structured output: a grammar follows one sequence and says which tokens may come next (llguidance
does the work)."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.errors import InvalidRequest

if TYPE_CHECKING:
    from atelier.text.request import TextRequest

JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write JSON: a small model left free to add white space may never stop doing so."""


UNTHINK = "</think>"
TAIL = 12
"""Tokens that surely hold the mark, which may be a token of its own or letter by letter."""


class Grammar:
    """The state of one sequence within its grammar. With `decode` given, the sequence is within its
    reasoning, and the grammar begins after the mark that ends it."""

    def __init__(
        self, matcher: Any, vocabulary: int, decode: Callable[[list[int]], str] | None = None
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._decode = decode
        self._tail: list[int] = []

    def allowed(self) -> Tensor:
        """Boolean mask over the vocabulary, on the CPU.

        Raises:
            InvalidRequest: the grammar met a limit or a token it cannot follow.
        """
        if self._decode is not None:
            return torch.ones(self._vocabulary, dtype=torch.bool)
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
        if self._decode is not None:
            self._tail = [*self._tail[1 - TAIL :], token]
            if UNTHINK in self._decode(self._tail):
                self._decode = None
            return False
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _not_followed(self._matcher)


class GrammarCompiler:
    """Makes grammars for one tokenizer. Building the tokenizer's index takes about a second and is
    done once."""

    def __init__(self, tokenizer: Any, vocabulary: int, eos: set[int]) -> None:
        from llguidance.hf import from_tokenizer

        self._vocabulary = vocabulary
        self._decode = tokenizer.decode
        self._tokenizer = from_tokenizer(
            tokenizer, n_vocab=vocabulary, eos_token=sorted(eos) or None
        )
        self._matcher = lru_cache(maxsize=64)(self._build)

    def compile(self, source: str, reasoning: bool = False) -> Grammar:
        """A fresh matcher of a grammar in llguidance's Lark dialect or JSON form; `reasoning`: it
        begins after the reasoning that the prompt has opened.

        Raises:
            InvalidRequest: the grammar or schema is not one that can be followed.
        """
        decode = self._decode if reasoning else None
        return Grammar(self._matcher(source).deep_copy(), self._vocabulary, decode)

    def _build(self, source: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, source, log_level=0)
        if not matcher.is_error():
            trial = matcher.deep_copy()
            trial.compute_logit_bias()  # a grammar that allows no beginning fails here
            if not trial.is_error():
                return matcher
            matcher = trial
        raise _not_followed(matcher)


def _not_followed(matcher: Any) -> InvalidRequest:
    """What the caller is told of a schema that the matcher stumbles over."""
    reason = matcher.get_error().splitlines()[0]
    return InvalidRequest(
        f"the schema of response_format, or of the tool to be called, cannot be followed: {reason}",
        "response_format",
    )


class GrammarDesk:
    """Compiles the grammars of requests in a thread of its own, since a large schema takes longer
    than a step; `done` is called after each."""

    def __init__(
        self, tokenizer: Any, vocabulary: int, eos: set[int], done: Callable[[], None]
    ) -> None:
        self._make = lambda: GrammarCompiler(tokenizer, vocabulary, eos)
        self._compiler: GrammarCompiler | None = None
        self._done = done
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def ask(
        self, request: TextRequest, tool_grammar: str | None, reasoning: bool
    ) -> Future[list[Grammar | None]]:
        """A grammar for each choice, or None for each where nothing is asked for."""
        if tool_grammar is None and request.response_format.type == "text":
            done: Future[list[Grammar | None]] = Future()
            done.set_result([None] * request.n)
            return done
        return self._thread.submit(self._compile, request, tool_grammar, reasoning)

    def close(self) -> None:
        """Compile nothing more."""
        self._thread.shutdown(cancel_futures=True)

    def _compile(
        self, request: TextRequest, tool_grammar: str | None, reasoning: bool
    ) -> list[Grammar | None]:
        self._compiler = self._compiler or self._make()
        source = grammar_source(request, tool_grammar)
        grammars = [
            None if source is None else self._compiler.compile(source, reasoning)
            for _ in range(request.n)
        ]
        self._done()
        return grammars


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
