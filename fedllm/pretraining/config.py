"""What a pretraining run asks for; read from TOML as strictly as a federated run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fedllm.config import (
    PositiveFloat,
    PositiveInt,
    Section,
    apply_overrides,
    parse,
    read_toml,
    resolve_location,
)

Objective = Literal["causal", "masked", "span"]
TextDocuments = Literal["file", "blank_line", "line"]
Architecture = Literal["llama", "bert", "t5"]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


# Eight digits name a checkpoint.
_MOST_STEPS = 99_999_999

Strings = Annotated[
    tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...])
]


class CorpusSection(Section):
    r"""Where public text comes from.

    Attributes
    ----------
    train : str or list of str
        Paths or glob patterns, one a source: ``.txt``, ``.jsonl``, ``.csv``, ``.parquet``,
        the first three also with ``.gz``.
    text : str or list of str
        Column that holds the text, or a template such as ``"{question}\n{answer}"``; one
        for all sources or one a source. Special tokens may be written out in it.
    text_documents : {"file", "blank_line", "line"}
        What ends a document of a ``.txt`` file: the end of the file, a blank line, or
        every line.
    weights : list of float, optional
        How often each source is drawn; in proportion to its tokens when left out.
    evaluation : str or list of str
        Held-out files. Documents that also stand there are left out of training.
    evaluation_text : str or list of str, optional
        Column or template of the held-out files, one for all or one each; that of the first
        source when left out.
    held_out : float
        Share of the training documents held out when ``evaluation`` is empty.
    exclude : str or list of str
        Further files (columns as in the first of ``evaluation``) whose documents must not be
        trained on.
    """

    train: Annotated[Strings, Field(min_length=1)]
    text: Annotated[Strings, Field(min_length=1)] = ("text",)
    text_documents: TextDocuments = "file"
    weights: tuple[PositiveFloat, ...] | None = None
    evaluation: Strings = ()
    evaluation_text: Strings = ()
    held_out: Share = 0.02
    exclude: Strings = ()

    @model_validator(mode="after")
    def _one_setting_a_source(self) -> Self:
        if len(self.text) not in (1, len(self.train)):
            raise ValueError(
                f"data.text has {len(self.text)} entries; it needs one, or one for each of the "
                f"{len(self.train)} of data.train"
            )
        if len(self.evaluation_text) not in (0, 1, len(self.evaluation)):
            raise ValueError(
                f"data.evaluation_text has {len(self.evaluation_text)} entries; it needs one, or "
                f"one for each of the {len(self.evaluation)} of data.evaluation"
            )
        if self.weights is not None and len(self.weights) != len(self.train):
            raise ValueError(
                f"data.weights has {len(self.weights)} entries; it needs one for each of the "
                f"{len(self.train)} of data.train"
            )
        return self

    def text_of(self, source: int) -> str:
        """Return the column or template of one source."""
        return self.text[source if len(self.text) > 1 else 0]

    def text_of_evaluation(self, part: int = 0) -> str:
        """Return the column or template of one entry of ``evaluation``."""
        texts = self.evaluation_text or self.text[:1]
        return texts[part if len(texts) > 1 else 0]


class TokenizerSection(Section):
    """The tokenizer, trained on the corpus.

    Attributes
    ----------
    kind : {"bpe", "wordpiece"}
        Byte-level BPE, or WordPiece as BERT uses it.
    vocabulary : int
        Tokens, special ones included.
    path : str, optional
        Folder of a tokenizer to take instead.
    sample_mb : int
        Megabytes of text, in the order of the files, that it is trained on.
    """

    kind: Literal["bpe", "wordpiece"] = "bpe"
    vocabulary: Annotated[int, Field(ge=300, le=2**20)] = 2048
    path: str | None = None
    sample_mb: PositiveInt = 64


class NetworkSection(Section):
    """The Transformer.

    Attributes
    ----------
    architecture : {"llama", "bert", "t5"}
        Decoder, encoder, or encoder-decoder.
    size : str
        A named shape; see ``SHAPES`` in ``architectures.py``.
    layers : int, optional
        Instead of the named shape's.
    width : int, optional
        Of a token's state, instead of the named shape's.
    inner : int, optional
        Width inside a feed-forward layer, instead of the named shape's.
    heads : int, optional
        Attention heads, instead of the named shape's.
    key_value_heads : int, optional
        Heads of keys and values, which several query heads may share.
    tie_embeddings : bool
        Whether input and output embeddings are one matrix.
    start : str, optional
        Checkpoint folder to continue from; its shape and tokenizer are kept.
    """

    architecture: Architecture = "llama"
    size: Literal["1m", "10m", "100m", "300m", "1b", "3b", "7b"] = "1m"
    layers: PositiveInt | None = None
    width: PositiveInt | None = None
    inner: PositiveInt | None = None
    heads: PositiveInt | None = None
    key_value_heads: PositiveInt | None = None
    tie_embeddings: bool = True
    start: str | None = None


class OptimizationSection(Section):
    """How long and how the model is trained.

    Attributes
    ----------
    tokens : int
        Length of the run.
    sequence_length : int
        Tokens of one row.
    batch_rows : int
        Rows of one optimiser step, over all processes.
    microbatch_rows : int, optional
        Rows worked on at once by one process; bounds memory.
    optimizer : {"muon", "adamw"}
        Muon takes the hidden matrices (Jordan et al. 2024), AdamW the rest or all.
    learning_rate : float
        Peak of the schedule. Muon's step is scaled to the size of AdamW's (Liu et al.
        2025), so that one number serves both.
    warmup : float
        Share of the steps over which the rate rises from zero.
    final_learning_rate : float
        Share of the peak at which the cosine ends.
    weight_decay : float
        Decoupled; matrices only.
    clipping_norm : float
        Bound on the L2 norm of the whole gradient.
    precision : {"bf16", "fp32"}
        Arithmetic of matrix products; parameters stay in fp32.
    compile : bool
        ``torch.compile``; pays off in runs of many minutes.
    sharded : bool
        Divide parameters, gradients and optimiser states between several processes (FSDP2)
        instead of holding them whole in each (DDP); for models that do not fit. Not
        together with ``compile``.
    threads : int, optional
        CPU threads of one process; all cores when left out.
    """

    tokens: PositiveInt = 2_000_000
    sequence_length: Annotated[int, Field(ge=8)] = 128
    batch_rows: PositiveInt = 32
    microbatch_rows: PositiveInt | None = None
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: PositiveFloat = 3e-3
    warmup: Share = 0.05
    final_learning_rate: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    clipping_norm: PositiveFloat = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False
    sharded: bool = False
    threads: PositiveInt | None = None

    @model_validator(mode="after")
    def _compiled_or_sharded(self) -> Self:
        if self.compile and self.sharded:
            raise ValueError("training.compile and training.sharded cannot both be true")
        if self.steps > _MOST_STEPS:
            raise ValueError(
                f"training.tokens = {self.tokens} are {self.steps} steps, more than "
                f"{_MOST_STEPS:,} steps"
            )
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return max(1, self.tokens // (self.batch_rows * self.sequence_length))


class ReportSection(Section):
    """What is written on the way.

    Attributes
    ----------
    log_every : int
        Optimiser steps between two lines of ``metrics.jsonl``.
    evaluate_every : int
        Optimiser steps between two evaluations on held-out text.
    checkpoint_every : int
        Optimiser steps between two checkpoints.
    evaluation_tokens : int
        Held-out text beyond this many tokens is not used; shared out evenly between the
        entries of ``data.evaluation``.
    prompts : str or list of str
        Beginnings that the model continues at each evaluation (causal).
    sample_tokens : int
        Most tokens of one continuation.
    """

    log_every: PositiveInt = 10
    evaluate_every: PositiveInt = 200
    checkpoint_every: PositiveInt = 200
    evaluation_tokens: PositiveInt = 100_000
    prompts: Strings = ()
    sample_tokens: PositiveInt = 40


class PretrainConfig(Section):
    """Everything one pretraining run asks for; see `load_pretrain_config`.

    Attributes
    ----------
    name : str
        What people call the run; its folder is ``runs/<name>``.
    objective : {"causal", "masked", "span"}
        What is learned: the next token (llama), hidden tokens (bert), or removed spans (t5).
    seed : int
        Of the model's start, the order of the data, masks and dropout.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    objective: Objective = "causal"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: CorpusSection
    tokenizer: TokenizerSection = TokenizerSection()
    model: NetworkSection = NetworkSection()
    training: OptimizationSection = OptimizationSection()
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _objective_fits_architecture(self) -> Self:
        fitting = {"llama": "causal", "bert": "masked", "t5": "span"}[self.model.architecture]
        if self.objective != fitting:
            raise ValueError(
                f"model.architecture = '{self.model.architecture}' is trained with "
                f"objective = '{fitting}'"
            )
        if not self.model.tie_embeddings and self.model.architecture == "t5":
            raise ValueError("model.architecture = 't5' needs model.tie_embeddings = true")
        if self.tokenizer.kind == "wordpiece" and self.model.architecture != "bert":
            raise ValueError("tokenizer.kind = 'wordpiece' needs model.architecture = 'bert'")
        if self.report.prompts and self.objective != "causal":
            raise ValueError("report.prompts needs objective = 'causal'")
        return self


_LOCATIONS = (
    ("data", "train"),
    ("data", "evaluation"),
    ("data", "exclude"),
    ("tokenizer", "path"),
    ("model", "start"),
)


def _with_absolute_locations(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for section, key in _LOCATIONS:
        table = result.get(section)
        if not isinstance(table, dict):
            continue
        value, name = table.get(key), f"{section}.{key}"
        if isinstance(value, str):
            table[key] = resolve_location(value, folder, name)
        elif isinstance(value, list):
            table[key] = [
                resolve_location(v, folder, name) if isinstance(v, str) else v for v in value
            ]
    return result


def load_pretrain_config(path: Path, overrides: list[str] | None = None) -> PretrainConfig:
    """Read a pretraining configuration; relative paths count from its folder.

    Raises
    ------
    ConfigError
        If the file or an override is wrong; names each key, the reason and the nearest
        valid key.
    """
    values = apply_overrides(read_toml(path), overrides or [])
    return parse(PretrainConfig, _with_absolute_locations(values, path.parent), str(path))
