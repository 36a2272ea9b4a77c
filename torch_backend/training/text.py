"""The nano model's tokenizer, trained on the order desk's own language.

Byte-level, so that any question can be encoded; small, so that every word of the domain is one token.
It knows no audio and no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from torch_backend.training.grammar import DIGIT_WORDS

BLANK, BEGIN, ANSWER, END = "<|blank|>", "<|begin|>", "<|answer|>", "<|end|>"
SPECIAL_TOKENS = (BLANK, BEGIN, ANSWER, END)


def build_tokenizer(corpus: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer (lower-casing, digits apart, "order 5" read as "order 05")."""
    tokenizer = Tokenizer(BPE())
    # An announced number is always two spoken digits, so a lone digit gets its leading zero here, where
    # every backend and every way of asking passes through.
    padded = [normalizers.Replace(Regex(f"(?<![0-9]){d}(?![0-9])"), f"0{d}") for d in range(10)]
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), *padded])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def spoken_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """Token ids of spoken words; a digit's word is the token of its figure, as in a written question."""
    ids: list[int] = []
    for word in words:
        if word in DIGIT_WORDS:
            ids.append(tokenizer.token_to_id(f"Ġ{DIGIT_WORDS.index(word)}"))
        else:
            ids += tokenizer.encode(word).ids
    return ids


def load_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
