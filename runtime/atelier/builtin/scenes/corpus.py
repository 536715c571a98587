"""The training set: dialogues as token ids, with a mark on every token that the model has to
predict.

python -m atelier.builtin.scenes.corpus --dialogues 600000 --out out/scenes.npz
"""

import argparse
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from atelier.builtin.scenes.dialogue import Dialogue, Split, sample_dialogues

FOLDER = Path(__file__).parent
ANSWER = re.compile(r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>", re.DOTALL)
LEARNED = 1 << 15  # added to the id of a token to predict
SHARD = 5000  # dialogues that one seed gives


@dataclass(frozen=True)
class TokenBatch:
    """`tokens` is int64 (rows, length); `answers` indexes the places to predict in `tokens[:, 1:]`,
    flattened."""

    tokens: torch.Tensor
    answers: torch.Tensor


@dataclass(frozen=True)
class ScenesCorpus:
    """`ids` (N,) uint16: all dialogues' tokens in a row, `LEARNED` added where wanted; `lengths`
    (D,) int64."""

    ids: np.ndarray
    lengths: np.ndarray

    def save(self, path: Path) -> None:
        """Writes one compressed .npz."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, ids=self.ids, lengths=self.lengths.astype(np.uint16))

    @staticmethod
    def load(path: Path) -> "ScenesCorpus":
        """Reads what `save` wrote."""
        with np.load(path) as saved:
            return ScenesCorpus(saved["ids"], saved["lengths"].astype(np.int64))

    def batches(self, tokens: int, padding: int, rng: np.random.Generator) -> Iterator[TokenBatch]:
        """Every dialogue once, those of like length together, at most `tokens` per batch, in random
        order."""
        starts = np.cumsum(self.lengths) - self.lengths
        order = np.argsort(self.lengths + rng.random(len(self.lengths)), kind="stable")
        groups, first = [], 0
        while first < len(order):
            most = order[first : first + max(1, tokens // self.lengths[order[first]])]
            # The last and longest row decides how long all are.
            fitting = np.arange(1, len(most) + 1) * self.lengths[most] <= tokens
            groups.append(most[: max(1, int(fitting.sum()))])
            first += len(groups[-1])
        for number in rng.permutation(len(groups)):
            group = groups[number]
            yield self._batch(starts[group], self.lengths[group], padding)

    def _batch(self, starts: np.ndarray, lengths: np.ndarray, padding: int) -> TokenBatch:
        places = np.arange(lengths.max())
        inside = places < lengths[:, None]
        ids = self.ids[np.where(inside, starts[:, None] + places, 0)]
        tokens = np.where(inside, ids % LEARNED, padding).astype(np.int64)
        answers = np.flatnonzero((inside & (ids >= LEARNED))[:, 1:])
        return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(answers))


def encode(dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """One dialogue as the chat template renders it: the assistant's turns are to predict, but for
    what is imposed."""
    if dialogue.plain:
        text = dialogue.messages[0]["content"] + tokenizer.eos_token
        spans, imposed = [(0, len(text))], []
    else:
        text = str(
            tokenizer.apply_chat_template(dialogue.messages, tools=dialogue.tools, tokenize=False)
        )
        spans = [match.span() for match in ANSWER.finditer(text)]
        last = spans[-1][0]
        imposed = [(last + start, last + stop) for start, stop in dialogue.imposed]
    wanted = np.zeros(len(text) + 1, dtype=bool)
    for value, marked in ((True, spans), (False, imposed)):
        for start, stop in marked:
            wanted[start:stop] = value
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begins = [begin for begin, _ in encoding["offset_mapping"]]
    return (np.array(encoding["input_ids"]) + LEARNED * wanted[begins]).astype(np.uint16)


def shard(seed: int) -> list[np.ndarray]:
    """The training dialogues of one seed."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    return [encode(dialogue, tokenizer) for dialogue in sample_dialogues(Split.TRAIN, seed, SHARD)]


def make(dialogues: int, workers: int) -> ScenesCorpus:
    """A corpus of `dialogues`, rounded up to whole shards; the same whatever the number of
    workers."""
    with ProcessPoolExecutor(workers) as pool:
        rows = list(chain.from_iterable(pool.map(shard, range(-(-dialogues // SHARD)))))
    return ScenesCorpus(np.concatenate(rows), np.array([len(row) for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dialogues", type=int, default=600_000)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    arguments = parser.parse_args()
    corpus = make(arguments.dialogues, arguments.workers)
    corpus.save(arguments.out)
    learned = np.count_nonzero(corpus.ids >= LEARNED)
    print(
        f"{len(corpus.lengths)} dialogues, {len(corpus.ids)} tokens, {learned} of them to predict"
    )


if __name__ == "__main__":
    main()
