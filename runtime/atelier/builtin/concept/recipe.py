"""The fine-tuning of the built-in model on the striped ring: options, questions and gate, as the
pipeline takes them."""

from __future__ import annotations

import random
from typing import Any

from atelier.builtin.concept.ring import UNSEEN, prompt
from atelier.builtin.shapes.prompts import describe
from atelier.builtin.shapes.scene import random_scene

MODEL = "builtin/shapes"
GUIDANCE = 4.0
TEXT_TOKENS = 8  # its T5 is muted and any number of its empty tokens means the same; few cost less
GATE = "subject>=0.8, subject_before<=0.05, prior_kept>=0.9"


def old_prompts(count: int, seed: int, held_out: bool) -> list[str]:
    """Sentences that the built-in model knows; those of the evaluation are of combinations it has
    never seen."""
    rng = random.Random(seed)
    return [describe(random_scene(rng, held_out=held_out), rng, plain=True) for _ in range(count)]


def options(**changes: Any) -> dict[str, Any]:
    """Options of the training, without folders."""
    return {
        "model": MODEL,
        "instance_prompt": prompt("green"),
        "captions": "files",
        "class_prompt": " | ".join(old_prompts(96, seed=11, held_out=False)),
        "class_pictures": 96,
        "class_guidance": GUIDANCE,
        "resolution": 128,
        "text_tokens": TEXT_TOKENS,
        "train_text_encoder": True,
        "text_encoder_learning_rate": 1e-3,
        "prior": "teacher",
        "prior_weight": 16.0,
        "ema_decay": 0.98,
        "rank": 16,
        "targets": "linear",
        "steps": 400,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "warmup": 10,
        "checkpoint_every": 100,
        "seed": 1,
    } | changes


def questions(seeds: int = 4, prior: int = 32) -> dict[str, Any]:
    """Subject prompts on backgrounds that no training picture had, and as many old prompts."""
    return {
        "subject": [prompt(background) for background in UNSEEN],
        "prior": old_prompts(prior // seeds, seed=5, held_out=True),
        "judge": "pixels",
        "text_tokens": TEXT_TOKENS,
        "seeds": seeds,
        "steps": 20,
        "guidance": GUIDANCE,
    }
