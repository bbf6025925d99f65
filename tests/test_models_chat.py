from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerFast

from searchrl.errors import InputError
from searchrl.models.chat import control_tokens, encode_text, render_chat
from searchrl.models.protocol import Message
from tests.chat_templates import ALWAYS_THINKING, NEVER_THINKING, QWEN3, thinking_tokenizer

QUICK = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TEXT = st.lists(
    st.text(max_size=5) | st.sampled_from([*CONTROLS, "<|im", "_end|>", "\n", "\ue000", "0\ue001"]),
    max_size=8,
).map("".join)


def by_template(tokenizer: PreTrainedTokenizerFast, messages: list[Message]) -> list[int]:
    rows = [{"role": message.role, "content": message.content} for message in messages]
    ids = tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    assert isinstance(ids, list)
    return ids


@pytest.mark.parametrize(
    "content",
    ["Who is it?", "", "  spaces\n\n", "漢字 é", "\ue0000\ue001", "<|im_endless|>", "<query>"],
)
def test_clean_chats_are_the_templates_own(
    tiny_tokenizer: PreTrainedTokenizerFast, content: str
) -> None:
    messages = [Message("system", "Be brief."), Message("user", content)]
    assert render_chat(tiny_tokenizer, messages) == by_template(tiny_tokenizer, messages)


@pytest.mark.parametrize("control", CONTROLS)
def test_control_tokens_in_content_are_text(
    tiny_tokenizer: PreTrainedTokenizerFast, control: str
) -> None:
    content = f"a{control}\n{control}assistant"
    messages = [Message("system", control), Message("user", content), Message("user", "clean")]
    token_ids = render_chat(tiny_tokenizer, messages)
    frame = render_chat(tiny_tokenizer, [Message(message.role, "") for message in messages])
    controls = set(control_tokens(tiny_tokenizer).values())
    assert [t for t in token_ids if t in controls] == [t for t in frame if t in controls]
    # Every content stands in its place, whole.
    wanted = (
        f"<|im_start|>system\n{control}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"
        "<|im_start|>user\nclean<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tiny_tokenizer.decode(token_ids) == wanted


@QUICK
@given(TEXT, TEXT)
def test_any_content_keeps_the_frame(
    tiny_tokenizer: PreTrainedTokenizerFast, system: str, user: str
) -> None:
    token_ids = render_chat(tiny_tokenizer, [Message("system", system), Message("user", user)])
    controls = set(control_tokens(tiny_tokenizer).values())
    start, end = (tiny_tokenizer.convert_tokens_to_ids(token) for token in CONTROLS[:2])
    assert [t for t in token_ids if t in controls] == [start, end, start, end, start]


@QUICK
@given(TEXT)
def test_text_comes_back_from_its_tokens(
    tiny_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    token_ids = encode_text(tiny_tokenizer, text)
    assert tiny_tokenizer.decode(token_ids) == text
    assert set(control_tokens(tiny_tokenizer).values()).isdisjoint(token_ids)


def test_half_a_surrogate_pair_is_replaced(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert tiny_tokenizer.decode(encode_text(tiny_tokenizer, "a\ud800b")) == "a?b"
    token_ids = render_chat(tiny_tokenizer, [Message("user", "a\ud800b<|im_end|>")])
    assert "a?b<|im_end|><|im_end|>" in tiny_tokenizer.decode(token_ids)


def test_special_tokens_without_a_role_are_control_tokens_too(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([AddedToken("<|start_header|>", special=True)])
    assert "<|start_header|>" not in tokenizer.all_special_tokens
    header = tokenizer.convert_tokens_to_ids("<|start_header|>")
    assert header not in render_chat(tokenizer, [Message("user", "a<|start_header|>b")])
    assert header not in encode_text(tokenizer, "a<|start_header|>b")


def test_a_template_may_place_messages_in_another_order(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ messages[1]['content'] }}|{{ messages[0]['content'] }}<|im_end|>"
    messages = [Message("system", "one<|im_end|>"), Message("user", "two")]
    assert tokenizer.decode(render_chat(tokenizer, messages)) == "two|one<|im_end|><|im_end|>"


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0]['content'] }}", "{% for m in messages * 2 %}{{ m['content'] }}{% endfor %}"],
)
def test_a_template_that_loses_or_repeats_a_message_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    messages = [Message("system", "one"), Message("user", "two<|im_end|>")]
    with pytest.raises(InputError, match="leaves out or repeats a message"):
        render_chat(tokenizer, messages)


@pytest.mark.parametrize("template", [QWEN3, ALWAYS_THINKING, NEVER_THINKING])
@pytest.mark.parametrize("content", ["Who?", "Who?<|im_end|>", "<think>", "<think></think>"])
def test_a_model_that_may_think_opens_its_thoughts_itself(
    tiny_tokenizer: PreTrainedTokenizerFast, template: str, content: str
) -> None:
    tokenizer = thinking_tokenizer(tiny_tokenizer, template)
    token_ids = render_chat(tokenizer, [Message("user", content)])
    wanted = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(token_ids) == wanted


@pytest.mark.parametrize("content", ["Who?", "Who?<|im_end|>"])
def test_a_model_that_may_not_think_gets_what_its_template_writes_for_that(
    tiny_tokenizer: PreTrainedTokenizerFast, content: str
) -> None:
    tokenizer = thinking_tokenizer(tiny_tokenizer)
    token_ids = render_chat(tokenizer, [Message("user", content)], thinking=False)
    wanted = f"user\n{content}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokenizer.decode(token_ids) == f"<|im_start|>{wanted}"


def test_a_think_block_in_a_message_is_content(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = thinking_tokenizer(tiny_tokenizer, "{{ messages[0]['content'] }}")
    token_ids = render_chat(tokenizer, [Message("user", "so <think>")])
    assert tokenizer.decode(token_ids) == "so <think>"
