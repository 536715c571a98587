"""Tokenizers and language-model text encoders of the newer families, with random weights and an
alphabet of bytes."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ByT5Tokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    GlmConfig,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageProcessor,
    GlmModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil

from tests.tiny_pipelines import TEXT_WIDTH

CHAT = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}\
{{ part['text'] if part['type'] == 'text' else '<|image_pad|>' }}{% endfor %}{% endif %}<|im_end|>
{% endfor %}"""
PICTURE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *PICTURE_TOKENS)


def _vocabulary() -> dict[str, int]:
    return {symbol: index for index, symbol in enumerate([*SPECIAL, *sorted(ByteLevel.alphabet())])}


def byte_tokenizer() -> Qwen2Tokenizer:
    """One token a byte, with Qwen's special tokens and a chat template."""
    tokenizer = Qwen2Tokenizer(vocab=_vocabulary(), merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.chat_template = CHAT
    return tokenizer


def glm_tokenizer(**tokens: str) -> PreTrainedTokenizerFast:
    """One token a byte after a first one that is always there, so that an empty prompt is not
    nothing."""
    core = Tokenizer(BPE(vocab=_vocabulary(), merges=[]))
    core.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    first = SPECIAL[1]
    core.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, SPECIAL.index(first))]
    )
    core.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[0],
        bos_token=first,
        padding_side="left",
        chat_template=CHAT,
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=tokens,
    )


def gemma_tokenizer() -> GemmaTokenizer:
    symbols = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        "▁",
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    return GemmaTokenizer(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[])


def bert_tokenizer() -> BertTokenizer:
    letters = [chr(code) for code in range(33, 127)]
    symbols = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    return BertTokenizer(
        vocab={symbol: index for index, symbol in enumerate(symbols)}, model_max_length=77
    )


def _decoder(width: int, layers: int, **more: Any) -> dict[str, Any]:
    """The fields that the configurations of decoder language models share."""
    return {
        "vocab_size": 320,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": width // 2,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **more,
    }


def qwen3(layers: int = 2, width: int = TEXT_WIDTH) -> Qwen3Model:
    """Z-Image's encoder."""
    return Qwen3Model(Qwen3Config(**_decoder(width, layers)))


def qwen3_causal(layers: int, width: int) -> Qwen3ForCausalLM:
    """FLUX.2 klein's encoder."""
    return Qwen3ForCausalLM(Qwen3Config(**_decoder(width, layers)))


def gemma2() -> Gemma2Model:
    """The encoder of Lumina 2 and Sana."""
    return Gemma2Model(Gemma2Config(**_decoder(TEXT_WIDTH, 2)))


def glm() -> GlmModel:
    """CogView4's encoder."""
    return GlmModel(GlmConfig(**_decoder(TEXT_WIDTH, 2)))


def qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    """The encoder of Qwen-Image and Kandinsky 5."""
    rope = {
        "type": "default",
        "rope_type": "default",
        "mrope_section": [1, 1, 2],
        "rope_theta": 1e6,
    }
    special = {token: index for index, token in enumerate(SPECIAL)}
    text = _decoder(TEXT_WIDTH, 2, rope_parameters=rope)
    text.pop("head_dim")
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config=text | {"num_attention_heads": 4},
        vision_config=vision,
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"],
        image_token_id=special["<|image_pad|>"],
        video_token_id=special["<|video_pad|>"],
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def bert() -> BertModel:
    """HunyuanDiT's first encoder."""
    return BertModel(
        BertConfig(
            vocab_size=len(bert_tokenizer()),
            hidden_size=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=37,
            max_position_embeddings=80,
        )
    )


def umt5() -> UMT5EncoderModel:
    """AuraFlow's encoder."""
    return UMT5EncoderModel(
        UMT5Config(vocab_size=128, d_model=TEXT_WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    )


def byt5() -> T5EncoderModel:
    """GLM-Image's encoder of the words that are to be written into the picture."""
    vocabulary = len(ByT5Tokenizer())
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary, d_model=TEXT_WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4
        )
    )


def clip_vision() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=37,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config)


def clip_image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def mistral3(layers: int, width: int) -> Mistral3ForConditionalGeneration:
    """FLUX.2-dev's encoder, a language model that could look at pictures too."""
    vision = PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    config = Mistral3Config(
        text_config=MistralConfig(**_decoder(width, layers, sliding_window=None)),
        vision_config=vision,
        image_token_index=SPECIAL.index("<|image_pad|>"),
    )
    return Mistral3ForConditionalGeneration(config)


def strengthened(model: torch.nn.Module) -> torch.nn.Module:
    """Redraw the linear layers with unit gain and what starts as zeros (gates, last layers) with a
    little noise.

    The usual small weights would let a prompt change a picture by less than a grey level, and a
    mix-up go unseen.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.05)
    return model


def glm_image(codes: int) -> GlmImageForConditionalGeneration:
    """GLM-Image's writer of picture tokens: the first `codes` tokens are pictures, then start and
    end of a picture.

    The end of the text lies outside what it can write, so that random weights do not stop before
    the picture is full.
    """
    text = _decoder(
        16,
        1,
        rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
    )
    text |= {
        "vocab_size": 512,
        "vision_vocab_size": codes + 2,
        "eos_token_id": 511,
        "pad_token_id": 0,
    }
    text.pop("head_dim")
    config = GlmImageConfig(
        text_config=text,
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 16,
            "image_size": 64,
        },
        vq_config={"embed_dim": 8, "num_embeddings": codes, "latent_channels": 16},
        image_token_id=SPECIAL.index("<|image_pad|>"),
        image_start_token_id=codes,
        image_end_token_id=codes + 1,
    )
    return GlmImageForConditionalGeneration(config)


def glm_image_processor() -> GlmImageProcessor:
    tokenizer = glm_tokenizer(
        image_token="<|image_pad|>",
        grid_bos_token="<|vision_start|>",
        grid_eos_token="<|vision_end|>",
    )
    return GlmImageProcessor(GlmImageImageProcessorPil(), tokenizer, chat_template=CHAT)
