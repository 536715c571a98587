"""From logits to tokens, on the device, for all rows of a batch at once.

Each row has its own temperature, filters, penalties and seed. A token is the argmax of probability
over exponential noise, which draws from the same distribution as sampling and needs no round trip
to the host. Masks of a grammar come from outside. Nothing here raises on bad logits: rows that are
not finite are reported instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atelier.events import Likelihood

if TYPE_CHECKING:
    from atelier.text.request import TextRequest


@dataclass
class SamplingRow:
    """Sampling state of one sequence. Defaults leave logits as they are."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: dict[int, float] = field(default_factory=dict)
    generator: torch.Generator | None = None
    logprobs: int | None = None
    seen: Tensor | None = None
    counts: Tensor | None = None

    @classmethod
    def of(
        cls,
        request: TextRequest,
        defaults: dict[str, float],
        seed: int | None,
        device: torch.device,
    ) -> SamplingRow:
        """The request's values, with the checkpoint's generation defaults where it gives none."""
        row = cls(
            presence=request.presence_penalty,
            frequency=request.frequency_penalty,
            logprobs=request.logprobs,
        )
        row.temperature = _chosen(request.temperature, defaults.get("temperature", 1.0))
        row.top_k = max(0, int(_chosen(request.top_k, defaults.get("top_k", 0))))
        row.top_p = _chosen(request.top_p, defaults.get("top_p", 1.0))
        row.min_p = _chosen(request.min_p, defaults.get("min_p", 0.0))
        row.repetition = _chosen(
            request.repetition_penalty, defaults.get("repetition_penalty", 1.0)
        )
        row.bias = dict(request.logit_bias)
        if seed is not None and row.temperature > 0:
            row.generator = torch.Generator(device).manual_seed(seed)
        return row

    @property
    def penalised(self) -> bool:
        """Whether earlier tokens change the logits."""
        return self.repetition != 1.0 or self.presence != 0.0 or self.frequency != 0.0

    def note(self, prompt: list[int], vocabulary: int, device: torch.device) -> None:
        """Prepare the memory of earlier tokens, before the first draw."""
        if self.penalised:
            self.seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self.seen[torch.tensor(prompt, device=device)] = True
            self.counts = torch.zeros(vocabulary, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Draw:
    """One step's outcome, on the device: `tokens` and `finite` by row; log probabilities if any row
    wants them: `chosen` by row, `best` and `best_ids` rows x k. `errors` holds rows whose own
    processing failed."""

    tokens: Tensor
    finite: Tensor
    chosen: Tensor | None = None
    best: Tensor | None = None
    best_ids: Tensor | None = None
    errors: dict[int, Exception] = field(default_factory=dict)


def draw(logits: Tensor, rows: list[SamplingRow | None], allowed: dict[int, Tensor]) -> Draw:
    """Draw one token a row. `logits` is rows x vocab, float, and may be written to. Rows that are
    None are idle. `allowed` maps a row to a boolean mask over the vocabulary."""
    errors: dict[int, Exception] = {}
    wanted = [row.logprobs for row in rows if row is not None and row.logprobs is not None]
    raw = logits.log_softmax(-1) if wanted else None
    for index, row in enumerate(rows):
        if row is not None and (row.penalised or row.bias):
            try:
                _adjust(logits[index], row)
            except Exception as error:  # one request's processing is not its neighbours' affair
                errors[index] = error
    finite = torch.isfinite(logits.amax(-1))
    for index, mask in allowed.items():
        logits[index].masked_fill_(~mask, -torch.inf)
    tokens = _choose(logits, rows)
    for index, row in enumerate(rows):
        if row is not None and row.counts is not None and row.seen is not None:
            row.counts.index_add_(0, tokens[index : index + 1], row.counts.new_ones(1))
            row.seen[tokens[index]] = True
    if raw is None:
        return Draw(tokens, finite, errors=errors)
    best, best_ids = raw.topk(max(max(wanted), 1), -1)
    return Draw(tokens, finite, raw.gather(-1, tokens[:, None])[:, 0], best, best_ids, errors)


def likelihoods(logits: Tensor, targets: list[int], count: int) -> list[Likelihood]:
    """Of each target after its row of logits (float, rows x vocab; rows beyond the targets are not
    read), with the `count` likeliest tokens in its place."""
    if not targets:
        return []
    raw = logits[: len(targets)].log_softmax(-1)
    chosen = raw.gather(-1, torch.tensor(targets, device=raw.device)[:, None])
    ranks = (raw > chosen).sum(-1) + 1
    best, best_ids = raw.topk(max(count, 1), -1)
    return [
        Likelihood(token, value, tuple(zip(ids[:count], values[:count], strict=True)), rank)
        for token, value, rank, ids, values in zip(
            targets,
            chosen[:, 0].tolist(),
            ranks.tolist(),
            best_ids.tolist(),
            best.tolist(),
            strict=True,
        )
    ]


def _choose(logits: Tensor, rows: list[SamplingRow | None]) -> Tensor:
    heats = [0.0 if row is None else row.temperature for row in rows]
    # On a CPU max takes a third of argmax's time, for the same token: the first of several.
    likeliest = logits.max(-1).indices
    if not any(heats):
        return likeliest
    heat = torch.tensor(heats).to(logits.device, non_blocking=True)[:, None]
    greedy = heat == 0
    scaled = logits.div_(heat.masked_fill(greedy, 1.0))
    filtered = [
        i for i, row in enumerate(rows) if row is not None and row.temperature > 0 and _filters(row)
    ]
    if filtered:
        scaled[filtered] = _filter(
            scaled[filtered], [row for i in filtered if (row := rows[i]) is not None]
        )
    noise = torch.empty_like(scaled).exponential_()
    for index, row in enumerate(rows):
        if row is not None and row.generator is not None:
            noise[index].exponential_(generator=row.generator)
    drawn = scaled.sub_(noise.log_()).max(-1).indices
    return torch.where(greedy[:, 0], likeliest, drawn)


def _filters(row: SamplingRow) -> bool:
    return row.top_k > 0 or row.top_p < 1 or row.min_p > 0


def _filter(logits: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Set logits outside of top-k, top-p and min-p to minus infinity, row by row; the best one
    always stays."""
    device, vocabulary = logits.device, logits.shape[-1]
    ordered, order = logits.sort(-1, descending=True)
    probabilities = ordered.softmax(-1)
    top_k = torch.tensor([row.top_k or vocabulary for row in rows], device=device)[:, None]
    top_p = torch.tensor([row.top_p for row in rows], device=device)[:, None]
    min_p = torch.tensor([row.min_p for row in rows], device=device)[:, None]
    cut = torch.arange(vocabulary, device=device)[None] >= top_k
    cut |= (probabilities.cumsum(-1) - probabilities) >= top_p
    cut |= probabilities < min_p * probabilities[:, :1]
    cut[:, 0] = False
    return torch.full_like(logits, -torch.inf).scatter_(
        -1, order, ordered.masked_fill(cut, -torch.inf)
    )


def _adjust(logits: Tensor, row: SamplingRow) -> None:
    """Apply penalties and biases to one row in place. The repetition penalty divides positive and
    multiplies negative logits of tokens seen (Keskar et al. 2019, CTRL); presence and frequency are
    subtracted, as in OpenAI's API."""
    if row.seen is not None and row.counts is not None:
        if row.repetition != 1.0:
            damped = torch.where(logits > 0, logits / row.repetition, logits * row.repetition)
            logits.copy_(torch.where(row.seen, damped, logits))
        logits -= row.frequency * row.counts + row.presence * (row.counts > 0)
    if row.bias:
        ids = torch.tensor(list(row.bias), device=logits.device)
        logits[ids] += torch.tensor(
            list(row.bias.values()), dtype=logits.dtype, device=logits.device
        )


def _chosen(value: float | None, default: float) -> float:
    return default if value is None else value
