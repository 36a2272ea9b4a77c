"""The untrained checkpoints that the study starts from: a small decoder, whose tokens are whole words of the order desk.

For the arms on text it comes with a description of a recogniser, which says that speech tokens are words; no word is
ever recognised, so the recogniser has no weights. For those about the adapter, nano's trained encoder is put before it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from recipes.order_desk.grammar import NOT_MENTIONED, QUESTIONS, SPOKEN_WORDS
from speech_xl.checkpoints import EMBEDDED_FOLDER
from speech_xl.config import DecoderConfig, EncoderConfig, ModelConfig, PromptConfig, RecognizerConfig
from speech_xl.config_file import load_config, save_config
from torch_backend.decoder import Decoder
from torch_backend.model import SpeechXL
from training.export import folder_of
from training.network import read_tensors

BEGIN, ANSWER, END, UNKNOWN = "<|begin|>", "<|answer|>", "<|end|>", "<|unknown|>"
PROMPT = PromptConfig(before_audio=BEGIN, after_audio="{question}" + ANSWER, end_tokens=(END,))
SPREAD = 0.05  # standard deviation of fresh weights


def word_tokenizer() -> Tokenizer:
    """One token for each word of the order desk and of its questions, and for each digit."""
    questions = [wording.format(n="0123456789") for wordings in QUESTIONS.values() for wording in wordings]
    tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    cut = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    text = " ".join([*SPOKEN_WORDS, NOT_MENTIONED, PROMPT.transcribe, *questions]).lower()
    words = sorted({word for word, _ in cut.pre_tokenize_str(text)})
    vocabulary = {word: number for number, word in enumerate([UNKNOWN, *words])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNKNOWN)
    tokenizer.pre_tokenizer = cut
    tokenizer.add_special_tokens([BEGIN, ANSWER, END])
    return tokenizer


def decoder_config(tokenizer: Tokenizer) -> DecoderConfig:
    """A decoder of a few hundred thousand weights over that vocabulary."""
    return DecoderConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rope_theta=10_000.0,
        attention_bias=False,
    )


def write_text_checkpoint(folder: Path, seed: int) -> None:
    """A fresh decoder that hears words."""
    tokenizer = word_tokenizer()
    recognizer = RecognizerConfig(
        vocab_size=2,
        decoder_layers=1,
        decoder_attention_heads=1,
        decoder_ffn_dim=1,
        max_target_positions=2,
        start_ids=(0,),
        end_id=1,
        no_speech_id=0,
        suppressed_ids=(),
        alignment_heads=((0, 0),),
    )
    encoder = EncoderConfig(
        num_mel_bins=80,
        d_model=1,
        encoder_layers=1,
        encoder_attention_heads=1,
        encoder_ffn_dim=1,
        max_source_positions=8,
    )
    config = ModelConfig(encoder, decoder_config(tokenizer), recognizer=recognizer, prompt=PROMPT, name="ablations")
    torch.manual_seed(seed)
    decoder = Decoder(config.decoder, None)
    _write(folder, config, tokenizer, {f"decoder.{name}": fresh(t) for name, t in decoder.state_dict().items()})


def write_speech_checkpoint(folder: Path, trained: Path, seed: int) -> None:
    """The decoder of `trained`, nano's encoder, and a fresh adapter between them."""
    nano = load_config(EMBEDDED_FOLDER)
    config = load_config(trained)
    config = replace(config, encoder=nano.encoder, adapter=nano.adapter, recognizer=None)
    torch.manual_seed(seed)
    tensors = {
        name: fresh(t) for name, t in SpeechXL(config).state_dict().items() if name.startswith("speech.adapter.")
    }
    tensors |= {n: t.float() for n, t in read_tensors(EMBEDDED_FOLDER, lambda n: n.startswith("speech.encoder."))}
    tensors |= read_tensors(trained, lambda n: n.startswith("decoder."))
    _write(folder, config, word_tokenizer(), tensors)


def fresh(tensor: torch.Tensor) -> torch.Tensor:
    """Matrices are drawn; biases stay at zero, and norms at one."""
    if tensor.ndim < 2:
        return torch.ones_like(tensor) if tensor.min() == 1 else torch.zeros_like(tensor)
    return torch.randn_like(tensor) * SPREAD


def _write(folder: Path, config: ModelConfig, tokenizer: Tokenizer, tensors: dict[str, torch.Tensor]) -> None:
    """The folder is either whole or absent."""
    with folder_of(folder) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary / "model.safetensors")
        save_config(config, temporary)
        tokenizer.save(str(temporary / "tokenizer.json"))
