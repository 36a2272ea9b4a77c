"""Adapters in peft's folders: peft puts ours on the published decoder with the same numbers, and we start from peft's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2ForCausalLM

from tests import families
from tests.tiny_training import TALKS, hearing_checkpoint, recipe, tensors, train, write_lines
from torch_backend.decoder import Decoder
from training.adapter_files import factors_of, read_adapter, save_adapter, start_from
from training.lora import adapters_of, add_lora
from training.recipe import LoraConfig, RecipeError, settings_of

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -r requirements-dev.txt")

LORA = LoraConfig(rank=3, alpha=7.0)
IDS = torch.tensor([[4, 9, 2, 7, 30, 11]])


class Own(nn.Module):
    """Our decoder with a published decoder's weights, by the names that a checkpoint has."""

    def __init__(self, theirs: Qwen2ForCausalLM):
        super().__init__()
        config = theirs.config
        from speech_xl.config import DecoderConfig

        self.decoder = Decoder(
            DecoderConfig(
                config.vocab_size,
                config.hidden_size,
                config.intermediate_size,
                config.num_hidden_layers,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.hidden_size // config.num_attention_heads,
                config.rope_parameters["rope_theta"],
                config.rms_norm_eps,
                tie_word_embeddings=False,
            ),
            None,
        )
        self.decoder.load_state_dict({n.removeprefix("model."): t for n, t in theirs.state_dict().items()})

    def logits(self) -> torch.Tensor:
        rows = torch.arange(IDS.shape[1])[None]
        mask = torch.ones(IDS.shape[1], IDS.shape[1], dtype=torch.bool).tril()[None, None]
        x = self.decoder.whole(self.decoder.embed_tokens(IDS), rows, rows, mask, slice(0, 0))
        return self.decoder.logits(x)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return families.qwen2(tmp_path / "qwen2")


def adapted(published: Path) -> Own:
    own = Own(Qwen2ForCausalLM.from_pretrained(published))
    add_lora(own, LORA, seed=1)
    torch.manual_seed(2)
    for layer in adapters_of(own).values():
        nn.init.normal_(layer.lora_B.weight)
    return own


@torch.inference_mode()
def test_peft_loads_our_adapter_and_computes_the_same(published: Path, tmp_path: Path) -> None:
    own = adapted(published)
    save_adapter(factors_of(adapters_of(own)), LORA, "a decoder", tmp_path / "adapter")
    plain = Qwen2ForCausalLM.from_pretrained(published)
    before = plain(IDS).logits
    with_peft = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert names == set(peft.get_peft_model_state_dict(with_peft))
    torch.testing.assert_close(with_peft(IDS).logits, own.logits(), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, own.logits(), atol=1e-2)


@torch.inference_mode()
def test_we_start_from_what_peft_saved(published: Path, tmp_path: Path) -> None:
    settings = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    with_peft = peft.get_peft_model(Qwen2ForCausalLM.from_pretrained(published), settings).eval()
    with_peft.save_pretrained(tmp_path / "theirs")
    own = Own(Qwen2ForCausalLM.from_pretrained(published))
    add_lora(own, LORA, seed=1)
    start_from(tmp_path / "theirs", LORA, adapters_of(own))
    torch.testing.assert_close(own.logits(), with_peft(IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_stage_leaves_its_adapter_and_another_starts_from_it(tmp_path: Path) -> None:
    model = hearing_checkpoint(tmp_path / "tiny")
    data = write_lines(tmp_path / "l.jsonl", TALKS)
    change = {"kind": "answering", "lessons": [{"ratios": ["raw"]}], "train": ["lora_"], "steps": 2}
    out = train(model, tmp_path / "first", recipe(change, sst=None), data).parent
    rank, alpha, factors = read_adapter(out / "adapter")
    assert (rank, alpha) == (4, 8) and len(factors) == 14
    base, after = tensors(model), tensors(out / "model")
    for name, (a, b) in factors.items():
        torch.testing.assert_close(after[f"{name}.weight"], base[f"{name}.weight"] + 2 * b @ a)
    lora = {"rank": 4, "alpha": 8, "start": str(out / "adapter")}
    still = {"learning_rates": {".": 0.0}, "lora": lora}
    again = train(model, tmp_path / "again", recipe(change | still, sst=None), data)
    assert all(torch.equal(t, after[n]) for n, t in tensors(again).items())


def test_bad_adapters_are_one_sentence(published: Path, tmp_path: Path) -> None:
    own, folder = adapted(published), tmp_path / "adapter"
    factors = factors_of(adapters_of(own))
    save_adapter(factors, LORA, "a decoder", folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    with pytest.raises(RecipeError, match="cannot be read"):
        read_adapter(tmp_path / "absent")
    with pytest.raises(RecipeError, match="has rank 3 and alpha 7, the recipe 4 and 7"):
        start_from(folder, LoraConfig(rank=4, alpha=7.0), adapters_of(own))
    with pytest.raises(RecipeError, match=r"which lora\.targets leaves out"):
        start_from(folder, LORA, {})
    for change, words in (
        ({"peft_type": "IA3"}, "only LORA"),
        ({"use_dora": True}, "uses use_dora, which is not supported"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(written | change))
        with pytest.raises(RecipeError, match=words):
            read_adapter(folder)
    (folder / "adapter_config.json").write_text(json.dumps(written))
    halves = load_file(folder / "adapter_model.safetensors")
    halves.pop(next(iter(halves)))
    save_file(halves, folder / "adapter_model.safetensors")
    with pytest.raises(RecipeError, match="does not hold lora_A and lora_B of every layer"):
        read_adapter(folder)


def test_a_recipe_without_a_start_keeps_its_fingerprint() -> None:
    assert settings_of(recipe().stages[0])["lora"].keys() == {"rank", "alpha", "targets"}
    assert settings_of(recipe({"lora": {"start": "here"}}).stages[0])["lora"]["start"] == "here"
    with pytest.raises(RecipeError, match=r"lora.start must be a folder's name"):
        recipe({"lora": {"start": 7}})
