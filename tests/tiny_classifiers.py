"""Tiny classifiers of pictures and prompts, made from configuration: random weights for pictures,
and a prompt classifier that is taught one word in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

LABELS = {0: "normal", 1: "nsfw"}


def picture_classifier(folder: Path, processor: Any = None, **config: Any) -> Path:
    """A ViT of 32 x 32 pixels, whose scores are spread out so that pictures differ by them."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = ViTConfig(
        **sizes,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        id2label=LABELS,
        label2id={name: index for index, name in LABELS.items()},
        initializer_range=0.4,
        **config,
    )
    ViTForImageClassification(made).save_pretrained(folder)
    (processor or ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    return folder


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "on", "the", "hill", "blood")


def prompt_classifier(folder: Path) -> Path:
    """A BERT of 64 positions that finds the word blood."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(ids, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(tokenizer_object=words, sep_token="[SEP]", **special).save_pretrained(
        folder
    )
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label={0: "harmless", 1: "violence"},
        label2id={"harmless": 0, "violence": 1},
    )
    model = BertForSequenceClassification(config)
    steps = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = torch.arange(32)
    labels = rows % 2
    for _ in range(150):
        inputs = torch.randint(4, len(WORDS) - 1, (32, 62))
        lengths = torch.randint(3, 63, (32,))
        places = 1 + (torch.rand(32) * (lengths - 2)).long()
        inputs[rows[labels == 1], places[labels == 1]] = ids["blood"]
        inputs[:, 0] = ids["[CLS]"]
        inputs[rows, lengths - 1] = ids["[SEP]"]
        mask = (torch.arange(62)[None] < lengths[:, None]).long()
        loss = model(input_ids=inputs * mask, attention_mask=mask, labels=labels).loss
        loss.backward()
        steps.step()
        steps.zero_grad()
    model.eval().save_pretrained(folder)
    return folder
