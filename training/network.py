"""A checkpoint's network as training needs it: loaded in float32, given SSTs and adapters, run on whole recordings.

It knows tensors and checkpoint folders, no data and no optimizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.utils.checkpoint import checkpoint

from speech_xl.config import ModelConfig, SSTConfig
from speech_xl.errors import CheckpointError
from torch_backend.decoder import Attention, Decoder
from torch_backend.encoder import SpeechTower
from training.ctc import CTCHead
from training.lora import add_lora, our_name
from training.losses import token_losses
from training.recipe import RecipeError, Stage

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
WINDOWS_AT_ONCE = 8  # that an encoder hears together


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
        self.uses_everything = False  # each pass runs every parameter, be it on no rows: shares must agree on that

    def forward(
        self,
        rows: torch.Tensor,
        windows: tuple[torch.Tensor, torch.Tensor] | None = None,
        classes: torch.Tensor | None = None,
        lengths: Sequence[int] = (),
        read: torch.Tensor | None = None,
        **text: Any,
    ) -> Any:
        """A training.speech.Speech as tensors -> with classes (C,), the CTC head's log-probabilities (B, N, 1 + C) of
        recordings of these lengths; else what `answer` makes of the text. With `read` (B, R) ids, `rows` are whole
        windows' encoder outputs (B, S, d_model) and the recogniser's logits (B, R, vocabulary) are returned.
        """
        if read is not None:
            recognizer = self.speech.recognizer
            return recognizer(read, 0, recognizer.start(rows))[0]
        speech = self.hear(rows, windows)
        if classes is not None:
            padded = nn.utils.rnn.pad_sequence(speech[0].split(list(lengths)), batch_first=True)
            return self.ctc(padded, self.decoder.embed_tokens(classes))
        return self.answer(speech, **text)

    def hear(self, rows: torch.Tensor, windows: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """-> speech tokens (1, N, D)."""
        if self.speech is None:
            return self.decoder.embed_tokens(rows)[None]
        if windows is not None:
            rows = self._encode(*windows).flatten(0, 1)[rows]
        return self.speech.adapter(rows[None])

    def _encode(self, mel: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """What `kept_outputs` makes of all windows, some at a time where inner numbers are not to be kept."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return kept_outputs(self.speech, mel, valid)
        groups = zip(mel.split(WINDOWS_AT_ONCE), valid.split(WINDOWS_AT_ONCE), strict=True)
        return torch.cat([checkpoint(kept_outputs, self.speech, *group, use_reentrant=False) for group in groups])

    def answer(
        self,
        speech: torch.Tensor,
        prefix_ids: torch.Tensor,
        text_ids: torch.Tensor,
        query_positions: torch.Tensor,
        key_positions: torch.Tensor,
        attend: Attend,
        ssts: int,
        pooled: Sequence[tuple[slice, torch.Tensor, torch.Tensor]],
        answer_rows: torch.Tensor,
        targets: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A training.batch.Batch's arrays as tensors -> losses of the rows that answer (A,), and 1.0 where they are right."""
        decoder = self.decoder
        sst_rows = None
        parts = [decoder.embed_tokens(prefix_ids)[None], speech]
        if ssts or (self.uses_everything and decoder.sst_embedding is not None):
            parts.append(decoder.sst_embedding.expand(1, ssts, -1))
            before = len(prefix_ids) + speech.shape[1]
            sst_rows = slice(before, before + ssts)
        x = torch.cat([*parts, decoder.embed_tokens(text_ids)[None]], dim=1)
        rotations = decoder.rotation(query_positions), decoder.rotation(key_positions)
        for layer in decoder.layers:
            pool = partial(pool_in_chunks, layer.self_attn, pooled) if pooled and sst_rows else None
            inputs = (x, *rotations, attend, sst_rows, pool)
            x = (
                checkpoint(layer.whole, *inputs, use_reentrant=False)
                if self.gradient_checkpointing
                else layer.whole(*inputs)
            )
        return token_losses(decoder, x[0, x.shape[1] - len(text_ids) + answer_rows], targets)


def pool_in_chunks(
    attention: Attention, chunks: Sequence[tuple[slice, torch.Tensor, torch.Tensor]], part: int, rows: torch.Tensor
) -> torch.Tensor:
    """`Attention.pool`, a few SSTs at a time over the rows that these stand for."""
    return torch.cat([attention.pool(part, rows[:, :, at], *chunk) for at, *chunk in chunks], dim=2)


def kept_outputs(tower: SpeechTower, mel: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """mel (W, num_mel_bins, T) -> the encoder's outputs without each window's context, (W, S, d_model)."""
    outputs = tower.encoder(mel, valid)
    context = tower.config.encoder.context_positions // tower.config.encoder.pool
    return outputs[:, context : outputs.shape[1] - context]


def load_network(
    folder: Path,
    config: ModelConfig,
    sst: SSTConfig | None,
    end_id: int | None,
    recognizes: bool = False,
    is_empty: bool = False,
) -> tuple[Network, ModelConfig]:
    """The network of a folder in float32, and its configuration; with `sst` its SST parameters are fresh.

    `is_empty`: shapes alone, on the meta device. CheckpointError names a tensor that is missing or misshapen.
    """
    if config.quantization is not None:
        raise CheckpointError(f"{folder} is quantized; train the checkpoint that it was made of.")
    if sst is not None:
        config = replace(config, sst=sst)
    with torch.device("meta"):  # nothing is drawn that is read anyway
        network = Network(config, recognizes)
    if is_empty:
        return network, config
    expected = {n: t for n, t in network.state_dict().items() if sst is None or "sst_" not in n}
    network.load_state_dict(stored_tensors(folder, config, expected), strict=False, assign=True)
    if sst is not None:
        for owner in network.decoder.modules():
            for name, parameter in list(owner.named_parameters(recurse=False)):
                if parameter.is_meta:
                    setattr(owner, name, nn.Parameter(torch.zeros(parameter.shape)))
        initialise_ssts(network.decoder, sst, end_id)
    return network, config


def load_tower(folder: Path, config: ModelConfig) -> SpeechTower:
    """The encoder and the adapter of a folder in float32."""
    with torch.device("meta"):
        tower = SpeechTower(config)
    expected = {f"speech.{n}": t for n, t in tower.state_dict().items()}
    stored = stored_tensors(folder, config, expected)
    tower.load_state_dict({n.removeprefix("speech."): t for n, t in stored.items()}, assign=True)
    return tower


def stored_tensors(folder: Path, config: ModelConfig, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors `expected` as a folder stores them, in float32 and torch's axis order."""
    stored = {}
    for name, tensor in read_tensors(folder, lambda n: n in expected):
        tensor = other_layout(name, tensor, config.layout)
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{folder}: the tensor {name} has shape {list(tensor.shape)} where config.json needs "
                f"{list(expected[name].shape)}; copy or convert the checkpoint again."
            )
        stored[name] = tensor.float().contiguous()
    if missing := sorted(set(expected) - set(stored)):
        raise CheckpointError(f"{folder} lacks the tensor {missing[0]}; copy or convert the checkpoint again.")
    return stored


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
    trained: dict[str, nn.Parameter] = {}
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


def named_parameters(network: Network, names: Collection[str]) -> dict[str, nn.Parameter]:
    """The parameters of these checkpoint names, as the network holds them now."""
    found = {our_name(n): p for n, p in network.named_parameters()}
    return {name: found[name] for name in names}


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
