"""Whisper transcribing the same sound with the same weights: transformers', and faster-whisper's CTranslate2.

A model with a recogniser has Whisper's encoder and text decoder inside, so these are what its user would otherwise run.
All read greedily, in English, without timestamps. It knows no time.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.sound import windows_of
from speech_xl.checkpoints import SHIPPED, SMALL
from speech_xl.config import SAMPLING_RATE, EncoderConfig, RecognizerConfig
from speech_xl.config_file import load_config
from speech_xl.errors import BackendError, CheckpointError
from speech_xl.fetching import cache_folder, fetch_part
from speech_xl.model import SpeechModel
from speech_xl.word_reader import LARGEST_GROUP

Transcribe = Callable[[float], int]  # seconds of sound -> tokens or words that were read


def transcribers(model: SpeechModel) -> dict[str, Transcribe]:
    """Name -> what transcribes. CheckpointError for a model without a recogniser, BackendError for another one's weights."""
    recognizer_of(model)
    if model.backend.name != "torch":
        raise BackendError("Whisper is transformers', whose weights are torch's: compare with --backend torch.")
    found = {"transformers, 4 windows at once": with_transformers(model)}
    if find_spec("faster_whisper") is not None:
        found |= {f"faster-whisper, {kind}": with_faster_whisper(model, kind) for kind in ("float32", "int8")}
    return found


def recognizer_of(model: SpeechModel) -> RecognizerConfig:
    """CheckpointError for a model without one."""
    if model.config.recognizer is None:
        raise CheckpointError(f"{model.config.name} has no recogniser, so Whisper does not do its work; compare small.")
    return model.config.recognizer


def with_transformers(model: SpeechModel) -> Transcribe:
    """WhisperForConditionalGeneration on as many windows at once as we read."""
    from transformers import WhisperFeatureExtractor

    network, recognizer = whisper_network(model), recognizer_of(model)
    extract = WhisperFeatureExtractor(feature_size=model.config.encoder.num_mel_bins)

    def transcribe(seconds: float) -> int:
        read, windows = 0, windows_of(seconds)
        while batch := list(itertools.islice(windows, LARGEST_GROUP)):
            mel = extract(batch, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
            read += sum(len(ids) for ids in read_windows(network, recognizer, mel))
        return read

    return transcribe


def whisper_config(e: EncoderConfig, r: RecognizerConfig, attention: str) -> Any:
    """transformers' WhisperConfig of an encoder and a recogniser, with one of its implementations of attention."""
    from transformers import WhisperConfig

    return WhisperConfig(
        vocab_size=r.vocab_size,
        num_mel_bins=e.num_mel_bins,
        d_model=e.d_model,
        encoder_layers=e.encoder_layers,
        encoder_attention_heads=e.encoder_attention_heads,
        encoder_ffn_dim=e.encoder_ffn_dim,
        decoder_layers=r.decoder_layers,
        decoder_attention_heads=r.decoder_attention_heads,
        decoder_ffn_dim=r.decoder_ffn_dim,
        max_source_positions=e.max_source_positions,
        max_target_positions=r.max_target_positions,
        decoder_start_token_id=r.start_ids[0],
        pad_token_id=r.end_id,
        bos_token_id=r.end_id,
        eos_token_id=r.end_id,
        attn_implementation=attention,
    )


def whisper_network(model: SpeechModel) -> Any:
    """transformers' WhisperForConditionalGeneration around the weights of a loaded torch backend."""
    import torch
    from transformers import WhisperForConditionalGeneration

    backend: Any = model.backend
    config = whisper_config(model.config.encoder, recognizer_of(model), "sdpa")
    speech = backend.model.speech.state_dict()
    weights = {n.replace("encoder.", "model.encoder.", 1): t for n, t in speech.items() if n.startswith("encoder.")}
    weights |= {
        n.replace("recognizer.", "model.decoder.", 1): t for n, t in speech.items() if n.startswith("recognizer.")
    }
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    with torch.device("meta"):
        network = WhisperForConditionalGeneration(config)
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def read_windows(network: Any, recognizer: RecognizerConfig, mel: Any) -> list[list[int]]:
    """Token ids of each window, mel (B, num_mel_bins, T): the likeliest each time, start and end left out."""
    import torch

    start = torch.tensor([recognizer.start_ids] * len(mel), device=network.device)
    with torch.inference_mode():
        said = network.generate(
            mel.to(network.device, network.dtype),
            decoder_input_ids=start,
            do_sample=False,
            num_beams=1,
            suppress_tokens=list(recognizer.suppressed_ids),
            begin_suppress_tokens=list(recognizer.begin_suppressed_ids),
            max_new_tokens=recognizer.max_target_positions - len(recognizer.start_ids),
            return_timestamps=False,
        )
    return [[t for t in row if t not in (*recognizer.start_ids, recognizer.end_id)] for row in said.tolist()]


def with_faster_whisper(model: SpeechModel, kind: str) -> Transcribe:
    """CTranslate2 on the very file that the checkpoint's encoder and recogniser come from. `kind`: float32 or int8."""
    import numpy as np
    from faster_whisper import WhisperModel

    with tempfile.TemporaryDirectory() as folder:  # all is read before it is gone
        link_part(model, Path(folder))
        network = WhisperModel(folder, device="auto", compute_type=kind, cpu_threads=threads())

    def transcribe(seconds: float) -> int:
        sound = np.concatenate(list(windows_of(seconds)))  # all of it at once: the library wants an array
        segments, _ = network.transcribe(
            sound,
            language="en",
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
        )
        return sum(len(segment.tokens) for segment in segments)

    return transcribe


def threads() -> int:
    """As many as torch uses, so that nobody has an advantage."""
    import torch

    return torch.get_num_threads()


def link_part(model: SpeechModel, folder: Path) -> None:
    """The checkpoint's CTranslate2 part as a folder that faster-whisper opens: its words as a list, and its rules."""
    source = load_config(SHIPPED / SMALL)
    part = next((part for part in source.parts if part.format == "ctranslate2"), None)
    if part is None:
        raise CheckpointError(
            "The shipped small has no part in CTranslate2's format any more; compare transformers alone."
        )
    place = fetch_part(part, SHIPPED / SMALL, cache_folder())
    for file in part.files:
        (folder / file.name).symlink_to((place / file.name).resolve())
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = dict(tokenizer["model"]["vocab"]) | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    r = recognizer_of(model)
    by_id = {number: word for word, number in words.items()}
    (folder / "vocabulary.json").write_text(json.dumps([by_id.get(i, f"<|{i}|>") for i in range(r.vocab_size)]))
    rules = {
        "alignment_heads": r.alignment_heads,
        "suppress_ids": sorted(set(r.suppressed_ids)),
        "suppress_ids_begin": r.begin_suppressed_ids,
        "lang_ids": [i for w, i in words.items() if len(w) == 6 and w.startswith("<|")],
    }
    (folder / "config.json").write_text(json.dumps(rules))
