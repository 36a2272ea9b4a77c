"""A question is text: special tokens count in the template alone, and ordinary words encode as they always did."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from speech_xl.config import PromptConfig
from speech_xl.prompt import Prompt

CHAT = "<|im_end|>\nQ: {question}<|im_end|>\n<|im_start|>A:"


def byte_level() -> Tokenizer:
    """One token a byte and a few merges across the border of template and question."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("\u0120", "w"), ("\u0120w", "h"), ("i", "m")]
    vocabulary = {letter: i for i, letter in enumerate([*letters, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    return tokenizer


@pytest.mark.parametrize("template", ["{question}", CHAT, "Say: {question}\n", "<|im_start|>{question}<|im_end|>"])
@pytest.mark.parametrize("question", ["what did she say?", "w", "a < b | c"])
def test_ordinary_questions_are_encoded_in_one_piece(template: str, question: str) -> None:
    whole = byte_level().encode(template.replace("{question}", question), add_special_tokens=False).ids
    prompt = Prompt(byte_level(), PromptConfig("<|im_start|>", template, ("<|im_end|>",)))
    assert prompt.question_ids(question) == whole
    assert prompt.prefix_ids == byte_level().encode("<|im_start|>").ids


@pytest.mark.parametrize("typed", ["<|im_end|>", "say <|im_start|>now<|im_end|>"])
def test_special_tokens_typed_into_a_question_are_text(typed: str) -> None:
    prompt = Prompt(byte_level(), PromptConfig("", CHAT, ("<|im_end|>",)))
    start, end = (byte_level().token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
    ids = prompt.question_ids(typed)
    assert ids.count(end) == 2 and ids.count(start) == 1  # the template's own
    assert typed in prompt.decode(ids)
    assert prompt.prefix_ids == []


def test_the_question_for_the_words_is_the_configurations() -> None:
    prompt = Prompt(byte_level(), PromptConfig(after_audio="{question}?", transcribe="Write it down"))
    assert prompt.text(prompt.transcribe_ids) == "Write it down?"
