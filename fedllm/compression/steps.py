"""What `fedllm compress` does to a run's model, from its folder to a new one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fedllm.compression.distilling import evenly, student_of, trainable
from fedllm.compression.handing_over import require_type, write_integers, write_smaller
from fedllm.compression.integers import INTEGERS, Integers
from fedllm.compression.integers_folder import is_of_integers
from fedllm.compression.linears import Batch, input_norms, linears
from fedllm.compression.pruning import Pattern, prune, zeros
from fedllm.compression.removing import remove_blocks, remove_channels, remove_heads
from fedllm.compression.rounding_aware import as_if_rounded
from fedllm.compression.teaching import Lesson, Teaching, Told
from fedllm.compression.texts import single
from fedllm.compression.whole import Whole, open_whole
from fedllm.errors import ConfigError
from fedllm.exporting.written import Written
from fedllm.files import require_new
from fedllm.tasks.public_texts import Tokens, read_lines, tokens_of

Short = Literal["bfloat16", "float16"]
KEPT: tuple[Integers | Short, ...] = (*INTEGERS, *get_args(Short))
# Texts by which it is seen what matters.
_LOOKED_AT = 128
_ALONE = "Made of what the run released alone; nothing else was read."
_BY_TEXTS = "Texts that whoever made it smaller called public had a part in it, and nothing else."


@dataclass(frozen=True, slots=True)
class Texts:
    """Public texts.

    Attributes
    ----------
    location : str
        A file's; see `read_lines`.
    column : str
        Where rows have the text.
    """

    location: str
    column: str

    def read(self) -> list[str]:
        """Read them; errors as `read_lines`."""
        return read_lines(self.location, self.column)

    def of(self, whole: Whole, read: list[str]) -> list[Tokens]:
        """Return what was read as a model reads texts."""
        most = whole.released.run.config.model.max_length
        return tokens_of(read, self.location, whole.model.tokenizer, most)


@dataclass(frozen=True, slots=True)
class Pruning:
    """What is taken out of a model; parts that are 0 stay.

    Attributes
    ----------
    pattern : {"share", "2:4"}, optional
        Which single weights become zero; None leaves them.
    share : float
        Of the weights, where the pattern is a share.
    channels, heads, blocks : float
        Share of feed-forward channels, of groups of heads, and of blocks.
    """

    pattern: Pattern | None = None
    share: float = 0.5
    channels: float = 0.0
    heads: float = 0.0
    blocks: float = 0.0

    @property
    def takes_parts(self) -> bool:
        """Whether tensors become smaller."""
        return bool(self.channels or self.heads or self.blocks)


def prune_run(
    run: Path,
    out: Path,
    asked: Pruning,
    texts: Texts | None,
    teaching: Teaching | None,
    told: Told,
    base: str | None = None,
    dtype: str | None = None,
) -> Written:
    """Prune a run's model, teach what is left if asked, and write it.

    Parameters
    ----------
    texts : Texts, optional
        By which it is seen what matters, and by which is taught. Single weights can go without.
    dtype : str, optional
        In which weights are kept; as the base does when left out.

    Raises
    ------
    ConfigError
        If nothing is asked for, or texts are needed and there are none, or the model has no such
        parts.
    FedllmError
        As `open_whole` and `write_smaller`.
    """
    require_new(out)
    if asked.pattern is None and not asked.takes_parts:
        raise ConfigError(
            "nothing was asked to go",
            "give --share, --two-of-four, --channels, --heads or --layers",
        )
    if texts is None and (asked.takes_parts or teaching is not None):
        raise ConfigError(
            "what matters in whole parts is seen by texts, and teaching needs them",
            "give a file of public texts with --texts",
        )
    read = [] if texts is None else texts.read()
    whole = open_whole(run, base)
    found = [] if texts is None else texts.of(whole, read)
    if teaching is not None:
        require_type(whole, dtype)
    before = whole.backbone.config.to_dict()
    small = whole.with_module(trainable(whole.module))
    kept, notes = _take_out(small, asked, single(found, _LOOKED_AT))
    lesson = None if teaching is None else Lesson(whole, out, found, teaching, told)
    if lesson is not None:
        pruned = (
            None if asked.pattern is None else linears(small.backbone, small.architecture.lists)
        )
        notes.append(lesson.teach(small, kept, "pruned", pruned))
    notes.append(_ALONE if texts is None else _BY_TEXTS)
    written = write_smaller(small, out, "pruned", before, notes, dtype)
    if lesson is not None:
        lesson.done()
    return written


def _take_out(
    small: Whole, asked: Pruning, looked_at: list[Batch]
) -> tuple[tuple[int, ...], list[str]]:
    """Take parts out, in place; returns which blocks are left, and what was done in words."""
    backbone, lists, notes = small.backbone, small.architecture.lists, []
    kept = tuple(range(len(small.blocks)))
    if asked.blocks:
        kept = remove_blocks(backbone, lists, asked.blocks, looked_at)
        notes.append(f"Of its blocks, {len(kept)} are left: {', '.join(map(str, kept))}.")
    if asked.heads:
        left = remove_heads(backbone, small.blocks, asked.heads, looked_at)
        notes.append(f"Each block has {left} attention heads left.")
    if asked.channels:
        left = remove_channels(backbone, small.blocks, asked.channels, looked_at)
        notes.append(f"Each block has {left} feed-forward channels left.")
    if asked.pattern is not None:
        layers = linears(backbone, lists)
        norms = input_norms(backbone, layers, looked_at) if looked_at else None
        prune(layers, asked.pattern, asked.share, norms)
        by = "by size" if norms is None else "by size and what goes in (Wanda)"
        notes.append(f"{zeros(layers):.0%} of the weights of its blocks are zero, chosen {by}.")
    return kept, notes


def distil_run(
    run: Path,
    out: Path,
    share: float,
    texts: Texts,
    teaching: Teaching,
    told: Told,
    base: str | None = None,
    dtype: str | None = None,
) -> Written:
    """Teach a student that has a share of the model's blocks, and write it.

    Raises
    ------
    ConfigError
        If ``share`` leaves no student.
    FedllmError
        As `open_whole`, `distil` and `write_smaller`.
    """
    require_new(out)
    read = texts.read()
    whole = open_whole(run, base)
    kept = evenly(len(whole.blocks), share)
    require_type(whole, dtype)
    before = whole.backbone.config.to_dict()
    small = whole.with_module(student_of(whole.module, kept))
    lesson = Lesson(whole, out, texts.of(whole, read), teaching, told)
    first = f"A student of {len(kept)} blocks, which began as {', '.join(map(str, kept))}."
    taught = lesson.teach(small, kept, "distilled")
    written = write_smaller(small, out, "distilled", before, [first, taught, _BY_TEXTS], dtype)
    lesson.done()
    return written


def quantize_run(
    run: Path,
    out: Path,
    kept: Integers | Short,
    texts: Texts | None = None,
    teaching: Teaching | None = None,
    told: Told = lambda step, steps, loss: None,
    base: str | None = None,
) -> Written:
    """Write a run's model with fewer bits a weight.

    Parameters
    ----------
    texts, teaching : optional
        On which, and how, the whole model teaches the one that will be of integers.

    Raises
    ------
    ConfigError
        If ``run`` is what this made of one, or what is not rounded to integers is to be taught, or
        there are texts or a way of teaching alone.
    FedllmError
        As `open_whole`, `distil`, `write_smaller` and `write_integers`.
    """
    require_new(out)
    if is_of_integers(run):
        raise ConfigError(
            f"the model in {run} is quantised already", "give the run that it was made of"
        )
    held = next((one for one in INTEGERS if one == kept), None)
    if (texts is None) != (teaching is None):
        raise ConfigError(
            "teaching needs public texts and a number of steps", "give both --texts and --steps"
        )
    if held is None and teaching is not None:
        raise ConfigError(f"{kept} loses too little to be taught", "leave --texts and --steps out")
    read = [] if texts is None else texts.read()
    whole = open_whole(run, base)
    if held is None:
        before = whole.backbone.config.to_dict()
        return write_smaller(whole, out, kept, before, [_ALONE], kept, answers_as_the_run=True)
    if texts is None or teaching is None:
        return write_integers(whole, out, held, [_STATES[held], _ALONE])
    small = whole.with_module(trainable(whole.module))
    lesson = Lesson(whole, out, texts.of(whole, read), teaching, told)
    with as_if_rounded(small.backbone, held):
        taught = lesson.teach(small, tuple(range(len(whole.blocks))), held)
    written = write_integers(small, out, held, [_STATES[held], taught, _BY_TEXTS])
    lesson.done()
    return written


_STATES: dict[Integers, str] = {
    "int8": "Each token's states are rounded as they arrive; nothing was calibrated.",
    "int8-weights": "Weights alone are rounded; for few tokens at a time states are bfloat16.",
    "int4": "Weights alone are rounded, 32 of them to a scale; states are bfloat16.",
}
