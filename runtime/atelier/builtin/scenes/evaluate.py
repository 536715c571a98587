"""Scores the model on held-out dialogues: its greedy answer must equal the right one, character by
character.

    python -m atelier.builtin.scenes.evaluate --count 500

Writes `scores.json`: for each skill the share of exact answers and, for reading, the first wrong
ones. "written" are the messages of `written.json`, put down by hand in words that the generator
does not compose.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from atelier.builtin.scenes.dialogue import Dialogue, Skill, Split, sample_dialogues
from atelier.builtin.scenes.tools import IMAGE_TOOL, call

FOLDER = Path(__file__).parent
SEED = 20_000  # no training run draws from it
LONGEST = 200  # tokens of an answer
SHOWN = 5  # wrong answers kept for reading


@dataclass
class ScenesScore:
    """How many of a skill's dialogues were answered exactly."""

    asked: int = 0
    right: int = 0
    wrong: list[dict[str, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.right / self.asked

    def add(self, prompt: str, wanted: str, answer: str) -> None:
        """Counts one answer."""
        self.asked += 1
        self.right += answer == wanted
        if answer != wanted and len(self.wrong) < SHOWN:
            self.wrong.append({"prompt": prompt[-400:], "wanted": wanted, "answer": answer})


def rendered(dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """The prompt up to the last answer, and that answer, both as the chat template writes them."""

    def render(messages: list[dict[str, Any]], **options: Any) -> str:
        return str(
            tokenizer.apply_chat_template(messages, tools=dialogue.tools, tokenize=False, **options)
        )

    prompt = render(dialogue.messages[:-1], add_generation_prompt=True)
    wanted = render(dialogue.messages).removeprefix(prompt).removesuffix(f"{tokenizer.eos_token}\n")
    return prompt, wanted


@torch.inference_mode()
def answers(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> list[str]:
    """Greedy answers to rendered prompts, in one padded batch."""
    batch = tokenizer(
        list(prompts),
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=False,
    )
    batch = batch.to(model.device)
    generate: Any = model.generate
    generated: Any = generate(**batch, max_new_tokens=LONGEST, do_sample=False)
    texts = tokenizer.batch_decode(
        generated[:, batch["input_ids"].shape[1] :], skip_special_tokens=False
    )
    return [text.split(str(tokenizer.eos_token))[0] for text in texts]


def score(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: Sequence[Dialogue],
    rows: int,
) -> ScenesScore:
    """Asks every dialogue's last question, `rows` of like length at a time."""
    pairs = sorted(
        (rendered(dialogue, tokenizer) for dialogue in dialogues), key=lambda pair: len(pair[0])
    )
    result = ScenesScore()
    for start in range(0, len(pairs), rows):
        chunk = pairs[start : start + rows]
        given = answers(model, tokenizer, [prompt for prompt, _ in chunk])
        for (prompt, wanted), answer in zip(chunk, given, strict=True):
            result.add(prompt, wanted, answer)
    return result


def written() -> list[Dialogue]:
    """The dialogues put down by hand; the skills that take a tool get `IMAGE_TOOL`."""
    dialogues = []
    for entry in json.loads((FOLDER / "written.json").read_text()):
        skill = Skill(entry["skill"])
        answer = {"role": "assistant", "content": entry["answer"]}
        if skill is Skill.CALL:
            answer = call("generate_image", entry["answer"])
        messages = [{"role": "user", "content": entry["user"]}, answer]
        dialogues.append(
            Dialogue(skill, messages, [IMAGE_TOOL] if skill in (Skill.CALL, Skill.WORDS) else None)
        )
    return dialogues


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=FOLDER, help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=FOLDER / "scores.json")
    parser.add_argument("--count", type=int, default=500, help="held-out dialogues per skill")
    parser.add_argument("--rows", type=int, default=64, help="dialogues answered together")
    parser.add_argument(
        "--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16"
    )
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.model)
    model = Qwen3ForCausalLM.from_pretrained(arguments.model, dtype=arguments.dtype).eval()
    model.to(device)  # type: ignore[arg-type]
    started = time.monotonic()
    scores = {}
    for skill in Skill:
        held_out = list(sample_dialogues(Split.HELD_OUT, SEED, arguments.count, skill))
        scores[skill.value] = score(model, tokenizer, held_out, arguments.rows)
        print(f"{skill.value:>10}: {scores[skill.value].share:.4f}", flush=True)
    total = sum(one.right for one in scores.values()) / sum(one.asked for one in scores.values())
    scores["written"] = score(model, tokenizer, written(), arguments.rows)
    print(
        f"   written: {scores['written'].share:.4f}\n  held out: {total:.4f} in"
        f" {time.monotonic() - started:.0f} s"
    )
    report = {
        "exact_match": round(total, 4),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device,
    }
    skills = {name: {"share": round(one.share, 4)} | asdict(one) for name, one in scores.items()}
    arguments.out.write_text(json.dumps(report | {"skills": skills}, indent=1) + "\n")


if __name__ == "__main__":
    main()
