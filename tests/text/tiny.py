"""A tiny random causal model with a byte-level tokenizer and a chat template, for tests that need
no sense."""

from __future__ import annotations

from pathlib import Path

TEMPLATE = """{%- if reasoning_effort %}<|im_start|>system
Reasoning: {{ reasoning_effort }}<|im_end|>
{% endif %}{%- if tools %}<|im_start|>system
Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call>. Tools:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

SPECIAL = ["<|im_start|>", "<|im_end|>"]
MARKERS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]


THINKING = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
"""As templates of reasoning models end: the prompt opens the reasoning, the answer closes it."""

PLAIN = """{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""As Gemma's: no tools, and roles that must alternate."""

CODER = """{%- if tools %}<|im_start|>system
Answer with <tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value
</parameter>
</function>
</tool_call>. Tools:{% for tool in tools %}
{{ tool.function.name }}{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls %}<tool_call>
<function={{ call.function.name }}>
{% for key, value in call.function.arguments|items %}<parameter={{ key }}>
{{ value }}
</parameter>
{% endfor %}</function>
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""As Qwen3-Coder's: calls as XML."""


def make_checkpoint(
    folder: Path, context: int = 512, hidden: int = 64, layers: int = 2, template: str = TEMPLATE
) -> Path:
    """Write a Qwen3 checkpoint with random weights of 3 digits' size and a vocabulary of bytes and
    a few markers. With the template THINKING it ends its reasoning as soon as it may."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in MARKERS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=context,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.eos_token_id,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = Qwen3ForCausalLM(config)
    if template == THINKING:
        with torch.no_grad():
            ids = torch.randint(0, 250, (8, 32))
            mean = model.model(input_ids=ids).last_hidden_state.mean((0, 1))
            row = fast.convert_tokens_to_ids("</think>")
            model.model.embed_tokens.weight[row] = 6 * mean / mean.norm()
    model.save_pretrained(folder)
    return folder
