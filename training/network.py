"""A checkpoint's network as training needs it: loaded in float32, given SSTs and adapters, written back whole.

It knows tensors and checkpoint folders, no data and no optimizer.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from speech_xl.config import ModelConfig, SSTConfig
from speech_xl.config_file import save_config
from speech_xl.errors import CheckpointError
from torch_backend.decoder import Decoder
from torch_backend.encoder import SpeechTower
from training.ctc import CTCHead
from training.lora import add_lora, merged_tensors, our_name
from training.recipe import RecipeError, Stage


class Network(nn.Module):
    """Parameters by checkpoint names: `decoder.*`, and `speech.*` where speech tokens come through an adapter.

    A recogniser is loaded only by a stage that trains it (`recognizes`): to the others, what it hears comes in as words.
    `ctc` is there while a stage needs it.
    """

    def __init__(self, config: ModelConfig, recognizes: bool = False):
        super().__init__()
        self.decoder = Decoder(config.decoder, config.sst)
        self.speech = SpeechTower(config) if config.adapter is not None or recognizes else None
        self.ctc: CTCHead | None = None
        self.gradient_checkpointing = False

    def forward(
        self,
        rows: torch.Tensor,
        windows: tuple[torch.Tensor, torch.Tensor] | None = None,
        classes: torch.Tensor | None = None,
        read: torch.Tensor | None = None,
        **text: Any,
    ) -> torch.Tensor:
        """A training.speech.Speech as tensors -> with classes (C,), the CTC head's log-probabilities (B, N, 1 + C); else
        what `answer` makes of the text. With `read` (B, R) ids, `rows` are whole windows' encoder outputs (B, S, d_model)
        and the recogniser's logits (B, R, vocabulary) are returned.
        """
        if read is not None:
            recognizer = self.speech.recognizer
            return recognizer(read, 0, recognizer.start(rows))[0]
        speech = self.hear(rows, windows)
        if classes is not None:
            return self.ctc(speech, self.decoder.embed_tokens(classes))
        return self.answer(speech, **text)

    def hear(self, rows: torch.Tensor, windows: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """-> speech tokens (B, N, D)."""
        if self.speech is None:
            return self.decoder.embed_tokens(rows)
        if windows is not None:
            rows = kept_outputs(self.speech, *windows).flatten(0, 1)[rows]
        return self.speech.adapter(rows)

    def answer(
        self,
        speech: torch.Tensor,
        prefix_ids: torch.Tensor,
        text_ids: torch.Tensor,
        query_positions: torch.Tensor,
        key_positions: torch.Tensor,
        mask: torch.Tensor,
        ssts: int,
        pooled: tuple[torch.Tensor, torch.Tensor] | None,
        answer_rows: torch.Tensor,
    ) -> torch.Tensor:
        """A training.batch.Batch's arrays as tensors -> logits of the rows that answer, (A, vocab_size)."""
        decoder = self.decoder
        b = len(speech)
        parts = [decoder.embed_tokens(prefix_ids).expand(b, -1, -1), speech]
        if ssts:
            parts.append(decoder.sst_embedding.expand(b, ssts, -1))
        before = sum(part.shape[1] for part in parts)
        x = torch.cat([*parts, decoder.embed_tokens(text_ids)], dim=1)
        x = decoder.whole(
            x, query_positions, key_positions, mask, slice(before - ssts, before), pooled, self.gradient_checkpointing
        )
        sample, row = answer_rows.T
        return decoder.logits(x[sample, before + row])


def kept_outputs(tower: SpeechTower, mel: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """mel (W, num_mel_bins, T) -> the encoder's outputs without each window's context, (W, S, d_model)."""
    outputs = tower.encoder(mel, valid)
    context = tower.config.encoder.context_positions // tower.config.encoder.pool
    return outputs[:, context : outputs.shape[1] - context]


def load_network(
    folder: Path, config: ModelConfig, sst: SSTConfig | None, end_id: int | None, recognizes: bool = False
) -> tuple[Network, ModelConfig]:
    """The network of a folder in float32, and its configuration; with `sst` its SST parameters are fresh.

    CheckpointError names a tensor that is missing or misshapen.
    """
    if config.quantization is not None:
        raise CheckpointError(f"{folder} is quantized; train the checkpoint that it was made of.")
    if sst is not None:
        config = replace(config, sst=sst)
    network = Network(config, recognizes)
    expected = network.state_dict()
    stored = {}
    for name, tensor in read_tensors(folder, lambda n: n in expected and not (sst is not None and "sst_" in n)):
        tensor = other_layout(name, tensor, config.layout)
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{folder}: the tensor {name} has shape {list(tensor.shape)} where config.json needs "
                f"{list(expected[name].shape)}; copy or convert the checkpoint again."
            )
        stored[name] = tensor.float()
    missing = sorted(n for n in set(expected) - set(stored) if sst is None or "sst_" not in n)
    if missing:
        raise CheckpointError(f"{folder} lacks the tensor {missing[0]}; copy or convert the checkpoint again.")
    network.load_state_dict(stored, strict=False)
    if sst is not None:
        initialise_ssts(network.decoder, sst, end_id)
    return network, config


def other_layout(name: str, tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """A stored tensor in torch's axis order, or torch's in the stored one: MLX has a convolution's channels last."""
    return tensor.transpose(1, 2) if layout == "mlx" and ".conv" in name and tensor.ndim == 3 else tensor


def read_tensors(folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every tensor in the folder's files that is wanted, one at a time."""
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder} holds no *.safetensors; copy or convert the checkpoint again.")
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if wanted(name):
                    yield name, file.get_tensor(name)


@torch.no_grad()
def initialise_ssts(decoder: Decoder, sst: SSTConfig, end_id: int | None) -> None:
    """SST parameters before training.

    Projections are copies of the base ones, the embedding is that of the token which ends an answer. Where SSTs
    pool, head h of layer l starts by keeping the token (l + h) % ratio steps back, so that all heads of all layers
    together hold a whole block, and the SST's own key and value start at zero beside it.
    """
    for number, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            if hasattr(attention, f"sst_{name}"):
                getattr(attention, f"sst_{name}").load_state_dict(getattr(attention, name).state_dict())
        if sst.pooled:  # with projections of their own, see speech_xl.config_check
            for projection in (attention.sst_k_proj, attention.sst_v_proj):
                for parameter in projection.parameters():
                    parameter.zero_()
            attention.sst_pool.zero_()
            for ratio in sst.ratios:
                for head in range(attention.kv_heads):
                    attention.sst_pool[:, head, sst.pool_columns(ratio)[(number + head) % ratio]] = 1.0
    decoder.sst_embedding.copy_(decoder.embed_tokens.weight[end_id] if end_id is not None else 0.0)


def choose_trained(network: Network, stage: Stage, seed: int) -> dict[str, nn.Parameter]:
    """Add the stage's adapters, freeze what it does not train -> the rest, by checkpoint names."""
    network.requires_grad_(False)
    network.gradient_checkpointing = stage.gradient_checkpointing
    if stage.loss == "ctc":
        if network.speech is None:
            raise RecipeError(f"Stage {stage.name!r} has loss ctc, which needs a checkpoint with an adapter.")
        network.ctc = CTCHead(network.decoder.embed_tokens.weight)
    if stage.lora is not None:
        add_lora(network, stage.lora, seed)
    trained = {}
    for pattern in stage.patterns:
        found = {our_name(n): p for n, p in network.named_parameters() if re.search(pattern, our_name(n))}
        if not found:
            raise RecipeError(
                f"Stage {stage.name!r} trains {pattern!r}, but no tensor has such a name; correct the recipe."
            )
        trained |= found
    if network.ctc is not None:
        trained |= {f"ctc.{n}": p for n, p in network.ctc.named_parameters()}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def parameter_groups(trained: dict[str, nn.Parameter], stage: Stage) -> list[dict]:
    """Optimizer groups, one for each learning rate that is used; `peak` is the rate after warm-up."""
    groups: dict[str, list[nn.Parameter]] = {pattern: [] for pattern in stage.learning_rates}
    for name, parameter in trained.items():
        pattern = next((p for p in groups if re.search(p, name)), None)
        if pattern is None:
            raise RecipeError(f"Stage {stage.name!r} has no learning rate for {name}; add a pattern to learning_rates.")
        groups[pattern].append(parameter)
    rates = stage.learning_rates
    return [{"params": ps, "lr": rates[n], "peak": rates[n], "name": n} for n, ps in groups.items() if ps]


def export(network: nn.Module, config: ModelConfig, source: Path, folder: Path) -> None:
    """Write `folder` as `source` with this network's tensors: adapters merged, in the source's number type.

    Tensors of parts that training did not load are copied. The folder is either whole or absent.
    """
    dtype = getattr(torch, config.dtype)
    tensors = dict(read_tensors(source, lambda name: True))
    ours = {
        n: other_layout(n, t.detach().cpu(), config.layout).to(dtype).contiguous()
        for n, t in merged_tensors(network).items()
        if not n.startswith("ctc.")
    }
    tensors = {n: t for n, t in tensors.items() if "sst_" not in n} | ours
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
    save_config(replace(config, parts=()), temporary)  # it holds everything itself
    for path in source.glob("*tokenizer.json"):
        shutil.copyfile(path, temporary / path.name)
    replace_folder(temporary, folder)


def replace_folder(temporary: Path, folder: Path) -> None:
    """Rename a finished folder to its place; an older one there goes first."""
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)  # also that of a run which was killed between the two
