"""The shared model of a run, and the adapters that are trained on it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fedllm.config.section import PositiveFloat, PositiveInt, Section

# How adapters are trained; "head" is no method of the file, but what rank 0 leaves.
AdapterKind = Literal[
    "lora", "ffa", "ffa_orthonormal", "eva", "rolora", "fedsvd", "core", "bitfit", "layers"
]
# How the frozen base model's linear layers are held.
Quantization = Literal["none", "int8", "int4"]
Precision = Literal["float32", "bfloat16"]
# They train tensors of the base model itself.
OWN_TENSORS: tuple[AdapterKind, ...] = ("bitfit", "layers")
# A and B are of rank-one blocks that hang on nothing else.
_OF_BLOCKS = ("lora", "ffa", "ffa_orthonormal")
_NOT_LINEAR = ("flora", "fedex")


def _one_of_a_blind_sum(value: object) -> object:
    if isinstance(value, str) and value.lower().removesuffix("-lora") in _NOT_LINEAR:
        raise ValueError(
            "stacking and residual methods need every site's own A and B, for their product is not "
            "linear in what a site sends, and all that is ever opened is the sum over sites; take "
            "'ffa', 'ffa_orthonormal', 'eva', 'rolora', 'fedsvd' or 'core', or 'lora' with "
            "training.local_steps = 1"
        )
    return value


class ModelSection(Section):
    """The shared Transformer that was pretrained centrally.

    Attributes
    ----------
    path : str
        Folder of a Hugging Face checkpoint; ``package:NAME/FOLDER`` for one that an installed
        Python package carries; or a pretraining configuration (``.toml``), whose model is
        made first if it is not there.
    start : str, optional
        A finished run's folder, or its adapter's: this run goes on from there instead of an
        untrained adapter. The base model and the shape of the adapter must be the same; a
        classification head is taken over where task, labels and features are. Read by the
        coordinator alone.
    max_length : int
        Tokens kept of one record.
    pooling : {"mean", "cls"}
        How an encoder's token states become one vector (classification).
    feature_scale : float
        Length of the normalised vector that the head sees (pooled, or of each token), at most
        1000; 0 leaves it as it is.
    feature_center : {"zero", "label_names"}
        What is taken off that vector first: nothing, or the mean vector of the labels' own
        names, which are public. Under noise it pays not to spend the clipping norm on what
        all texts have in common.
    head_start : {"zero", "label_names"}
        Where a classification head starts: at zero, or at the features of the labels' own
        names, which are public and cost no privacy.
    precision : {"float32", "bfloat16"}
        In what the frozen base model computes; adapters and heads are always float32.
    quantization : {"none", "int8", "int4"}
        How the frozen base model's linear layers are held: as they are, or rounded to integers
        of 8 or 4 bits, which takes about a half or a third of bfloat16's memory for them and some
        of the model's quality. Not for methods that train the base itself. See docs/models.md.
    """

    path: str
    start: str | None = None
    max_length: PositiveInt = 128
    pooling: Literal["mean", "cls"] = "mean"
    feature_scale: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 10.0
    feature_center: Literal["zero", "label_names"] = "zero"
    head_start: Literal["zero", "label_names"] = "zero"
    precision: Precision = "float32"
    quantization: Quantization = "none"

    @model_validator(mode="after")
    def _centred_features_have_a_length(self) -> Self:
        if self.feature_center != "zero" and self.feature_scale == 0:
            raise ValueError("feature_center needs a feature_scale above 0")
        return self


class LoraSection(Section):
    """LoRA adapters (Hu et al. 2021).

    Attributes
    ----------
    rank : int
        Inner width; 0 trains the classification head alone.
    alpha : float
        The adapter's output is scaled by ``alpha / rank``.
    target_modules : "auto" or list of str
        Names of the linear layers that get an adapter; "auto" takes query and value.
    last_layers : int, optional
        Adapt only this many layers, counted from the output; all when left out.
    method : {"lora", "ffa", "ffa_orthonormal", "eva", "rolora", "fedsvd", "core", ...}
        What of an adapter is trained and sent, see docs/adapters.md. "lora": A and B. "ffa": B
        alone, A stays at its random start (FFA-LoRA, Sun et al. 2024), so that averaged updates
        are exactly the averaged product. "ffa_orthonormal": the same with orthogonal rows of
        A. "eva": B alone, and the rows of A are the directions of the layer's inputs on
        ``public_texts`` (EVA, Paischer et al. 2024). "rolora": B in odd rounds, A in even ones
        (Chen et al. 2024). "fedsvd": B, and the coordinator makes A's rows the right singular
        vectors of the product after each round (Lee et al. 2025). "core": a matrix of rank by rank
        between B and A, which stay at singular vectors of the base's own weights (LoRA-XS, Balazy
        et al. 2024), or, with ``public_texts``, at a basis in which gradients of such texts have
        one size. "bitfit": biases and norms of the base itself (Ben Zaken et al. 2022).
        "layers": the last layers whole, as many as ``last_layers`` says. Rank and alpha have no
        meaning for these two.
    public_texts : str, optional
        For "eva" and "core": public texts like those that will be trained on; a file with a column
        ``text`` (``.jsonl``, ``.csv``, ``.parquet``) or of one text a line. Read by the coordinator
        alone.
    freeze_a : bool
        The older way to ask for "ffa".
    ranks : list of [units, rank]
        Unequal ranks: from so many records or persons on, a site trains an adapter of that rank,
        such as ``[[0, 4], [500, 8], [2000, 16]]``; the last is ``rank``. All train in one common
        basis. Left out, every site has ``rank``.
    """

    rank: Annotated[int, Field(ge=0)] = 8
    alpha: PositiveFloat = 16.0
    target_modules: Literal["auto"] | tuple[str, ...] = "auto"
    last_layers: PositiveInt | None = None
    method: Annotated[AdapterKind, BeforeValidator(_one_of_a_blind_sum)] = "lora"
    public_texts: str | None = None
    freeze_a: bool = False
    ranks: tuple[tuple[Annotated[int, Field(ge=0)], PositiveInt], ...] = ()

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.freeze_a and self.method not in ("lora", "ffa"):
            raise ValueError(
                f"freeze_a means method = 'ffa', and not {self.method!r}: leave freeze_a out"
            )
        if self.public_texts is not None and self.method not in ("eva", "core"):
            raise ValueError(
                "public_texts decides where methods 'eva' and 'core' begin, and method = "
                f"{self.method!r} reads none: leave it out"
            )
        if self.rank == 0 and self.method != "lora":
            raise ValueError(
                f"rank = 0 trains the head alone, and method = {self.method!r} adapts layers: set "
                "rank, or leave method out"
            )
        self._ranks_rise()
        if self.trains_base and self.target_modules != "auto":
            raise ValueError(
                f"target_modules names layers that get an adapter, and method = {self.method!r} "
                "gives them none: leave it out"
            )
        if self.method == "layers" and self.last_layers is None:
            raise ValueError(
                "method = 'layers' trains whole layers: set last_layers to how many, such as 1"
            )
        return self

    def _ranks_rise(self) -> None:
        if not self.ranks:
            return
        if self.kind not in _OF_BLOCKS:
            raise ValueError(
                f"ranks: adapters by method = {self.kind!r} have no blocks that a site could leave "
                "out; take 'lora', 'ffa' or 'ffa_orthonormal'"
            )
        sizes, ranks = [size for size, _ in self.ranks], [rank for _, rank in self.ranks]
        if sizes != sorted(set(sizes)) or ranks != sorted(set(ranks)) or sizes[0] != 0:
            raise ValueError(
                "ranks: sizes and ranks must rise, and the first size be 0, as in "
                "[[0, 4], [500, 8], [2000, 16]]"
            )
        if ranks[-1] != self.rank:
            raise ValueError(f"ranks: the last one is {ranks[-1]}, and rank is {self.rank}")

    def rank_of(self, units: int) -> int:
        """Return the rank at a site that announced so many records or persons."""
        return max([rank for size, rank in self.ranks if size <= units], default=self.rank)

    @property
    def trains_base(self) -> bool:
        """Whether tensors of the base model itself are trained, and no adapter beside them."""
        return self.method in OWN_TENSORS

    @property
    def kind(self) -> AdapterKind:
        """The method, by whichever key it was asked for."""
        return "ffa" if self.freeze_a else self.method
