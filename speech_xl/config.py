"""What a model is: frozen dataclasses that mirror a checkpoint's config.json, checked whenever one is made.

Configuration is data. No code in this project asks which published family a checkpoint came from; it asks
for a field below. Field names follow Hugging Face's Whisper, Qwen2 and Llama configurations where these
have one. It knows no files: config_file.py reads and writes JSON, config_check.py says what may stand together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from speech_xl.base_parts import BasePart
from speech_xl.config_check import check

SAMPLING_RATE = 16_000  # Hz; every encoder here was trained at this rate
N_FFT = 400  # samples: 25 ms
HOP_LENGTH = 160  # samples: 10 ms, so 100 mel frames a second
RECOGNIZED_TOKENS_PER_SECOND = 4.5  # of fast talk without a pause; three where people read or talk calmly
CONV_STRIDE = 2  # mel frames per encoder position: Whisper's second convolution


@dataclass(frozen=True)
class EncoderConfig:
    """A Whisper-style encoder that hears one window at a time (arXiv 2212.04356, section 2.2).

    Window i covers mel frames [i * hop - context, (i + 1) * hop + context), silence outside the recording;
    only the outputs of its middle `hop` frames are kept. `context_positions` = 0 is Whisper's own cutting.
    """

    num_mel_bins: int
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    max_source_positions: int  # encoder positions in one window (mel frames / 2)
    context_positions: int = 0  # positions at each end of a window that are computed and thrown away
    pool: int = 1  # Qwen2-Audio averages pairs of positions before the final norm: 2
    mask_padding: bool = False  # Qwen2-Audio hides padding frames of the last window from attention
    whole_pools: bool = False  # Qwen2-Audio drops a last position that has no partner to average with
    keep_padding: bool = False  # Voxtral keeps the speech tokens of the last window's padding

    @property
    def window_frames(self) -> int:
        """Mel frames in one window, context included."""
        return self.max_source_positions * CONV_STRIDE

    @property
    def context_frames(self) -> int:
        """Mel frames at each end of a window that are computed and thrown away."""
        return self.context_positions * CONV_STRIDE

    @property
    def hop_frames(self) -> int:
        """Mel frames from one window to the next."""
        return self.window_frames - 2 * self.context_frames


@dataclass(frozen=True)
class AdapterConfig:
    """Joins `stack` neighbouring encoder outputs and maps them to the decoder's width.

    `hidden_size` None is one linear layer (Qwen2-Audio); a number is linear, GELU, linear (Voxtral).
    """

    stack: int
    hidden_size: int | None
    bias: bool


@dataclass(frozen=True)
class RecognizerConfig:
    """Whisper's own text decoder (arXiv 2212.04356), which reads an encoder's windows aloud, token by token.

    With it, speech tokens are the decoder's own embeddings of the words that were recognised, each with its
    time: about three a second, and none in silence. Its width is the encoder's. Ids are those of
    `recognizer_tokenizer.json`.
    """

    vocab_size: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    max_target_positions: int  # tokens of one window, `start_ids` included
    start_ids: tuple[int, ...]  # what stands before the text: start, language, task, no timestamps
    end_id: int
    no_speech_id: int  # its probability at the start token: that nobody speaks in the window
    suppressed_ids: tuple[int, ...]  # never chosen: what is no text
    alignment_heads: tuple[tuple[int, int], ...]  # (layer, head) whose attention follows the sound
    begin_suppressed_ids: tuple[int, ...] = ()  # never chosen first: in Whisper a blank and the end
    previous_id: int | None = None  # stands before words that were read earlier; None: it was not trained to see any


@dataclass(frozen=True)
class DecoderConfig:
    """A Qwen2- or Llama-type causal decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float = 1e-6
    attention_bias: bool = True  # on q, k and v; Qwen2 has it, Llama has not
    attention_output_bias: bool = False  # on o; Llama with attention_bias has it
    mlp_bias: bool = False
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 32_768


@dataclass(frozen=True)
class SSTConfig:
    """Speech Summarization Tokens: interval length, and the ratios that training covered.

    `trained` False marks freshly initialised parameters: they run, but have learnt nothing.
    """

    interval: int  # speech tokens per interval (w)
    ratios: tuple[int, ...]  # speech tokens per SST (alpha); every one divides `interval`
    default_ratio: int
    output_projection: bool = False  # a second o projection beside q, k and v
    own_projections: bool = (
        True  # False: SSTs go through the decoder's own q, k and v, and only their embedding is theirs
    )
    appended: bool = False  # SSTs stand behind their whole interval and see all of it, not each behind its own block
    trained: bool = True
    horizon: int | None = None  # memory slots before its own that an interval sees while it is heard; None: all
    pooled: bool = False  # an SST's key and value also hold a learned mix of those of the tokens it stands for
    recall: int = 0  # intervals whose words are recalled from a compressed memory to answer from; 0: its slots answer

    def pool_columns(self, ratio: int) -> range:
        """Which of a layer's pooling weights (2, kv_heads, sum of `ratios`) serve `ratio`, the nearest token first."""
        first = sum(r for r in self.ratios if r < ratio)
        return range(first, first + ratio)

    def pooling_columns(self, ranks: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        """(K, most) int64 columns of a whole pass's SSTs, see schedule.WholePass; the sum of the ratios where ranks is -1."""
        first = np.array([self.pool_columns(r).start for r in ratios.tolist()], np.int64)
        return np.where(ranks < 0, sum(self.ratios), first[:, None] + ranks)


@dataclass(frozen=True)
class PromptConfig:
    """The text around the audio. `{question}` in `after_audio` is where the question goes."""

    before_audio: str = ""
    after_audio: str = "{question}"
    end_tokens: tuple[str, ...] = ()  # any of these ends an answer
    transcribe: str = "Transcribe it."  # the question that asks for the words
    spoken: bool = False  # answers spell English numbers as they are said, where a recogniser writes figures


@dataclass(frozen=True)
class ModelConfig:
    """Everything a backend needs to build the model. `sst` None: the checkpoint has no SST parameters."""

    encoder: EncoderConfig
    decoder: DecoderConfig
    adapter: AdapterConfig | None = None  # speech tokens from frames, at a constant rate; or ...
    recognizer: RecognizerConfig | None = None  # ... from recognised words, where something is said
    prompt: PromptConfig = field(default_factory=PromptConfig)
    sst: SSTConfig | None = None
    evidence_layers: tuple[int, ...] = ()  # decoder layers whose attention is shown as evidence; none: all
    dtype: str = "float32"  # of the stored weights
    layout: str = "torch"  # of the stored weights: one of config_check.LAYOUTS; every backend reads both
    quantization: dict[str, int] | None = None  # {"group_size", "bits"} of the decoder's linear layers
    name: str = "unnamed"
    description: str = ""  # what it understands, in words that an interface can show
    suggestions: tuple[str, ...] = ()  # questions to offer, of a model that understands one kind of recording only
    parts: tuple[BasePart, ...] = ()  # published weights that the checkpoint names instead of holding them

    def __post_init__(self) -> None:
        check(self)

    @property
    def frames_per_token(self) -> int:
        """Mel frames per speech token of an adapter; a recogniser's have no constant rate."""
        if self.adapter is None:
            raise ValueError("a recogniser's speech tokens have no constant rate")
        return CONV_STRIDE * self.encoder.pool * self.adapter.stack

    @property
    def tokens_per_window(self) -> int:
        """Speech tokens kept of one full window."""
        return self.encoder.hop_frames // self.frames_per_token

    @property
    def seconds_per_token(self) -> float:
        """Seconds of sound that one speech token of an adapter stands for."""
        return self.frames_per_token * HOP_LENGTH / SAMPLING_RATE

    @property
    def kv_values_per_slot(self) -> int:
        """Numbers kept per memory slot: 2 x layers x kv_heads x head_dim (SST.md, invariant 3)."""
        d = self.decoder
        return 2 * d.num_hidden_layers * d.num_key_value_heads * d.head_dim

    def tokens_for(self, samples: int) -> int:
        """Speech tokens of a recording of `samples` samples at 16 kHz; an estimate for a recogniser's, on the safe side."""
        if self.adapter is None:
            return math.ceil(samples / SAMPLING_RATE * RECOGNIZED_TOKENS_PER_SECOND)
        windows, rest = divmod(samples, self.encoder.hop_frames * HOP_LENGTH)
        return windows * self.tokens_per_window + self.tokens_of_window(rest)

    def tokens_of_window(self, samples: int) -> int:
        """Speech tokens to keep of one window whose middle part holds `samples` of sound: every started one."""
        if self.encoder.keep_padding:
            return self.tokens_per_window if samples else 0
        if self.encoder.whole_pools:
            positions = -(-samples // (CONV_STRIDE * HOP_LENGTH))
            stack = self.frames_per_token // (CONV_STRIDE * self.encoder.pool)
            return -(-(positions // self.encoder.pool) // stack)
        return -(-samples // (self.frames_per_token * HOP_LENGTH))
