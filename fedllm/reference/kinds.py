"""The kinds of files that people write, each with the class that reads it."""

from __future__ import annotations

from dataclasses import dataclass

from fedllm.config import RunConfig, Section, SitePolicy
from fedllm.config.alignment import AlignConfig
from fedllm.config.kinds import KINDS, Kind
from fedllm.errors import ConfigError
from fedllm.identity.config import FederationConfig
from fedllm.pretraining.config import PretrainConfig


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file.

    Attributes
    ----------
    name : str
        The word for it on a command line.
    title : str
        Its heading in the reference.
    use : str
        What it is for, in Markdown.
    model : type
        What it is read into.
    """

    name: str
    title: str
    use: str
    model: type[Section]

    @property
    def words(self) -> str:
        """What a file of this kind is, within a sentence."""
        return self.title[0].lower() + self.title[1:]

    @property
    def known_by(self) -> Kind:
        """What tells such a file from others."""
        return next(kind for kind in KINDS if kind.model == self.model.__name__)


FILE_KINDS: tuple[FileKind, ...] = (
    FileKind(
        "run",
        "A run",
        "`RUN.toml`, for `fedllm simulate` and `fedllm run`. Examples: `examples/*/*.toml`; "
        "`fedllm init DATA` writes one for your own records.",
        RunConfig,
    ),
    FileKind(
        "site",
        "A site's policy",
        "`site.toml`, for `fedllm client check` and `fedllm client start`. A deployed site "
        "needs `[model]` and `[data]`. Never sent anywhere. "
        "Examples: [`examples/deployment/site.toml`](../examples/deployment/site.toml), "
        "[`examples/site.toml`](../examples/site.toml); `fedllm init DATA --site` writes one.",
        SitePolicy,
    ),
    FileKind(
        "federation",
        "A federation",
        "For `fedllm provision`. Example: "
        "[`examples/deployment/federation.toml`](../examples/deployment/federation.toml).",
        FederationConfig,
    ),
    FileKind(
        "pretraining",
        "Pretraining",
        "For `fedllm pretrain`; see [pretraining.md](pretraining.md). "
        "Examples: `examples/pretraining/*.toml`.",
        PretrainConfig,
    ),
    FileKind(
        "alignment",
        "An alignment",
        "For `fedllm align ppo` and `fedllm align grpo`; see [alignment.md](alignment.md). "
        "Examples: `examples/preferences/align_*.toml`.",
        AlignConfig,
    ),
)
KIND_NAMES = tuple(kind.name for kind in FILE_KINDS)


def kind_called(name: str) -> FileKind:
    """Return the kind of a name.

    Raises
    ------
    ConfigError
        If none is called so.
    """
    for kind in FILE_KINDS:
        if kind.name == name:
            return kind
    raise ConfigError(f"no kind of file is called {name!r}", f"use one of {', '.join(KIND_NAMES)}")
