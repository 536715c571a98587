"""Which samples make up forward pass k: a pure function of seed and k, so that a resumed run needs
no data state."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from atelier_training.dreambooth.cache import Sample


class BatchPlan:
    """Every epoch visits each subject sample once, in an order of its own; class samples go round
    likewise beside them."""

    def __init__(self, samples: Sequence[Sample], batch_size: int, seed: int) -> None:
        self._samples = samples
        self._batch = batch_size
        self._seed = seed
        self._subject: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            if not sample.is_class:
                self._subject[sample.shape].append(index)
        self._prior = [index for index, sample in enumerate(samples) if sample.is_class]
        self.passes_per_epoch = sum(-(-len(rows) // batch_size) for rows in self._subject.values())

    def subject(self, k: int) -> list[int]:
        """Indices of the subject samples of pass `k`, all of one shape; a short last batch is
        filled from its start."""
        epoch, place = divmod(k, self.passes_per_epoch)
        rng = random.Random(f"{self._seed} subject {epoch}")
        batches: list[list[int]] = []
        for rows in self._subject.values():
            order = rng.sample(rows, len(rows))
            for start in range(0, len(order), self._batch):
                chosen = order[start : start + self._batch]
                batches.append([chosen[i % len(chosen)] for i in range(self._batch)])
        rng.shuffle(batches)
        return batches[place]

    def prior(self, k: int) -> list[int]:
        """Indices of the class samples of pass `k`; none if there are none."""
        chosen = []
        for position in range(k * self._batch, (k + 1) * self._batch) if self._prior else ():
            epoch, place = divmod(position, len(self._prior))
            order = random.Random(f"{self._seed} class {epoch}").sample(
                self._prior, len(self._prior)
            )
            chosen.append(order[place])
        return chosen

    def groups(self, k: int) -> list[list[int]]:
        """The samples of pass `k` in groups of equal latent shape, one denoiser call each."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in (*self.subject(k), *self.prior(k)):
            groups[self._samples[index].shape].append(index)
        return list(groups.values())
