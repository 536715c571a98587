"""Words and phrases that no prompt may have, from a file with one a line."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from atelier.errors import SettingsError


class WordList:
    """Phrases are compared word by word: in any case, in any of Unicode's spellings of a letter,
    whatever stands between the words, and never inside a longer word."""

    def __init__(self, phrases: Iterable[str]) -> None:
        split = (tuple(_words(phrase)) for phrase in phrases)
        self._phrases = {words: " ".join(words) for words in split if words}
        self._longest = max(map(len, self._phrases), default=0)

    @classmethod
    def read(cls, name: str) -> WordList:
        """The list in a file; empty lines and those that begin with # are passed over.

        Raises:
            SettingsError: PROMPT_BLOCKLIST cannot be read, or has no word.
        """
        try:
            lines = Path(name).expanduser().read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise SettingsError(
                f"PROMPT_BLOCKLIST={name} cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            raise SettingsError(f"PROMPT_BLOCKLIST={name} is not text in UTF-8") from None
        found = cls(line for line in lines if not line.lstrip().startswith("#"))
        if not found._phrases:
            raise SettingsError(f"PROMPT_BLOCKLIST={name} has no words: write one a line")
        return found

    def find(self, text: str) -> str | None:
        """The first phrase in a text; None if it has none. Takes time by the text's words alone,
        however long the list is."""
        words = _words(text)
        for start in range(len(words)):
            for length in range(1, min(self._longest, len(words) - start) + 1):
                if phrase := self._phrases.get(tuple(words[start : start + length])):
                    return phrase
        return None


def _words(text: str) -> list[str]:
    """Casefolded words without marks and without characters that are not seen."""
    spelled = unicodedata.normalize("NFKD", text)
    seen = "".join(one for one in spelled if unicodedata.category(one) not in ("Cf", "Mn"))
    return re.findall(r"\w+", seen.casefold())
