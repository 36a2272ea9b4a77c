"""Text to token ids and back: what stands before the audio, a question behind it, and how answers end.

It knows the checkpoint's tokenizer and prompt templates, no audio and no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from speech_xl.config import ModelConfig, PromptConfig
from speech_xl.errors import CheckpointError, QuestionError
from speech_xl.tokenizer_file import load_tokenizer

LONGEST_ANSWER = 256  # tokens, unless more are asked for
LONGEST_QUESTION = 4000  # characters; a question is a sentence, not a document


class Prompt:
    """A checkpoint's tokenizer with its templates filled in.

    Special tokens count in the templates only: what a person types is text, "<|im_end|>" included.
    """

    def __init__(self, tokenizer: Tokenizer, config: PromptConfig):
        self._tokenizer = tokenizer
        self._config = config
        self.prefix_ids = self._encode(config.before_audio)
        # Between two special tokens a tokenizer reads text as one: there the template and the question stay together.
        specials = [re.escape(t.content) for t in tokenizer.get_added_tokens_decoder().values() if t.special]
        special = re.compile("|".join(sorted(specials, key=len, reverse=True)) or r"(?!)")
        before, _, after = config.after_audio.partition("{question}")
        start = max((m.end() for m in special.finditer(before)), default=0)
        end = next((m.start() for m in special.finditer(after)), len(after))
        self._head_ids, self._tail_ids = self._encode(before[:start]), self._encode(after[end:])
        self._around = before[start:], after[:end]
        ends = {token: tokenizer.token_to_id(token) for token in config.end_tokens}
        unknown = [token for token, number in ends.items() if number is None]
        if unknown:
            raise CheckpointError(f"tokenizer.json lacks the end token {unknown[0]!r} that config.json names.")
        self.end_ids = frozenset(number for number in ends.values() if number is not None)
        self.end_id = next(iter(ends.values()), None)  # what training ends answers with
        tokenizer.encode_special_tokens = True  # as plain text, from here on

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Prompt:
        """Read `folder`/tokenizer.json; CheckpointError if it is absent or broken."""
        tokenizer = load_tokenizer(folder, "tokenizer.json", "decoder", config.decoder.vocab_size)
        return cls(tokenizer, config.prompt)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def word_ids(self, word: str) -> tuple[list[int], list[float]]:
        """Token ids of a word behind a blank, and the share of its characters, 0 to 1, at which each of them ends."""
        encoding = self._tokenizer.encode(f" {word}", add_special_tokens=False)
        reach = np.maximum.accumulate([end for _, end in encoding.offsets]) / (len(word) + 1)
        return encoding.ids, np.minimum(reach, 1.0).tolist()

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text, as an answer has them."""
        return self._encode(text)

    def question_ids(self, question: str) -> list[int]:
        """Token ids of everything behind the audio, up to where the answer starts."""
        question = question.strip()
        if not question:
            raise QuestionError("The question is empty; type what you want to know about the recording.")
        if len(question) > LONGEST_QUESTION:
            raise QuestionError(f"The question has {len(question)} characters; ask it in {LONGEST_QUESTION} or fewer.")
        if not question.isascii() and any("\ud800" <= c <= "\udfff" for c in question):  # bytes of another encoding
            raise QuestionError("The question is not valid Unicode text; type it again in UTF-8.")
        before, after = self._around
        return [*self._head_ids, *self._encode(before + question + after), *self._tail_ids]

    @cached_property
    def transcribe_ids(self) -> list[int]:
        """Token ids of the question that asks for the words."""
        return self.question_ids(self._config.transcribe)

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, special tokens left out, white space at its ends kept."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        return self.text(ids).strip()
