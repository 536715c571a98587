"""The tokenizer: a byte-level BPE learned from generated dialogues, with the turn and tool-call
marks.

    python -m atelier.builtin.scenes.tokenizer --out builtin/scenes

Being byte-level it encodes any text and gives it back unchanged. `chat_template.jinja` beside this
file is written by hand; saving the tokenizer puts it into the checkpoint.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from atelier.builtin.scenes.dialogue import Dialogue, Split, sample_dialogues

VOCABULARY = 1536
CONTEXT = 2048
TEMPLATE = Path(__file__).with_name("chat_template.jinja")

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
# Ordinary added tokens: engines strip special ones from their answers, and the parsers must see
# these.
CALL_MARKS = ("<tool_call>", "</tool_call>")


def build(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learns the merges from `texts` and returns a tokenizer of at most `VOCABULARY` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(CALL_MARKS),
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in CALL_MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=TEMPLATE.read_text(),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the tokenizer files, with the class and the marks named as transformers 4 and 5 both
    read them."""
    tokenizer.save_pretrained(folder)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [TURN_START],
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def texts(dialogue: Dialogue) -> Iterator[str]:
    """Everything that is written in a dialogue, but for the marks."""
    for message in dialogue.messages:
        yield message["content"]
        for call in message.get("tool_calls", ()):
            yield json.dumps(call["function"])
    for tool in dialogue.tools or ():
        yield json.dumps(tool)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=TEMPLATE.parent, help="folder to write the tokenizer files to"
    )
    parser.add_argument(
        "--dialogues", type=int, default=20000, help="dialogues to learn the merges from"
    )
    arguments = parser.parse_args()
    dialogues = sample_dialogues(Split.TRAIN, seed=0, count=arguments.dialogues)
    tokenizer = build(text for dialogue in dialogues for text in texts(dialogue))
    save(tokenizer, arguments.out)
    print(f"{len(tokenizer)} tokens written to {arguments.out}")


if __name__ == "__main__":
    main()
