"""A source's tokenizer and chat template, as our tokenizer.json and PromptConfig.

A chat template is rendered once, with marks where the audio and the question go, and cut at the marks; what
is left is plain text, so that asking needs no template engine. Mistral's tekken.json becomes a
tokenizer.json. It knows no tensors and no architecture.
"""

from __future__ import annotations

import base64
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from converters.family import Family, Json
from converters.source import Source, first_line, read_json
from speech_xl.config import PromptConfig
from speech_xl.errors import CheckpointError

QUESTION = "the-question-goes-here"
AUDIO = "the-audio-goes-here"


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """tokenizer.json, else tekken.json, else what transformers makes of vocab.json and merges.txt."""
    if (folder / "tokenizer.json").is_file():
        return read_tokenizer(folder / "tokenizer.json")
    if (folder / "tekken.json").is_file():
        path = folder / "tekken.json"
        try:
            return from_tekken(path)
        except CheckpointError:
            raise
        except Exception as error:  # missing fields, and what the tokenizers library says of bad ones
            reason = first_line(error)
            raise CheckpointError(f"{path} is no tekken tokenizer ({reason}); download it again.") from None
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
        except Exception as error:  # two libraries that fail in many ways on malformed files
            reason = first_line(error)
            raise CheckpointError(f"The tokenizer of {folder} cannot be read ({reason}); download it again.") from None
    return None


def read_tokenizer(path: Path) -> Tokenizer:
    """A file of the tokenizers library."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for any malformed file
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); copy or download it again.") from None


def from_tekken(path: Path) -> Tokenizer:
    """Mistral's tekken format: ranked byte strings behind a block of special tokens."""
    data = read_json(path)
    settings = data["config"]
    specials = int(settings["default_num_special_tokens"])
    words = {
        base64.b64decode(entry["token_bytes"]): entry["rank"]
        for entry in data["vocab"][: int(settings["default_vocab_size"]) - specials]
    }
    named = {entry["rank"]: entry["token_str"] for entry in data.get("special_tokens") or []}
    letters = byte_letters()
    vocabulary = {named.get(i, f"<SPECIAL_{i}>"): i for i in range(specials)}
    vocabulary |= {"".join(letters[b] for b in word): rank + specials for word, rank in words.items()}
    tokenizer = Tokenizer(BPE(vocabulary, merges_of(words, letters), fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(settings["pattern"]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(named.get(i, f"<SPECIAL_{i}>"), normalized=False, special=True) for i in range(specials)]
    )
    return tokenizer


def merges_of(words: dict[bytes, int], letters: dict[int, str]) -> list[tuple[str, str]]:
    """Every way to make a word of two words, in the order of the words' ranks."""
    merges = []
    for word in sorted(words, key=words.__getitem__):
        halves = [(word[:i], word[i:]) for i in range(1, len(word)) if word[:i] in words and word[i:] in words]
        for left, right in sorted(halves, key=lambda pair: (words[pair[0]], words[pair[1]])):
            merges.append(("".join(letters[b] for b in left), "".join(letters[b] for b in right)))
    return merges


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def chat_template(folder: Path) -> str | None:
    """The template that a folder brings, wherever transformers may have put it."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); copy or download it again.") from None
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = read_json(folder / name).get("chat_template")
            if isinstance(template, list):
                template = next((t["template"] for t in template if t.get("name") == "default"), None)
            if isinstance(template, str):
                return template
    return None


def render(template: str, content: list[Json] | str, special: Json) -> str:
    """A chat template's text for one question about one recording, up to where the answer starts."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda _: ""
    messages = [{"role": "user", "content": content}]
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **special)


def special_tokens(folder: Path) -> Json:
    """bos_token and its like, as plain strings, for templates that mention them."""
    path = folder / "tokenizer_config.json"
    found = read_json(path) if path.is_file() else {}
    tokens = {key: found.get(key) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    plain = {k: v.get("content") if isinstance(v, dict) else v for k, v in tokens.items()}
    return {k: v for k, v in plain.items() if isinstance(v, str)}


def prompt_config(family: Family, source: Source, config: Json, tokenizer: Tokenizer | None) -> PromptConfig:
    """The text around the audio, and the tokens that end an answer."""
    before, after = cut(family, source)
    return PromptConfig(before, after, end_tokens(family, source, config, tokenizer))


def cut(family: Family, source: Source) -> tuple[str, str]:
    """-> (text before the audio, text behind it with {question}) from the source's template, or the family's if it has none.

    CheckpointError if its template fails: another model's would make worse answers without a word.
    """
    own = source.chat_template()
    if own is None:
        before, _, after = family.template.partition(family.audio_mark)
        return before, after
    reason = "it has no place for the recording and the question"
    parts = [{"type": "audio", "audio_url": AUDIO}, {"type": "text", "text": QUESTION}]
    for content in (parts, f"{family.audio_mark}\n{QUESTION}"):
        try:
            text = render(own, content, source.special_tokens())
        except Exception as error:  # a template is a stranger's program and may fail in any way
            reason = first_line(error)
            continue
        before, mark, after = text.partition(family.audio_mark)
        if mark and family.audio_mark not in after and after.count(QUESTION) == 1:
            return before, after.replace(QUESTION, "{question}")
    raise CheckpointError(
        f"The chat template of {source.path} cannot be used ({reason}); fix it, or convert a copy without it."
    )


def end_tokens(family: Family, source: Source, config: Json, tokenizer: Tokenizer | None) -> tuple[str, ...]:
    """What the source's generation stops at, else the family's own end tokens."""
    if tokenizer is None:
        return ()
    ids: list[int] = []
    for where in (source.generation_config(), config, config.get("text_config") or {}):
        ends = where.get("eos_token_id")
        ids += [] if ends is None else ends if isinstance(ends, list) else [ends]
        if ids:
            break
    names = [tokenizer.id_to_token(i) for i in ids]
    names += [token for token in family.end_tokens if tokenizer.token_to_id(token) is not None]
    return tuple(dict.fromkeys(name for name in names if name))
