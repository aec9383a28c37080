"""What the registry holds of a model, and what may name one. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator

from lmlab.errors import RegistryError

REGISTRY_FILE = "registry.json"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"  # of a model's folder
CUSTOM = "custom-transformer"  # architecture type of the lab's own Transformer, and the `model_type` of its config
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}")


def is_name(text: str) -> bool:
    """Whether `text` may name a model: `[a-z0-9][a-z0-9._-]{0,63}`, and not the registry's own file."""
    return NAME.fullmatch(text) is not None and not text.startswith(REGISTRY_FILE)


def check_name(name: str) -> str:
    """The name itself. Raises RegistryError where it may not name a model."""
    if not isinstance(name, str) or not is_name(name):
        raise RegistryError(
            f"{name!r} cannot name a model; use a-z, 0-9, dot, dash and underscore, beginning with a letter or digit, "
            "64 at most"
        )
    return name


class FileInfo(BaseModel):
    """Size in bytes and sha256 of one of a model's files, as they were when it was registered."""

    model_config = ConfigDict(frozen=True)

    size: NonNegativeInt
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Link(BaseModel):
    """One ancestor: the model, and the run and step whose weights were taken; None where there is none of them."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_name: str | None
    run_id: str | None = None
    step: int | None = None


class Entry(BaseModel):
    """What the registry knows of a model. `lineage` holds its ancestors, oldest first; the last is `fine_tuned_from`.

    run_id, step: the run that made a fine-tuned model, and the step its weights are from. local_path: the model's
    folder, a plain name inside the models folder.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    model_name: str
    model_id: str | None = None
    source: Literal["huggingface", "local", "gguf", "builtin", "fine-tuned", "custom"]
    architecture_type: str
    local_path: str
    revision: str | None = None
    files: dict[str, FileInfo] = Field(default_factory=dict)
    license: str | None = None
    n_parameters: NonNegativeInt = 0
    size_bytes: NonNegativeInt = 0
    created_at: str = ""
    fine_tuned_from: str | None = None
    fine_tuning_started_at: str | None = None
    lineage: tuple[Link, ...] = ()
    run_id: str | None = None
    step: int | None = None

    def comes_from(self, other: Entry) -> bool:
        """Whether a link names the other model, and not one that had its name before: run and step tell them apart.

        Of an entry without links, the name in `fine_tuned_from` is all there is.
        """
        if not self.lineage:
            return self.fine_tuned_from == other.model_name
        meant = (other.model_name, other.run_id, other.step)
        return any((link.model_name, link.run_id, link.step) == meant for link in self.lineage)

    @property
    def remedy(self) -> str:
        """What to do where files of the model are lost: it takes the place of what is left of them."""
        return "import it again" if self.run_id is None else f"register step {self.step} of the run {self.run_id} again"

    @field_validator("model_name", "local_path")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not is_name(value):
            raise ValueError(f"{value!r} leaves the models folder or is no valid name")
        return value

    @field_validator("files")
    @classmethod
    def _plain_files(cls, value: dict[str, FileInfo]) -> dict[str, FileInfo]:
        for name in value:
            if not FILE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no plain file name")
        return value


@dataclass(frozen=True)
class Problem:
    """Something that `validate` found: about which model or folder, what, and what was done about it, "" for nothing."""

    name: str
    message: str
    done: str = ""

    @property
    def fixed(self) -> bool:
        """Whether it is out of the way."""
        return bool(self.done)

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" + (f" ({self.done})" if self.done else "")
