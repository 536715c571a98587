"""The training set: random scenes of the training side of the split, each with several tokenized
prompts."""

from __future__ import annotations

import os
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from atelier.builtin.shapes.prompts import describe, fragment, vary
from atelier.builtin.shapes.rasterizer import encode
from atelier.builtin.shapes.scene import Scene, random_scene
from atelier.builtin.shapes.vocabulary import MAX_TOKENS, build_tokenizer

PROMPTS_PER_SCENE = 3
_SHARD = 20_000


@dataclass(frozen=True)
class ShapesCorpus:
    """`codes` (N, CODE_LENGTH) uint8 for `draw`; `tokens` (N, PROMPTS_PER_SCENE, MAX_TOKENS)
    int16."""

    codes: np.ndarray
    tokens: np.ndarray


def make_corpus(scenes: int, seed: int) -> ShapesCorpus:
    """`scenes` scenes, made by all cores; the same for the same arguments on any machine."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    shards = [
        (seed * 1_000_003 + start, min(_SHARD, scenes - start))
        for start in range(0, scenes, _SHARD)
    ]
    workers = max(1, (os.cpu_count() or 1) - 2)  # the accelerator has its own two
    with get_context("forkserver").Pool(min(len(shards), workers)) as pool:
        parts = pool.starmap(_shard, shards)
    return ShapesCorpus(
        np.concatenate([p.codes for p in parts]), np.concatenate([p.tokens for p in parts])
    )


def _shard(seed: int, scenes: int) -> ShapesCorpus:
    rng = random.Random(seed)
    tokenizer = build_tokenizer()
    codes: list[list[int]] = []
    texts: list[str] = []
    for _ in range(scenes):
        scene = random_scene(rng, held_out=False)
        codes.append(encode(scene))
        texts.extend(_prompts(scene, rng))
    ids = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True)[
        "input_ids"
    ]
    tokens = np.array(ids, dtype=np.int16).reshape(scenes, PROMPTS_PER_SCENE, MAX_TOKENS)
    return ShapesCorpus(np.array(codes, dtype=np.uint8), tokens)


def _prompts(scene: Scene, rng: random.Random) -> Iterator[str]:
    for _ in range(PROMPTS_PER_SCENE):
        draw = rng.random()
        if draw < 0.07:
            yield fragment(scene, rng)
        elif draw < 0.5:
            yield describe(scene, rng)
        elif draw < 0.96:
            yield describe(vary(scene, rng), rng)
        else:
            yield _with_unknown_word(describe(vary(scene, rng), rng), rng)


def _with_unknown_word(text: str, rng: random.Random) -> str:
    """A word that means nothing, so that names a fine-tuning may bring do not upset the picture
    before it."""
    words = text.split()
    if len(words) > 20:
        return text
    unknown = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 5)))
    words.insert(rng.randint(0, len(words)), unknown)
    return " ".join(words)
