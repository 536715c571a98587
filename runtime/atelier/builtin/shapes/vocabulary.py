"""The tokenizer: byte-level BPE whose merges make every word of the grammar one token, and any
other text several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from atelier.builtin.shapes.prompts import WORDS

MAX_TOKENS = 32  # three things with everything said take 30
_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def build_tokenizer(words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """A CLIP tokenizer over bytes and `words`; it needs no file and loses no text."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = _learn_merges(words)
    symbols = [
        *alphabet,
        *(letter + _WORD_END for letter in alphabet),
        *(left + right for left, right in merges),
    ]
    vocabulary = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    vocabulary |= {_START: len(vocabulary), _END: len(vocabulary) + 1}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=MAX_TOKENS)


def _learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte pair encoding over `words`, run until each of them is one symbol."""
    spelled = [[*word[:-1], word[-1] + _WORD_END] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelled for pair in pairwise(word))
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged
