"""The running batch: which sequence sits in which slot, and what one step computes.

Three verbs: `admit` a sequence, `step`, `evict` those that are over. A step prefills one chunk of
waiting prompts and decodes one token of every running sequence, or several where guesses come true.
On a CUDA device the step's tokens are read back while the next step runs, unless that step depends
on them: grammars and guesses do.
"""

from __future__ import annotations

from torch import Tensor

from atelier.errors import GenerationFailed
from atelier.hardware.heap import give_back_freed_memory
from atelier.text.embedded.failures import of_a_request
from atelier.text.embedded.pending import Pending
from atelier.text.embedded.runner import Chunk, Runner
from atelier.text.embedded.sampling import Draw, draw, likelihoods
from atelier.text.embedded.sequence import Sequence
from atelier.text.embedded.speculation import Speculation

LEAST_PREFIX = 16
"""Shorter common beginnings are computed again: copying them would gain nothing."""

MOST_LOGITS = 2**25
"""Of one prefill that keeps those of every position: 128 MiB of them."""

LONG = 2048
"""Tokens of a prompt after which a CPU's memory of intermediate results is given back."""


class Batch:
    """`prefill_tokens` bounds the padded size of one prefill."""

    def __init__(
        self, runner: Runner, prefill_tokens: int, speculation: Speculation | None = None
    ) -> None:
        self.runner = runner
        self.speculation = speculation
        self.prefill_tokens = prefill_tokens
        self.slots: list[Sequence | None] = [None] * runner.cache.slots
        self.history: list[list[int]] = [[] for _ in self.slots]
        self.salts = [""] * len(self.slots)  # whose history it is
        self.waiting: list[Sequence] = []
        self._pending: list[Pending] = []
        self._overlap = runner.device.type == "cuda"
        self._vocabulary: int = runner.model.config.get_text_config().vocab_size
        self._scored_tokens = max(1, MOST_LOGITS // self._vocabulary)

    @property
    def running(self) -> list[Sequence]:
        """Sequences that hold a slot."""
        return [sequence for sequence in self.slots if sequence is not None]

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return None not in self.slots

    @property
    def used(self) -> float:
        """Share of the cache's positions that running sequences hold."""
        held = sum(max(sequence.position, sequence.past) for sequence in self.running)
        return held / (len(self.slots) * self.runner.cache.columns)

    def admit(self, sequence: Sequence) -> None:
        """Give the sequence a free slot, with the longest beginning of its prompt that some slot
        still holds."""
        prompt = sequence.job.prompt
        reach = len(self.running) + 1
        candidates = [
            slot for slot in range(min(reach, len(self.slots))) if self.slots[slot] is None
        ]
        salt = sequence.job.request.cache_salt
        shared = {slot: self._shared(slot, prompt, salt) for slot in range(len(self.slots))}
        slot = max(candidates, key=lambda slot: (shared[slot], -len(self.history[slot])))
        donor = max(shared, key=lambda slot: shared[slot])
        length = shared[donor]
        if length < LEAST_PREFIX or sequence.scored:  # what is copied is not computed
            length = 0
        elif shared[slot] < length:
            self.runner.cache.copy(donor, slot, length)
        self.slots[slot], sequence.slot, sequence.past = sequence, slot, length
        self.history[slot], self.salts[slot] = prompt[:length], salt
        if sequence.choice == 0:
            sequence.job.cached = length
        sequence.job.start()
        sequence.row.note(prompt, self._vocabulary, self.runner.device)
        self.waiting.append(sequence)

    def evict(self) -> None:
        """Free the slots of sequences that are over, and close the gap they leave."""
        self.waiting = [sequence for sequence in self.waiting if not sequence.over]
        for slot, sequence in enumerate(self.slots):
            if sequence is not None and sequence.over:
                self.slots[slot] = None
                self.runner.leave(slot)
        running = self.running
        if running and running[-1].slot >= 2 * len(running) and running[-1] not in self.waiting:
            self._move(running[-1], self.slots.index(None))

    def step(self) -> None:
        """Prefill one chunk, decode one token a row, and hand the tokens to their sequences."""
        serial = self.speculation is not None or any(
            sequence.grammar is not None for sequence in self.running
        )
        if serial:
            self._settle()
        if self.waiting:
            self._prefill()
            if serial:
                self._settle()
        if any(sequence.position and not sequence.over for sequence in self.running):
            self._decode()
        self._settle(keep=1 if self._overlap and not serial else 0)

    def clear(self) -> None:
        """Forget everything, keys included; for use after a failure."""
        self._pending.clear()
        self.waiting.clear()
        for slot in range(len(self.slots)):
            self.slots[slot] = None
            self.history[slot] = []
            self.runner.leave(slot)
        if self.speculation is not None:
            self.speculation.drafter.clear()

    def _shared(self, slot: int, prompt: list[int], salt: str) -> int:
        """How much of the prompt's beginning the slot holds, keys of sliding layers included."""
        if self.salts[slot] != salt:
            return 0
        length = common(self.history[slot], prompt[:-1])
        return length if self.runner.cache.keeps(length, len(self.history[slot])) else 0

    def _prefill(self) -> None:
        chosen, chunks = self._chunks()
        scored = chosen[0].scored
        logits = self.runner.prefill(chunks, every=scored)
        for row, (sequence, chunk) in enumerate(zip(chosen, chunks, strict=True)):
            sequence.past += len(chunk.tokens)
            self.history[sequence.slot] += chunk.tokens
            if scored:
                targets = sequence.job.prompt[chunk.past + 1 : sequence.past + 1]
                count = sequence.job.request.prompt_logprobs or 0
                sequence.job.likelihoods += likelihoods(logits[row], targets, count)
        if scored:
            logits = logits[range(len(chunks)), [len(chunk.tokens) - 1 for chunk in chunks]]
        done = [i for i, sequence in enumerate(chosen) if sequence.past == len(sequence.job.prompt)]
        for sequence in (chosen[i] for i in done):
            sequence.position = sequence.past
            self.waiting.remove(sequence)
            if sequence.scored:
                sequence.job.tell_prompt()
            if not sequence.job.max_tokens:
                sequence.close()
        computed = (chosen[i].past - chosen[i].job.cached for i in done)
        if self.runner.device.type == "cpu" and any(count >= LONG for count in computed):
            give_back_freed_memory()
        ready = [i for i in done if not chosen[i].over]
        if not ready:
            return
        begun = [chosen[i] for i in ready]
        drawn = self._draw(logits[ready], dict(enumerate(begun)))
        for sequence in begun:
            self.runner.join(sequence.slot, sequence.position)
        self.runner.tokens[[sequence.slot for sequence in begun]] = drawn.tokens

    def _chunks(self) -> tuple[list[Sequence], list[Chunk]]:
        """The next parts of waiting prompts that are read together: all of those whose log
        probabilities are wanted, or none."""
        chosen: list[Sequence] = []
        width, scored = 0, self.waiting[0].scored
        most = min(self.prefill_tokens, self._scored_tokens) if scored else self.prefill_tokens
        for sequence in self.waiting:
            if sequence.scored != scored:
                continue
            rest = sequence.job.prompt[sequence.past : sequence.past + most]
            wider = max(width, len(rest))
            if chosen and wider * (len(chosen) + 1) > most:
                break
            width = wider
            chosen.append(sequence)
        chosen.sort(key=lambda sequence: sequence.slot)  # neighbours are read without a copy
        return chosen, [
            Chunk(one.slot, one.past, one.job.prompt[one.past : one.past + most]) for one in chosen
        ]

    def _decode(self) -> None:
        rows = {sequence.slot: sequence for sequence in self.running if sequence.position}
        longest = max(sequence.position for sequence in rows.values())
        if self.speculation is None:
            self._decode_one(rows, longest)
            return
        drafts = self.speculation.drafts(rows) if self.runner.fits(longest) else {}
        width = self._verify(rows, drafts, longest) if drafts else self._decode_one(rows, longest)
        self._settle()
        if self.runner.fits(longest):
            self.speculation.note(len(rows), width)

    def _decode_one(self, rows: dict[int, Sequence], longest: int) -> int:
        drawn = self._draw(self.runner.decode(max(rows) + 1, longest), rows)
        self.runner.advance(drawn.tokens)
        for sequence in rows.values():
            sequence.position += 1
        return 1

    def _verify(self, rows: dict[int, Sequence], drafts: dict[int, list[int]], longest: int) -> int:
        """Draw position after position as always; a row goes on while its guess was the token
        drawn, whose keys are in their place then. Returns how many tokens of a row were
        computed."""
        guesses = [drafts.get(slot, []) for slot in range(max(rows) + 1)]
        logits = self.runner.verify(guesses, longest)
        begun = {slot: sequence.position for slot, sequence in rows.items()}
        going = rows
        for place in range(logits.shape[1]):
            self._draw(logits[:, place], going)
            for sequence in going.values():
                sequence.position += 1
            self._settle()
            going = {
                slot: sequence
                for slot, sequence in going.items()
                if not sequence.over and guesses[slot][place : place + 1] == sequence.tokens[-1:]
            }
            if not going:
                break
        for slot, guess in drafts.items():
            rows[slot].judge(len(guess), rows[slot].position - begun[slot] - 1)
        kept = {slot: sequence for slot, sequence in rows.items() if not sequence.over}
        self.runner.place(
            {slot: sequence.tokens[-1] for slot, sequence in kept.items()},
            {slot: sequence.position for slot, sequence in kept.items()},
        )
        return int(logits.shape[1])

    def _draw(self, logits: Tensor, rows: dict[int, Sequence]) -> Draw:
        allowed = {}
        for index, sequence in rows.items():
            if sequence.grammar is not None and not sequence.over:
                try:
                    allowed[index] = sequence.grammar.allowed().to(logits.device)
                except Exception as error:
                    sequence.job.fail(of_a_request(error))
        states = [rows[index].row if index in rows else None for index in range(logits.shape[0])]
        drawn = draw(logits, states, allowed)
        for index, fault in drawn.errors.items():
            rows[index].job.fail(of_a_request(fault))
        self._pending.append(Pending.of(rows, drawn, self._overlap))
        return drawn

    def _settle(self, keep: int = 0) -> None:
        """Hand the oldest draws to their sequences until `keep` are left in flight."""
        while len(self._pending) > keep:
            pending = self._pending.pop(0)
            pending.wait()
            self._hand_out(pending)

    def _hand_out(self, pending: Pending) -> None:
        tokens, finite = pending.draw.tokens.tolist(), pending.draw.finite.tolist()
        for index, sequence in pending.sequences.items():
            if sequence.over:
                continue
            if sequence.tokens:
                self.history[sequence.slot].append(sequence.tokens[-1])
            try:
                if not finite[index]:
                    raise GenerationFailed("the model computed logits that are not finite numbers")
                sequence.take(
                    tokens[index],
                    pending.likelihood(index, tokens[index], sequence.row.logprobs),
                )
            except Exception as error:
                sequence.job.fail(of_a_request(error))

    def _move(self, sequence: Sequence, target: int) -> None:
        self._settle()
        if sequence.over:
            return
        source = sequence.slot
        self.runner.move(source, target, sequence.position)
        self.slots[target], self.slots[source], sequence.slot = sequence, None, target
        self.history[target] = list(self.history[source])
        self.salts[target] = self.salts[source]
        if self.speculation is not None:
            self.speculation.drafter.move(source, target)


def common(left: list[int], right: list[int]) -> int:
    """Length of the common beginning; compares slices, since most lists differ early or not at
    all."""
    end = min(len(left), len(right))
    at = 0
    while at < end and left[at : at + 256] == right[at : at + 256]:
        at += 256
    at = min(at, end)
    while at < end and left[at] == right[at]:
        at += 1
    return at
