"""Chat templates with a think mode, as published models have them, and a tokenizer for it."""

from __future__ import annotations

import copy

from transformers import AddedToken, PreTrainedTokenizerFast

QWEN3 = r"""
{%- set asked = namespace(last=-1) %}
{%- for message in messages %}
  {%- if message['role'] == 'user' %}{% set asked.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
  {%- set content = message['content'] %}
  {%- if message['role'] == 'assistant' and '</think>' in content %}
    {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
    {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- if loop.index0 > asked.last %}
      {%- set content = '<think>\n' + thought + '\n</think>\n\n' + content %}
    {%- endif %}
  {%- endif %}
  {{- '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\n\n</think>\n\n' }}
  {%- endif %}
{%- endif %}
"""
"""As Qwen3 does: no thoughts of earlier messages, and an empty block where thinking is off."""

_GENERATION = "{{- '<|im_start|>assistant\\n' }}"
ALWAYS_THINKING = QWEN3.replace(_GENERATION, "{{- '<|im_start|>assistant\\n<think>\\n' }}")
"""As the models that only think: the block is opened for them."""
NEVER_THINKING = QWEN3.replace(_GENERATION, "{{- '<|im_start|>assistant\\n<think></think>' }}")
"""A block that is empty whatever is asked for."""


def thinking_tokenizer(
    base: PreTrainedTokenizerFast, template: str = QWEN3
) -> PreTrainedTokenizerFast:
    """A copy with a template, in which the think tags are tokens of their own and not special."""
    tokenizer = copy.deepcopy(base)
    tags = [AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")]
    tokenizer.add_tokens(tags)
    tokenizer.chat_template = template
    return tokenizer
