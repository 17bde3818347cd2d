"""One tree of settings: defaults < `FOLDER/windlass.toml` < environment `WINDLASS_SECTION_KEY` < overrides.

A `Settings` is a frozen value that is handed on to whoever needs it; nothing here is global. Every field says
its meaning, unit and limits where it is declared, and `docs/settings.md` is generated from that.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from windlass.core.errors import UsageError

FILE_NAME = "windlass.toml"
PREFIX = "WINDLASS_"

# Variables that belong to one machine or one run, not to a folder, and so have no line in `windlass.toml`.
OTHER_VARIABLES = {
    "WINDLASS_API_KEY": "The key sent to a model server named by URL; `OPENAI_API_KEY` is read when it is not set.",
    "WINDLASS_CALIBRATION": "The file that `windlass doctor --calibrate` writes this machine's measured speeds to.",
    "WINDLASS_ISA": "The instructions that kernels are compiled for: avx512vnni, avxvnni, avx2, neon or generic.",
    "WINDLASS_MODELS": "The folder that fetched models lie in.",
    "WINDLASS_SHARED_DATA": "The folder of public data that some benchmarks read.",
}

Value = TypeVar("Value", int, float, str)


def _setting(
    default: Value,
    meaning: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Value:
    """Declare one setting: its default, its meaning and unit, and what values make sense."""
    return field(
        default=default,
        metadata={"meaning": meaning, "least": least, "most": most, "choices": choices},
    )


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How files become passages."""

    passage_words: int = _setting(160, "Words in one passage of prose or code, at most.", least=20, most=2000)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which models answer and embed."""

    decoder: str = _setting(
        "smollm2-135m-instruct",
        "Model that writes answers: a name from `windlass models list`, a local safetensors folder, a "
        "`.gguf` file, or the URL of an OpenAI-compatible server.",
    )
    encoder: str = _setting(
        "all-minilm-l6-v2", "Model that embeds passages and questions: a name or a local safetensors folder."
    )
    encoder_precision: str = _setting(
        "int8",
        "How passages are embedded: `int8` is twice as fast, `float32` exact. Changing it makes all vectors again.",
        choices=("int8", "float32"),
    )


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How passages are found."""

    k: int = _setting(8, "Passages that a search returns.", least=1, most=1000)


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How an answer is made from passages."""

    mode: str = _setting(
        "auto",
        "`extract` quotes the best supporting sentences, `generate` lets the decoder write and checks every sentence, "
        "`auto` lets it write and quotes where the files do not carry what it wrote.",
        choices=("auto", "extract", "generate"),
    )
    max_context_tokens: int = _setting(
        1536,
        "Tokens of passages and question together that the decoder is given; passages past it are dropped whole.",
        least=128,
        most=1_000_000,
    )
    reuse: str = _setting(
        "chunks",
        "What the decoder need not compute again when it writes: `chunks` takes passages that it read before wherever "
        "they stand now, and repairs a part of them (faster, not exact); `exact` takes equal beginnings only.",
        choices=("chunks", "exact"),
    )
    min_evidence: float = _setting(
        0.35,
        "Evidence (0 to 1) below which the answer is 'not found in your files'.",
        least=0.0,
        most=1.0,
    )


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the page and the API listen, and what one request may cost."""

    host: str = _setting("127.0.0.1", "Address to listen on. Any other than loopback needs an API key.")
    port: int = _setting(8765, "Port to listen on; 0 takes any free one, which is then printed.", least=0, most=65_535)
    max_body_mb: int = _setting(8, "Largest request body in MB; a larger one gets 413.", least=1, most=1024)
    max_tokens: int = _setting(1024, "Tokens that one request may have generated, at most.", least=1, most=1_000_000)
    max_waiting: int = _setting(
        64, "Requests that may wait; one more gets 429 and `Retry-After`.", least=1, most=100_000
    )
    kv_cache_mb: int = _setting(
        512,
        "Memory in MB for keys and values of running and remembered requests; one whole context at the least.",
        least=1,
        most=1_000_000,
    )
    kv_sparsity_percent: int = _setting(
        0,
        "Share in percent of a long conversation that each new token does not read; faster, and not exactly the same "
        "answers. 0 reads everything.",
        least=0,
        most=95,
    )
    chunk_cache_mb: int = _setting(
        256,
        "Memory in MB for passages of earlier prompts, used again wherever they stand in later ones; 0 keeps none.",
        least=0,
        most=1_000_000,
    )
    chunk_disk_mb: int = _setting(
        1024,
        "Disk in MB for such passages, under `.windlass/chunks`; 0 keeps them in memory only.",
        least=0,
        most=10_000_000,
    )
    scheduler: str = _setting(
        "stall-free",
        "Who gets the model's next step: `stall-free` cuts long prompts so that running answers go on; the others are "
        "there to compare with.",
        choices=("stall-free", "prefill-first", "hybrid", "decode-first"),
    )
    tbt_slo_ms: int = _setting(
        0,
        "Milliseconds that may lie between two tokens of an answer, for the scheduler `stall-free`; 0: no promise, "
        "steps of a fixed size.",
        least=0,
        most=600_000,
    )


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What reading one file may cost, in the child process that reads it."""

    reader_seconds: float = _setting(60.0, "Seconds for one file.", least=1.0, most=86_400.0)
    reader_memory_mb: int = _setting(1024, "Memory of the reader in MB.", least=128, most=1_000_000)
    inflated_mb: int = _setting(
        200, "Bytes (in MB) that the compressed parts of one file may inflate to.", least=1, most=1_000_000
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a person can set. Frozen: derive another with `with_overrides`.

    Example:
        >>> Settings().server.port
        8765
        >>> Settings().with_overrides({"server.port": 9000}).server.port
        9000
    """

    index: IndexSettings = field(default_factory=IndexSettings)
    models: ModelSettings = field(default_factory=ModelSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    answer: AnswerSettings = field(default_factory=AnswerSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)

    def with_overrides(self, overrides: Mapping[str, object]) -> Settings:
        """A copy with dotted names set, e.g. `{"server.port": 9000}`. Entries that are None are left alone.

        Raises:
            UsageError: an unknown name, a wrong type, or a value outside its limits.
        """
        return _apply(self, _entries_of_overrides(overrides))


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """One setting as the documentation and `windlass doctor` show it."""

    name: str
    type: str
    default: int | float | str
    meaning: str
    expected: str
    environment: str


def load(
    folder: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Read the settings that hold for `folder`.

    Args:
        folder: Where `windlass.toml` is looked for; a missing file is fine. None: no file is read.
        environment: Variables to read instead of `os.environ`.
        overrides: Dotted names to values, strongest of all; None values count as not given.

    Raises:
        UsageError: the file is not valid TOML, or a name, type or value is wrong. The message names the
            setting, the place it stands in, and what was expected.
    """
    entries: list[tuple[str, object, str]] = []
    if folder is not None:
        entries += _entries_of_file(folder / FILE_NAME)
    entries += _entries_of_environment(os.environ if environment is None else environment)
    entries += _entries_of_overrides(overrides or {})
    return _apply(Settings(), entries)


def documented() -> tuple[SettingDoc, ...]:
    """Every setting in the order of the tree."""
    return tuple(
        SettingDoc(
            name=name,
            type=type(_default(item)).__name__,
            default=_default(item),
            meaning=item.metadata["meaning"],
            expected=_expected(item),
            environment=_variable(name),
        )
        for name, item in _known().items()
    )


def _known() -> dict[str, Field[Any]]:
    defaults = Settings()
    return {
        f"{section.name}.{item.name}": item
        for section in fields(Settings)
        for item in fields(getattr(defaults, section.name))
    }


def _default(item: Field[Any]) -> int | float | str:
    default: Any = item.default
    return default  # type: ignore[no-any-return]


def _variable(name: str) -> str:
    return PREFIX + name.replace(".", "_").upper()


def _entries_of_file(path: Path) -> list[tuple[str, object, str]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}", hint="correct that line") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error
    return [(name, value, str(path)) for name, value in _flatten(data, str(path))]


def _flatten(data: Mapping[str, Any], place: str) -> Iterator[tuple[str, object]]:
    sections = [section.name for section in fields(Settings)]
    for section, content in data.items():
        if section not in sections:
            raise UsageError(
                f"unknown section [{section}] in {place}",
                hint=_nearest(section, sections) or f"the sections are {', '.join(sections)}",
            )
        if not isinstance(content, Mapping):
            raise UsageError(
                f"{section} in {place} is {_shown(content)}, expected a section", hint=f"write [{section}]"
            )
        for key, value in content.items():
            yield f"{section}.{key}", value


def _entries_of_environment(environment: Mapping[str, str]) -> list[tuple[str, object, str]]:
    known = {_variable(name): name for name in _known()}
    sections = tuple(f"{PREFIX}{section.name.upper()}_" for section in fields(Settings))
    entries: list[tuple[str, object, str]] = []
    for variable, text in sorted(environment.items()):
        if variable in known:
            name = known[variable]
            entries.append((name, _parse(name, text), f"the environment variable {variable}"))
        elif variable.startswith(PREFIX) and variable not in OTHER_VARIABLES:
            # A WINDLASS_ variable may be another program's; only what looks meant as a setting is refused.
            nearest = _nearest(variable, list(known))
            if variable.startswith(sections) or nearest:
                raise UsageError(
                    f"unknown setting in the environment variable {variable}",
                    hint=nearest or "see docs/settings.md for the names",
                )
    return entries


def _entries_of_overrides(overrides: Mapping[str, object]) -> list[tuple[str, object, str]]:
    return [(name, value, "the overrides given") for name, value in overrides.items() if value is not None]


def _parse(name: str, text: str) -> object:
    """The text of an environment variable as the setting's type, or unchanged when it does not parse."""
    kind = type(_default(_known()[name]))
    try:
        return kind(text.strip())
    except ValueError:
        return text


def _apply(settings: Settings, entries: list[tuple[str, object, str]]) -> Settings:
    known = _known()
    changes: dict[str, dict[str, object]] = {}
    for name, value, place in entries:
        if name not in known:
            raise UsageError(
                f"unknown setting {name} in {place}",
                hint=_nearest(name, list(known)) or "see docs/settings.md for the names",
            )
        section, key = name.split(".")
        changes.setdefault(section, {})[key] = _checked(name, known[name], value, place)
    sections = {section: replace(getattr(settings, section), **values) for section, values in changes.items()}
    return replace(settings, **sections)


def _checked(name: str, item: Field[Any], value: object, place: str) -> int | float | str:
    kind = type(_default(item))
    if kind is float and type(value) is int:
        value = float(value)
    right = type(value) is kind
    if right and isinstance(value, int | float):
        least, most = item.metadata["least"], item.metadata["most"]
        # Written so that NaN is refused as well.
        right = (least is None or value >= least) and (most is None or value <= most)
    if right and isinstance(value, str):
        choices = item.metadata["choices"]
        right = bool(value.strip()) and (not choices or value in choices)
    if not right or not isinstance(value, int | float | str):
        raise UsageError(f"{name} in {place} is {_shown(value)}, expected {_expected(item)}")
    return value


def _expected(item: Field[Any]) -> str:
    choices, least, most = item.metadata["choices"], item.metadata["least"], item.metadata["most"]
    if choices:
        return "one of " + ", ".join(choices)
    if isinstance(_default(item), str):
        return "a text"
    word = "a whole number" if isinstance(_default(item), int) else "a number"
    return f"{word} from {least:,g} to {most:,g}" if least is not None and most is not None else word


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(name: str, names: list[str]) -> str:
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return f"did you mean {found[0]}?" if found else ""
