"""The bytes that a token stands for. Its text alone does not tell them where a character is spread
over several tokens: each of these decodes to U+FFFD."""

from __future__ import annotations

import re

from tokenizers import Tokenizer

FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece names a token that is one byte."""


def _letters() -> dict[str, int]:
    """Byte by letter, in the alphabet that byte-level vocabularies are written in (GPT-2's
    `bytes_to_unicode`): printable bytes are their own letters, the others follow from U+0100."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


LETTERS = _letters()


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of one token."""
    text = str(tokenizer.decode([token], skip_special_tokens=False))
    if "\ufffd" not in text:
        return text.encode()
    piece = tokenizer.id_to_token(token) or ""
    if named := FALLBACK.fullmatch(piece):
        return bytes.fromhex(named[1])
    if piece and all(letter in LETTERS for letter in piece):
        return bytes(LETTERS[letter] for letter in piece)
    return text.encode()
