"""Token ids to text, piece by piece, and stop strings that may lie across the borders of tokens."""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Turns the ids of one sequence into text that is safe to send.

    Bytes of an unfinished character wait, and so does text that may yet become a stop string.
    `stopped` is the stop string met, if one was; nothing from its first character on is ever
    returned.
    """

    def __init__(
        self, tokenizer: Any, stop: tuple[str, ...] = (), skip_special_tokens: bool = True
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._skip = skip_special_tokens
        self._stop = stop
        self._held = ""
        self._unfinished: list[int] = []
        self.stopped: str | None = None

    def add(self, token: int) -> str:
        """The text that may be sent after this token."""
        self._unfinished.append(token)
        piece = self._stream.step(self._backend, token) or ""
        if piece:
            self._unfinished.clear()
        if not self._stop:
            return piece
        self._held += piece
        found = [(at, text) for text in self._stop if (at := self._held.find(text)) >= 0]
        if found:
            at, self.stopped = min(found)
            ready, self._held = self._held[:at], ""
            return ready
        keep = max((held_back(self._held, text) for text in self._stop), default=0)
        split = len(self._held) - keep
        ready, self._held = self._held[:split], self._held[split:]
        return ready

    def flush(self) -> str:
        """What was held back when the sequence ended for another reason; half a character becomes
        U+FFFD."""
        if self.stopped:
            return ""
        rest = (
            self._backend.decode(self._unfinished, skip_special_tokens=self._skip)
            if self._unfinished
            else ""
        )
        held, self._held = self._held + rest, ""
        self._unfinished.clear()
        return held


def held_back(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a true beginning of `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
