"""Trains the built-in language model on a corpus of dialogues.

    python -m atelier.builtin.scenes.train \\
        --corpus out/scenes.npz --seconds 240 --state out/scenes.pt

The learning rate follows the clock: warm-up, then a cosine down to nothing at `--seconds`, so that
a run fits its machine. `--state` is written every `--save-every` seconds; starting again with it
goes on where the run stopped. The weights are saved in bfloat16. Matrices learn by Muon, the rest
by AdamW.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from atelier.builtin.scenes.corpus import ScenesCorpus, TokenBatch
from atelier.builtin.shapes.muon import Muon

FOLDER = Path(__file__).parent
WARM_UP = 0.03  # of the time
PEAK_RATE = 2e-3


def architecture(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """A six-layer Qwen3 of about 5 million parameters: every engine knows it, no remote code is
    needed."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@dataclasses.dataclass
class LearningProgress:
    """What a run has behind it; saved with the weights so that it can go on."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0

    def rate(self, budget: float) -> float:
        """The learning rate now, for a run of `budget` seconds."""
        done = min(self.seconds / budget, 1.0)
        if done < WARM_UP:
            return PEAK_RATE * done / WARM_UP
        return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


class Trainer:
    """Model, optimizer and progress of one run."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        budget: float,
        state: Path | None,
        start: Path | None,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(architecture(tokenizer))
        if start:
            model = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
        self.model: Any = model.to(self.device)  # type: ignore[arg-type]
        matrices = [weight for weight in self.model.model.layers.parameters() if weight.ndim == 2]
        chosen = {id(weight) for weight in matrices}
        others = [weight for weight in self.model.parameters() if id(weight) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=torch.tensor(PEAK_RATE, device=self.device)),
            torch.optim.AdamW(
                others, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True
            ),
        ]
        self.budget, self.state, self.progress = budget, state, LearningProgress()
        if state and state.exists():
            saved = torch.load(state, map_location=self.device, weights_only=True)
            self.model.load_state_dict(saved["model"])
            for optimizer, memory in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(memory)
            self.progress = LearningProgress(**saved["progress"])

    def save_state(self) -> None:
        """Writes the state file, whole or not at all."""
        if self.state is None:
            return
        self.state.parent.mkdir(parents=True, exist_ok=True)
        part = self.state.with_suffix(".part")
        memories = [optimizer.state_dict() for optimizer in self.optimizers]
        parts = {"model": self.model.state_dict(), "optimizers": memories}
        torch.save(parts | {"progress": dataclasses.asdict(self.progress)}, part)
        part.replace(self.state)

    def step(self, batch: TokenBatch) -> torch.Tensor:
        """One update on one batch; returns the loss, in nats per learned token, still on the
        device."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.progress.rate(self.budget)
        tokens, answers = self._there(batch.tokens), self._there(batch.answers)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            # Padding stands behind the answers, so that causality is mask enough; saying so spares
            # a look at the data.
            mask = {"full_attention": None}
            hidden = self.model.model(
                tokens[:, :-1], attention_mask=mask, use_cache=False
            ).last_hidden_state
            logits = self.model.lm_head(hidden.flatten(0, 1)[answers])
        loss = torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:].flatten()[answers])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _there(self, tensor: torch.Tensor) -> torch.Tensor:
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor
        )

    def run(self, corpus: ScenesCorpus, tokens: int, padding: int, save_every: float) -> None:
        """Trains until the budget is spent, through the corpus as often as it takes."""
        before, started = self.progress.seconds, time.monotonic()
        saved = logged = started
        while self.progress.seconds < self.budget:
            for batch in corpus.batches(tokens, padding, np.random.default_rng(self.progress.step)):
                loss = self.step(batch)
                now = time.monotonic()
                self.progress.step += 1
                self.progress.tokens += batch.tokens.numel()
                self.progress.seconds = before + now - started
                finished = self.progress.seconds >= self.budget
                if finished or now - logged >= 5:
                    logged = now
                    print(
                        json.dumps(
                            dataclasses.asdict(self.progress) | {"loss": round(loss.item(), 5)}
                        ),
                        flush=True,
                    )
                if finished or now - saved >= save_every:
                    saved = now
                    self.save_state()
                if finished:
                    break


def save_checkpoint(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Writes config.json, generation_config.json and model.safetensors (bfloat16) to `folder`."""
    model = model.to("cpu", torch.bfloat16)  # type: ignore[arg-type]
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="what atelier.builtin.scenes.corpus wrote"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write the weights to")
    parser.add_argument(
        "--start", type=Path, help="checkpoint to begin with, instead of random weights"
    )
    parser.add_argument("--seconds", type=float, default=240, help="how long to train")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens per batch")
    parser.add_argument("--state", type=Path, help="file to save the run to, and to go on from")
    parser.add_argument(
        "--save-every", type=float, default=60, help="seconds between saves of --state"
    )
    arguments = parser.parse_args()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    trainer = Trainer(tokenizer, arguments.seconds, arguments.state, arguments.start)
    corpus = ScenesCorpus.load(arguments.corpus)
    trainer.run(corpus, arguments.tokens, tokenizer.pad_token_id, arguments.save_every)
    save_checkpoint(trainer.model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
