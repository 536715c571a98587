"""One training run: the loop, from the cached data to trained master weights.

Everything random in step k is drawn from (seed, k). A run that was killed and continued therefore
takes the same way as one that was not, and a checkpoint holds weights and optimizer state, no
generator states.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from atelier_training.dreambooth.adaptation import Trainee
from atelier_training.dreambooth.batches import BatchPlan
from atelier_training.dreambooth.cache import Cache
from atelier_training.dreambooth.checkpoints import Checkpoints
from atelier_training.dreambooth.errors import TrainingFailed
from atelier_training.dreambooth.journal import Journal
from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.sharding import part_like, whole
from atelier_training.dreambooth.weights import MasterWeights, build_optimizer

VALIDATION_PASSES = 8
_VALIDATION_SALT = 0x5EED


@dataclass
class TrainingProgress:
    """What a checkpoint remembers beside weights and optimizer: the step, and the validations so
    far."""

    step: int = 0
    best_validation: float = math.inf
    validations_without_gain: int = 0


class TrainingRun:
    """Built once for each process; `fit` trains until the last step or an early stop."""

    def __init__(
        self,
        options: TrainOptions,
        accelerator: Accelerator,
        trainee: Trainee,
        cache: Cache,
        checkpoints: Checkpoints,
    ) -> None:
        self.options = options
        self.accelerator = accelerator
        self.trainee = trainee
        self.cache = cache.to_pinned() if accelerator.device.type == "cuda" else cache
        self.plan = BatchPlan(cache.samples, options.batch_size, options.seed)
        self._checkpoints = checkpoints
        self._module: Any = trainee if options.shard else accelerator.prepare_model(trainee)
        denoiser, encoders = trainee.groups()
        self.weights = MasterWeights(denoiser | encoders)
        masters = self.weights.masters
        groups: list[dict[str, Any]] = [
            {"params": masters[: len(denoiser)], "lr": options.learning_rate}
        ]
        if encoders:
            rate = options.text_encoder_learning_rate or options.learning_rate
            groups.append({"params": masters[len(denoiser) :], "lr": rate})
        self.optimizer = build_optimizer(options, groups)
        self.rate = get_scheduler(
            options.schedule,
            self.optimizer,
            num_warmup_steps=options.warmup,
            num_training_steps=options.steps,
        )
        self.average = EMAModel(masters, decay=options.ema_decay) if options.ema_decay else None
        self.progress = TrainingProgress()
        self._restore()

    def fit(self, validate: Callable[[int, Journal | None], None]) -> None:
        """Train; `validate(step, journal)` may draw pictures with the weights of that step. The
        first process calls it, and keeps the journal; all do if the model is sharded, since they
        only draw together.

        Raises:
            TrainingFailed: the loss is no number any more.
        """
        options, main = self.options, self.accelerator.is_main_process
        journal = Journal(options.output, options.steps, self.progress.step) if main else None
        window: list[torch.Tensor] = []
        try:
            while self.progress.step < options.steps and not self._stopped_early:
                window.append(self._step(self.progress.step))
                self.progress.step += 1
                step, last = self.progress.step, self.progress.step == options.steps
                if journal:
                    journal.advance()
                validated = None
                if options.validate_every and step % options.validate_every == 0:
                    began = time.monotonic()
                    validated = self._validate()
                    if journal or options.shard:
                        validate(step, journal)
                    if journal:
                        journal.pause(time.monotonic() - began)
                if step % options.log_every == 0 or last or validated is not None:
                    loss = self._mean(torch.stack(window).mean())
                    window.clear()
                    self._require_finite(loss, step)
                    if journal:
                        journal.note(step, loss, float(self.rate.get_last_lr()[0]), validated)
                if step % options.checkpoint_every == 0 or last:
                    self._checkpoint()
        finally:
            if journal:
                journal.close()

    def final_weights(self) -> dict[str, torch.Tensor]:
        """Trained weights by name, float32, on the CPU of the first process: the running average if
        there is one."""
        if self.average:
            self.average.store(self.weights.masters)
            self.average.copy_to(self.weights.masters)
        main, state = self.accelerator.is_main_process, {}
        for name, value in self.weights.state().items():
            gathered = whole(value, keep=main)
            if main:
                state[name] = gathered.to("cpu", copy=True)
        if self.average:
            self.average.restore(self.weights.masters)
        return state

    def _step(self, step: int) -> torch.Tensor:
        """One optimizer step; returns the mean loss on the device, unread."""
        options, total = self.options, torch.zeros((), device=self.accelerator.device)
        for index in range(options.accumulation):
            k = step * options.accumulation + index
            syncing = index == options.accumulation - 1
            for part, is_last in self._parts(k):
                reduced = options.shard or (syncing and is_last)
                with nullcontext() if reduced else self.accelerator.no_sync(self._module):
                    loss = part() / options.accumulation
                    loss.backward()
                total += loss.detach()
        self.weights.take_gradients()
        torch.nn.utils.clip_grad_norm_(self.weights.masters, options.max_grad_norm)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.weights.write_back()
        if self.average:
            self.average.step(self.weights.masters)
        return total

    def _parts(self, k: int) -> Iterator[tuple[Callable[[], torch.Tensor], bool]]:
        """Pass `k` of this process as functions that give a part of its loss, each with whether it
        is the last."""
        pass_of_all = k * self.accelerator.num_processes + self.accelerator.process_index
        groups = self.plan.groups(pass_of_all)
        generator = torch.Generator(self.accelerator.device)
        generator.manual_seed(_mix(self.options.seed, pass_of_all))
        torch.manual_seed(_mix(self.options.seed, pass_of_all))  # for dropout
        parts: list[Callable[[], torch.Tensor]] = [
            partial(self._loss, rows, generator) for rows in groups
        ]
        if (
            self.options.shard
        ):  # all processes gather together, so all compute as often as the one with most groups
            first = k * self.accelerator.num_processes
            most = max(
                len(self.plan.groups(first + rank))
                for rank in range(self.accelerator.num_processes)
            )
            parts += [lambda: 0 * self._loss(groups[-1], generator)] * (most - len(groups))
        for place, part in enumerate(parts):
            yield part, place == len(parts) - 1

    def _loss(self, rows: list[int], generator: torch.Generator) -> torch.Tensor:
        """Summed so that over the groups of a pass it is: mean over subject rows + weight * mean
        over class rows."""
        samples = [self.cache.samples[row] for row in rows]
        device, batch = self.accelerator.device, self.options.batch_size
        mean, deviation, sizes = (
            torch.stack([getattr(s, name) for s in samples]).to(device, non_blocking=True)
            for name in ("mean", "deviation", "sizes")
        )
        place = {"generator": generator, "device": device}
        latents = mean + deviation * torch.randn(mean.shape, **place)
        noise = torch.randn(mean.shape, **place)
        levels = self.trainee.draw_levels(len(rows), generator)
        captions = [self.cache.captions[s.caption] for s in samples]
        order = torch.tensor([s.caption for s in samples])
        text, base_text = (
            (
                None
                if table is None
                else {n: v[order].to(device, non_blocking=True) for n, v in table.items()}
            )
            for table in (self.cache.text, self.cache.base_text)
        )
        # Class samples are the last of their group.
        taught = sum(s.is_class for s in samples) if base_text is not None else 0
        losses = self._module(latents, noise, levels, sizes, text, captions, taught, base_text)
        shares = [(self.options.prior_weight if s.is_class else 1.0) / batch for s in samples]
        return (losses * torch.tensor(shares, device=device)).sum()

    @torch.no_grad()
    def _validate(self) -> float:
        """The loss over a few passes whose noise is the same at every validation; counts those
        without gain."""
        total = 0.0
        for k in range(VALIDATION_PASSES):
            generator = torch.Generator(self.accelerator.device).manual_seed(
                _mix(_VALIDATION_SALT, k)
            )
            total += sum(float(self._loss(rows, generator)) for rows in self.plan.groups(k))
        value = self._mean(torch.tensor(total / VALIDATION_PASSES, device=self.accelerator.device))
        if value < self.progress.best_validation:
            self.progress.best_validation, self.progress.validations_without_gain = value, 0
        else:
            self.progress.validations_without_gain += 1
        return value

    @property
    def _stopped_early(self) -> bool:
        return 0 < self.options.early_stop <= self.progress.validations_without_gain

    def _mean(self, value: torch.Tensor) -> float:
        return float(self.accelerator.reduce(value, "mean"))

    def _require_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"the loss is {loss} at step {step}; lower"
                f" learning_rate={self.options.learning_rate} and start again in another folder"
            )

    def _checkpoint(self) -> None:
        main = self.accelerator.is_main_process
        state: dict[str, Any] = {
            "weights": self.weights.state(),
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict(),
            "progress": vars(self.progress),
        }
        if self.average:
            state["average"] = self.average.state_dict()
        state = whole(state, keep=main)
        if main:
            self._checkpoints.save(self.progress.step, state)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        state = self._checkpoints.newest()
        if state is None:
            return
        self.weights.load(state["weights"])
        self.weights.load_optimizer(self.optimizer, state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        self.progress = TrainingProgress(**state["progress"])
        if self.average:
            shadows = zip(state["average"]["shadow_params"], self.weights.masters, strict=True)
            state["average"]["shadow_params"] = [
                part_like(value.to(like.device), like) for value, like in shadows
            ]
            self.average.load_state_dict(state["average"])


def _mix(seed: int, k: int) -> int:
    """A seed of its own for each (seed, k): Fibonacci hashing keeps neighbours apart."""
    return ((seed + 1) * 0x9E3779B97F4A7C15 + k * 0xD1B54A32D192ED03) & (2**63 - 1)
