"""A checkpoint of transformers, converted: the same log-mel and question give the same logits on both backends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM, WhisperForConditionalGeneration

from converters.__main__ import main
from converters.chat_template import from_tekken
from speech_xl.backend import Backend, load_backend
from speech_xl.checkpoints import check_checkpoint
from speech_xl.config import HOP_LENGTH, ModelConfig
from speech_xl.features import WindowStream
from speech_xl.prompt import Prompt
from speech_xl.schedule import ListedRatios, Scheduler
from tests import families
from tests.tiny import sound

BACKENDS = ["torch", "mlx"]
# Sizes, biases, head counts and ties that the families allow.
CASES = {
    "qwen2_audio": ("qwen2_audio", {}, {}),
    "qwen2_audio, one kv head": ("qwen2_audio", {"num_key_value_heads": 1, "head_dim": 24}, {"num_mel_bins": 128}),
    "qwen2_audio, another clock": ("qwen2_audio", {"rope_theta": 1e6, "num_key_value_heads": 4}, {"encoder_layers": 1}),
    "voxtral": ("voxtral", {}, {}),
    "voxtral, biased": ("voxtral", {"attention_bias": True, "mlp_bias": True}, {"num_mel_bins": 128}),
    "voxtral, stacks of two": ("voxtral", {"head_dim": 8, "rope_theta": 500.0}, {"intermediate_size": 32}),
}


def convert(source: Path, out: Path, *more: str) -> ModelConfig:
    assert main(["--hf-path", str(source), "--mlx-path", str(out), *more]) == 0
    return check_checkpoint(out)


def windows(config: ModelConfig, samples: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """(B, num_mel_bins, T) and the samples of sound in each window."""
    stream = WindowStream(config.encoder)
    cut = stream.push(samples) + stream.finish()
    return np.stack([w.mel for w in cut]), [w.valid_samples for w in cut]


def our_logits(backend: Backend, config: ModelConfig, mel: np.ndarray, valid: list[int], before, after) -> np.ndarray:
    """Hear everything raw in intervals of 7 speech tokens, then read the question."""
    tokens = [config.tokens_of_window(samples) for samples in valid]
    positions = np.array([-(-samples // (2 * HOP_LENGTH)) for samples in valid])
    state = backend.start(before)
    backend.hear([(state, tokens)], mel, positions)
    scheduler = Scheduler(7, ListedRatios((None,)), len(before))
    for plan in scheduler.plan_all(sum(tokens)):
        backend.close_intervals([(state, [plan])])
    return backend.logits(state, after, scheduler.base)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Makes each case's source and output once."""
    folders: dict[str, tuple[Path, Path]] = {}

    def make(case: str) -> tuple[Path, Path]:
        if case not in folders:
            root = tmp_path_factory.mktemp("family")
            kind, text, audio = CASES[case]
            source = getattr(families, kind)(root / "source", text=text, audio=audio)
            convert(source, root / "ours")
            folders[case] = source, root / "ours"
        return folders[case]

    return make


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seconds", [0.9, 1.92, 4.317])  # part of a window, exactly one, two and a ragged rest
@pytest.mark.parametrize("case", CASES)
def test_logits_are_transformers_own(case: str, seconds: float, backend: str, made) -> None:
    source, ours = made(case)
    config = check_checkpoint(ours)
    mel, valid = windows(config, sound(seconds))
    before, after = [5, 6, 7], [8, 9, 10, 11]
    if CASES[case][0] == "qwen2_audio":  # its processor takes one window a recording
        mel, valid = mel[:1], valid[:1]
    frames = [-(-samples // HOP_LENGTH) for samples in valid]
    tokens = sum(config.tokens_of_window(samples) for samples in valid)
    expected = families.their_logits(source, mel, frames, before, after, tokens)
    found = our_logits(load_backend(backend, ours, config), config, mel, valid, before, after)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("samples", [640, 641, 959, 960, 961, 1280, 5000, 5281, 30_000])
def test_the_placeholder_expands_to_as_many_tokens(samples: int, made) -> None:
    """Qwen2-Audio's processor: ((frames - 1) // 2 + 1 - 2) // 2 + 1 placeholders."""
    frames = -(-samples // HOP_LENGTH)
    expected = (((frames - 1) // 2 + 1) - 2) // 2 + 1
    assert check_checkpoint(made("qwen2_audio")[1]).tokens_of_window(samples) == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tied", [True, False])
def test_whisper_and_qwen2_are_both_themselves(tied: bool, backend: str, tmp_path: Path) -> None:
    whisper, qwen2 = families.whisper(tmp_path / "w"), families.qwen2(tmp_path / "q", tie_word_embeddings=tied)
    config = convert(whisper, tmp_path / "ours", "--decoder", str(qwen2))
    assert config.decoder.tie_word_embeddings == tied
    loaded = load_backend(backend, tmp_path / "ours", config)
    ids = [3, 4, 5, 6, 7]
    expected = Qwen2ForCausalLM.from_pretrained(qwen2).eval()(torch.tensor([ids])).logits[0, -1].detach().numpy()
    found = loaded.logits(loaded.start(ids[:2]), ids[2:], 2)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    if backend == "torch":
        mel, _ = windows(config, sound(2.5))
        with torch.inference_mode():
            theirs = (
                WhisperForConditionalGeneration.from_pretrained(whisper).eval().model.encoder(torch.from_numpy(mel))[0]
            )
            np.testing.assert_allclose(loaded.model.speech.encoder(torch.from_numpy(mel)), theirs, atol=1e-4, rtol=1e-4)


TEMPLATES = {
    "qwen2_audio": (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
        "You are a kind listener.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
        "{% for content in message['content'] %}{% if content['type'] == 'audio' %}"
        "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n{% else %}{{ content['text'] }}{% endif %}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ '' }}{% endif %}"
    ),
    "voxtral": (
        "{{ '<s>[INST]' }}{% for content in messages[0]['content'] %}{% if content['type'] == 'audio' %}"
        "[BEGIN_AUDIO][AUDIO]{% else %}{{ content['text'] }}{% endif %}{% endfor %}[/INST]"
    ),
}


@pytest.mark.parametrize("has_template", [True, False])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_prompt_is_the_chat_templates(kind: str, has_template: bool, tmp_path: Path) -> None:
    """Our ids around the audio are those of transformers' own apply_chat_template, whose placeholder is one token."""
    source = getattr(families, kind)(tmp_path / "source")
    own = PreTrainedTokenizerFast.from_pretrained(source)
    own.chat_template = TEMPLATES[kind]
    if has_template:
        own.save_pretrained(source)
    else:  # the family's published prompt
        own.chat_template = own.chat_template.replace("a kind listener", "a helpful assistant")
    config = convert(source, tmp_path / "ours")
    prompt = Prompt.load(tmp_path / "ours", config)
    question = "What drink is order 47, b c?"
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": question}]}]
    text = own.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = own(text, add_special_tokens=False)["input_ids"]
    audio = json.loads((source / "config.json").read_text())
    mark = audio.get("audio_token_index", audio.get("audio_token_id"))
    where = ids.index(mark)
    assert prompt.prefix_ids == ids[:where]
    assert prompt.question_ids(question) == ids[where + 1 :]
    assert prompt.end_ids


def test_tekken_becomes_a_tokenizer(tmp_path: Path) -> None:
    """Ranks behind the special tokens; a word in the vocabulary is one token, others are merged by rank."""
    import base64

    words = [bytes([b]) for b in range(256)] + [b"th", b"the", b" the", b"an"]
    entries = [{"rank": i, "token_bytes": base64.b64encode(w).decode(), "token_str": None} for i, w in enumerate(words)]
    specials = [
        {"rank": i, "token_str": s, "is_control": True} for i, s in enumerate(["<unk>", "<s>", "</s>", "[INST]"])
    ]
    settings = {
        "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "num_vocab_tokens": len(words),
        "default_vocab_size": len(words) + 10,
        "default_num_special_tokens": 10,
    }
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps({"config": settings, "vocab": entries, "special_tokens": specials}))
    tokenizer = from_tekken(path)
    rank = {w: i + 10 for i, w in enumerate(words)}
    assert tokenizer.encode("<s>[INST]the ant", add_special_tokens=False).ids == [
        1,
        3,
        rank[b"the"],
        rank[b" "],
        rank[b"an"],
        rank[b"t"],
    ]
    assert tokenizer.decode([rank[b"the"], rank[b" the"], 2]) == "the the"
    assert tokenizer.token_to_id("<SPECIAL_7>") == 7


def test_a_converted_model_greets_the_same_way_in_both_layouts(tmp_path: Path) -> None:
    """Torch and MLX layouts hold the same network: the greedy answers are equal."""
    source = families.voxtral(tmp_path / "source")
    answers = []
    for name in BACKENDS:
        config = convert(source, tmp_path / name, "--to", name)
        assert dataclasses.replace(config, layout="torch") == dataclasses.replace(
            check_checkpoint(tmp_path / BACKENDS[0]), layout="torch"
        )
        backend = load_backend(name, tmp_path / name, config)
        steps = backend.answer(backend.start([1, 2, 3]), [4, 5], 3)
        answers.append([next(steps).token for _ in range(8)])
    assert answers[0] == answers[1]
