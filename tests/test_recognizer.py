"""The recogniser in both backends: transformers' own Whisper, token for token."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationMixin, WhisperForConditionalGeneration

from benchmarks.whisper import whisper_config
from mlx_backend.backend import Backend as MLXBackend
from speech_xl.checkpoints import check_checkpoint
from speech_xl.config import ModelConfig
from speech_xl.config_file import from_dict, load_config, to_dict
from speech_xl.errors import CheckpointError
from speech_xl.features import log_mel
from tests.tiny import save_checkpoint, sound, tiny_recognizer_config
from torch_backend.backend import Backend as TorchBackend

CONFIG = tiny_recognizer_config()
SEEDS = range(6)


def whisper(config: ModelConfig, ours: TorchBackend) -> WhisperForConditionalGeneration:
    """transformers' model with our weights."""
    theirs = WhisperForConditionalGeneration(whisper_config(config.encoder, config.recognizer, "eager"))
    state = {
        f"model.{n.removeprefix('speech.').replace('recognizer', 'decoder')}": t
        for n, t in ours.model.state_dict().items()
        if n.startswith("speech.")
    }
    missing = theirs.load_state_dict(state, strict=False)
    assert missing.missing_keys in ([], ["proj_out.weight"]) and not missing.unexpected_keys
    theirs.tie_weights()
    return theirs.eval()


def windows(seed: int, count: int = 3) -> np.ndarray:
    return log_mel(np.stack([sound(1.92, 100 * seed + i) for i in range(count)]), 80)


@pytest.fixture(scope="module", params=SEEDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, TorchBackend, MLXBackend]:
    folder = save_checkpoint(tmp_path_factory.mktemp("recognizer") / "tiny", CONFIG, request.param)
    config = check_checkpoint(folder)
    return request.param, TorchBackend.load(folder, config), MLXBackend.load(folder, config)


@torch.inference_mode()
def greedy(
    theirs: WhisperForConditionalGeneration, mel: np.ndarray, before: tuple[int, ...] = ()
) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """transformers' model step by step, without a cache -> ids, all logits, cross-attention of all layers and heads.
    Logits and attention are those from the first start id on.
    """
    r = CONFIG.recognizer
    start = [*before, *r.start_ids]
    ids = list(start)
    while len(ids) < r.max_target_positions + 1:
        if len(ids) > len(start) and ids[-1] == r.end_id:
            break
        out = theirs(torch.from_numpy(mel)[None], decoder_input_ids=torch.tensor([ids]), output_attentions=True)
        scores = out.logits[0, -1].clone()
        scores[list(r.suppressed_ids)] = -torch.inf
        if len(ids) == len(start):
            scores[list(r.begin_suppressed_ids)] = -torch.inf
        ids.append(int(scores.argmax()))
    rows = slice(len(before), None)
    return ids[len(start) :], out.logits[0, rows], torch.stack(out.cross_attentions)[:, 0][:, :, rows]


@pytest.mark.parametrize("before", [(), (7, 9, 4, 260)])
def test_greedy_reading_equals_transformers_and_the_backends_each_other(pair, before: tuple[int, ...]) -> None:
    seed, ours, twin = pair
    theirs, mel, r = whisper(CONFIG, ours), windows(seed), CONFIG.recognizer
    prompts = [before] * len(mel)
    for one, two, window in zip(ours.recognize(mel, prompts), twin.recognize(mel, prompts), mel, strict=True):
        ids, logits, attention = greedy(theirs, window, before)
        expected = [i for i in ids if i != r.end_id]
        assert one.ids == two.ids == expected
        scores = logits.clone()
        scores[:, list(r.suppressed_ids)] = -torch.inf
        first = len(r.start_ids) - 1
        scores[first, list(r.begin_suppressed_ids)] = -torch.inf
        chosen = scores[first:].log_softmax(-1)[range(len(ids)), ids]
        heads = torch.stack([attention[layer, head] for layer, head in r.alignment_heads]).mean(0)[first:]
        for found in (one, two):
            assert found.attention.shape == (len(ids), CONFIG.encoder.max_source_positions)
            np.testing.assert_allclose(found.attention, heads.numpy(), atol=1e-4)
            assert found.mean_log_prob == pytest.approx(chosen.mean().item(), abs=1e-4)
            assert found.no_speech == pytest.approx(logits[0].softmax(-1)[r.no_speech_id].item(), abs=1e-5)


def test_each_window_may_have_a_prompt_of_its_own(pair) -> None:
    seed, *backends = pair
    mel, prompts = windows(seed), [(7, 9, 4), (7, 260, 33), (7, 9, 4)]
    mel = np.concatenate([mel, mel])[: len(prompts)]
    for backend in backends:
        read = backend.recognize(mel, prompts)
        for reading, window, prompt in zip(read, mel, prompts, strict=True):
            (alone,) = backend.recognize(window[None], [prompt])
            assert reading.ids == alone.ids
            np.testing.assert_allclose(reading.attention, alone.attention, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_windows_may_all_end_at_the_same_token(pair, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours, twin = pair
    mel = np.repeat(windows(0, 1), count, axis=0)
    first, *more = ours.recognize(mel)[0].ids
    assert more
    for backend in (ours, twin):
        recognizer = backend.model.speech.recognizer
        monkeypatch.setattr(recognizer, "config", dataclasses.replace(CONFIG.recognizer, end_id=first))
        readings = backend.recognize(mel)
        assert [reading.ids for reading in readings] == [[]] * count
        assert all(len(reading.attention) == 1 for reading in readings)


def test_transformers_generate_reads_the_same(pair) -> None:
    seed, ours, _ = pair
    theirs, mel, r = whisper(CONFIG, ours), windows(seed), CONFIG.recognizer
    heard = theirs.model.encoder(torch.from_numpy(mel))
    found = GenerationMixin.generate(  # without Whisper's own wrapper, which wants timestamps and languages
        theirs,
        encoder_outputs=heard,
        decoder_input_ids=torch.tensor([r.start_ids] * len(mel)),
        do_sample=False,
        max_length=r.max_target_positions,
        suppress_tokens=list(r.suppressed_ids),
        begin_suppress_tokens=list(r.begin_suppressed_ids),
    )
    room = r.max_target_positions - len(r.start_ids)
    for one, ids in zip(ours.recognize(mel), found[:, len(r.start_ids) :].tolist(), strict=True):
        assert one.ids[:room] == [i for i in ids if i != r.end_id]


def test_logits_equal_transformers(pair) -> None:
    seed, ours, _ = pair
    theirs, mel = whisper(CONFIG, ours), torch.from_numpy(windows(seed))
    ids = torch.tensor([[7, 3, 250, 9, 9, 1]] * len(mel))
    with torch.inference_mode():
        expected = theirs(mel, decoder_input_ids=ids).logits
        recognizer = ours.model.speech.recognizer
        caches = recognizer.start(ours.model.speech.encoder(mel))
        pieces = [recognizer(part, at, caches)[0] for at, part in ((0, ids[:, :3]), (3, ids[:, 3:5]), (5, ids[:, 5:]))]
        two, _ = recognizer(ids, 0, recognizer.start(ours.model.speech.encoder(mel)), (2, -1))
    torch.testing.assert_close(two, expected[:, [2, -1]], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-4, rtol=0)


def test_a_window_is_read_alike_alone_and_in_company(pair) -> None:
    """Windows end at different lengths, and leave the batch; some stop for want of positions."""
    seed, *backends = pair
    mel = windows(seed, 4)
    for backend in backends:
        for alone, together in zip([backend.recognize(m[None])[0] for m in mel], backend.recognize(mel), strict=True):
            assert alone.ids == together.ids
            np.testing.assert_allclose(alone.attention, together.attention, atol=1e-5)


def test_recognised_words_wait_as_the_decoders_own_embeddings(pair) -> None:
    _, ours, twin = pair
    ids = [5, 280, 5]
    expected = ours.model.decoder.embed_tokens.weight[ids]
    for backend in (ours, twin):
        state = backend.start([])
        backend.hear_words(state, ids[:1])
        backend.hear_words(state, ids[1:])
        np.testing.assert_allclose(np.array(state.queued.tolist())[0], expected.numpy(), atol=1e-6)


def test_a_recognizers_config_survives_json_and_is_checked(tmp_path: Path) -> None:
    data = to_dict(CONFIG)
    assert from_dict(data) == CONFIG and load_config(save_checkpoint(tmp_path / "tiny", CONFIG)) == CONFIG
    wrong = {
        "vocab_size": 10,
        "start_ids": [],
        "alignment_heads": [[0, 9]],
        "decoder_attention_heads": 3,
        "end_id": -1,
        "suppressed_ids": [CONFIG.recognizer.end_id],
        "max_target_positions": 2,
        "decoder_layers": "2",
    }
    for field, value in wrong.items():
        with pytest.raises(CheckpointError, match=r"config\.json"):
            from_dict(data | {"recognizer": data["recognizer"] | {field: value}})
    for change in ({"recognizer": None}, {"adapter": {"stack": 4, "hidden_size": 24, "bias": True}}):
        with pytest.raises(CheckpointError, match="not both"):
            from_dict(data | change)
