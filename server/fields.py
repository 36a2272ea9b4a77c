"""The fields of requests, as OpenAI's clients send them, checked one by one: a chat's JSON, a form's text.

What would change an answer and cannot be done is refused; what changes nothing is ignored. It knows no audio.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator
from starlette.datastructures import FormData

from speech_xl.arguments import parse_bytes, parse_ratio
from speech_xl.clock import parse_time
from speech_xl.errors import QuestionError, ScheduleError
from speech_xl.model import DEFAULT
from speech_xl.sampling import Sampling
from speech_xl.schedule import Ratio

MOST_STOPS, LONGEST_STOP = 4, 200
MOST_MESSAGES = 1000


class Strict(BaseModel):
    """No text where a number belongs; fields that are not known are ignored."""

    model_config = ConfigDict(strict=True)


class TextPart(Strict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class InputAudio(Strict):
    """A recording in the request itself."""

    data: str  # base64
    format: str


class InputAudioPart(Strict):
    """A recording in a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(Strict):
    """Where a recording lies: a data: URL, or one of the web where the server allows it."""

    url: str


class AudioUrlPart(Strict):
    """A recording in a message, by its address."""

    type: Literal["audio_url"]
    audio_url: AudioUrl


AudioPart = InputAudioPart | AudioUrlPart
Part = Annotated[TextPart | InputAudioPart | AudioUrlPart, Field(discriminator="type")]
# Tagged, so that what is said of a wrong part is about parts.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "parts"),
]


class ChatMessage(Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None

    @property
    def text(self) -> str:
        """All text of the message, a line a part."""
        if isinstance(self.content, str):
            return self.content.strip()
        return "\n".join(part.text for part in self.content or () if isinstance(part, TextPart)).strip()

    @property
    def audio(self) -> list[AudioPart]:
        """Its recordings."""
        return [p for p in self.content or () if isinstance(p, AudioPart)]


def _validated(value: Any) -> Any:
    """What a validator below has made of a field: a number, where a client may write words for it."""
    return value


class Extras(Strict):
    """The object `speech_xl`: what only Speech-XL has."""

    model_config = ConfigDict(strict=True, extra="forbid")
    memory: str | None = Field(None, description="id of a memory, in place of a recording")
    ratio: int | str | None = Field(DEFAULT, description='speech tokens per memory slot, or "raw"')
    memory_budget: int | str | None = Field(None, description='bytes, or "64MiB": the smallest ratio that fits')
    start: float | str | None = Field(None, alias="from", description='seconds or "1:20"; earlier parts are ignored')
    end: float | str | None = Field(None, alias="to", description='seconds or "1:35"; later parts are ignored')

    @property
    def span(self) -> tuple[float | None, float | None]:
        """Seconds of the recording that are asked about, start and end; None is the recording's own."""
        return _validated(self.start), _validated(self.end)

    @property
    def budget(self) -> int | None:
        """The memory's budget in bytes."""
        return _validated(self.memory_budget)

    @field_validator("ratio")
    @classmethod
    def _ratio(cls, value: int | str | None) -> Ratio | str:
        return DEFAULT if value in (None, DEFAULT) else _parsed(parse_ratio, value)

    @field_validator("memory_budget")
    @classmethod
    def _memory_budget(cls, value: int | str | None) -> int | None:
        return None if value is None else _parsed(parse_bytes, value)

    @field_validator("start", "end")
    @classmethod
    def _time(cls, value: float | str | None) -> float | None:
        return None if value is None else _parsed(parse_time, f"{value:f}" if isinstance(value, float) else value)


def _parsed(parse: Any, value: int | str) -> Any:
    try:
        return parse(str(value))
    except (ScheduleError, QuestionError) as error:
        raise ValueError(str(error)) from None


class FileRequest(BaseModel):
    """The fields of a form beside its file, all of them text; `speech_xl[ratio]` is the extra `ratio`."""

    model: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    stream: bool = False
    temperature: float | None = None
    language: str | None = Field(None, max_length=20)
    granularities: list[str] = Field(default_factory=list, alias="timestamp_granularities[]")
    include: list[str] = Field(default_factory=list, alias="include[]")
    speech_xl: Extras = Field(default_factory=Extras)

    @classmethod
    def of_form(cls, form: FormData) -> FileRequest:
        """ValidationError, which becomes a 400, for a field that cannot be."""
        fields: dict[str, Any] = {}
        extras: dict[str, str] = {}
        for name, value in form.multi_items():
            if not isinstance(value, str) or value == "":
                continue
            if name.startswith("speech_xl[") and name.endswith("]"):
                extras[name[10:-1]] = value
            elif name.endswith("[]"):
                fields.setdefault(name, []).append(value)
            else:
                fields[name] = value
        return cls.model_validate(fields | {"speech_xl": extras})

    @field_validator("temperature")
    @classmethod
    def _greedy(cls, value: float | None) -> float | None:
        if value not in (None, 0, 1):  # 1 is what clients send who were told nothing
            raise ValueError("A transcript is always the most probable words; give 0 or leave this out")
        return value

    @field_validator("granularities")
    @classmethod
    def _segments(cls, value: list[str]) -> list[str]:
        if set(value) - {"segment"}:
            raise ValueError("A memory has the times of segments; give segment or leave this out")
        return value

    @field_validator("include")
    @classmethod
    def _nothing(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("There is nothing to include; leave this out")
        return value

    @model_validator(mode="after")
    def _can_stream(self) -> FileRequest:
        if self.stream and self.response_format not in ("json", "text"):
            raise ValueError(f"A stream is of words; {self.response_format} comes whole, so leave stream out")
        return self


class StreamOptions(Strict):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


class ChatRequest(Strict):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    speech_xl: Extras = Field(default_factory=Extras)
    n: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    logprobs: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None

    @field_validator("stop")
    @classmethod
    def _stop(cls, value: str | list[str] | None) -> list[str]:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MOST_STOPS or not all(0 < len(s) <= LONGEST_STOP for s in stops):
            raise ValueError(f"Give at most {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters")
        return stops

    @field_validator("temperature", "top_p")
    @classmethod
    def _can_sample(cls, value: float | None, field: ValidationInfo) -> float | None:
        try:
            named: dict[str, Any] = {} if value is None else {str(field.field_name): value}
            Sampling(**named)
        except QuestionError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def sampling(self) -> Sampling:
        """Greedy where nothing is said; a top_p alone means OpenAI's temperature of 1, for greedy it would be idle."""
        top_p = 1.0 if self.top_p is None else self.top_p
        usual = 0.0 if top_p == 1 else 1.0
        return Sampling(usual if self.temperature is None else self.temperature, top_p, self.seed)

    @field_validator("n")
    @classmethod
    def _one(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError("There is one answer to a question; leave this out")
        return value

    @field_validator("tools", "functions", "logprobs", "presence_penalty", "frequency_penalty", "logit_bias")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        if value:
            raise ValueError("This model cannot do this; leave it out")
        return value

    @field_validator("response_format")
    @classmethod
    def _text_format(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type") != "text":
            raise ValueError("Answers are plain text; leave this out")
        return value

    @field_validator("modalities")
    @classmethod
    def _text_modality(cls, value: list[str] | None) -> list[str] | None:
        if value not in (None, ["text"]):
            raise ValueError('Answers are text; give ["text"] or leave this out')
        return value
