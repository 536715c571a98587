"""What token ids are called, for a process that tokenizes nothing: a tokenizer takes a hundred
times as much memory."""

from __future__ import annotations

from array import array
from itertools import accumulate

from tokenizers import Tokenizer

from atelier.text.token_bytes import token_bytes


class TokenNames:
    """The bytes of every id of the vocabulary, and of the model's, which may have more. They lie in
    one piece, 2 MB for the 262,144 tokens of Gemma 3, and are pickled like that."""

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        known = max(tokenizer.get_vocab().values(), default=-1) + 1
        names = [token_bytes(tokenizer, token) for token in range(max(known, vocabulary_size))]
        self._joined = b"".join(names)
        self._starts = array("I", accumulate(map(len, names), initial=0))

    def pieces(self, ids: list[int]) -> list[str]:
        """Text of each id by itself; U+FFFD where it is a part of a character."""
        return [self.raw(token).decode(errors="replace") for token in ids]

    def raw(self, token: int) -> bytes:
        """The bytes that an id stands for."""
        return self._joined[self._starts[token] : self._starts[token + 1]]
