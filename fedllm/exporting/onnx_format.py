"""A graph of ONNX with the head in it, for machines without torch; run before it stands."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedllm.errors import ConfigError, TrainingError
from fedllm.exporting.kinds import TrainedHead, kind_of
from fedllm.exporting.merged import copy_beside, merged_base
from fedllm.exporting.onnx_script import onnx_script
from fedllm.exporting.probe import Probe, difference, make_probe
from fedllm.exporting.released import Released, quantized_notes
from fedllm.exporting.written import Settings, Written
from fedllm.extras import remedy_of
from fedllm.files import write_json
from fedllm.models import checkpoints

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
LABELS = "labels.json"
# Of these tests make graphs.
KINDS = ("bert", "gemma3_text", "llama", "modernbert", "qwen2", "roberta")
MOST = 1e-3
_OPSET = 18
# A file of protobuf holds two gigabytes at most.
_MOST_INSIDE_BYTES = 3 << 29
_INPUTS = ("input_ids", "attention_mask")


def write_onnx(released: Released, folder: Path, settings: Settings) -> Written:
    """Write a graph from token ids and their mask to logits into an empty folder.

    Both have any number of rows and of tokens. Logits are those of the run: of a text's labels
    (B, C), of each token's tags (B, T, C), or of the token that follows each (B, T, V).

    Raises
    ------
    ConfigError
        If the architecture has no graph that was tried, or a package is missing.
    TrainingError
        If onnxruntime's logits are off by `MOST` or more.
    """
    require_kind(released, KINDS, "onnx")
    _require_packages()
    kind = kind_of(released.model)
    # Of another shape than what the graph is made with.
    probe = make_probe(released, rows=5, seed=1)
    with torch.no_grad():
        graph = _Graph(merged_base(released), kind.head).eval()
        _write(graph, make_probe(released, rows=2), folder)
    released.model.tokenizer.save_pretrained(folder)
    copy_beside(released.base, folder, tokenizer=False)
    if kind.head is not None:
        write_json(folder / LABELS, {"labels": list(released.model.labels)})
    largest = difference(
        _selected(kind.head, _run(folder, settings.probe), settings.probe), settings.wanted
    )
    for tried in (probe, _first(probe)):
        with torch.no_grad():
            wanted = graph(*tried.inputs.values())
        found, wanted = (_selected(kind.head, x, tried) for x in (_run(folder, tried), wanted))
        largest = max(largest, difference(found, wanted))
    if not largest < MOST:
        raise TrainingError(
            f"onnxruntime answers otherwise than the run's own model: logits differ by up to "
            f"{largest:.3g}, and {MOST:g} is the limit",
            "take --format merged, which needs no graph",
        )
    return Written(
        library="onnx",
        what="A graph of ONNX with the head in it, weights in float32.",
        largest=largest,
        script=onnx_script(released.model, released.run.config),
        notes=quantized_notes(released),
    )


def require_kind(released: Released, kinds: tuple[str, ...], form: str) -> None:
    """Refuse an architecture that a format has no form for.

    Raises
    ------
    ConfigError
        Names those that it has.
    """
    kind = str(released.model.shape["architecture"])
    if kind not in kinds:
        raise ConfigError(
            f"--format {form} does not know base models of type {kind!r}: it knows "
            f"{', '.join(kinds)}",
            "take --format merged, which all architectures have",
        )


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--format onnx needs the package {error.name}", remedy_of("onnx")
        ) from None


class _Graph(nn.Module):
    """What becomes a graph: a plain base, and the head that was trained."""

    def __init__(self, base: Any, head: TrainedHead | None) -> None:
        super().__init__()
        self.base = base
        self.head = None if head is None else head.module

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits, float32."""
        found = self.base(input_ids=ids, attention_mask=mask)
        if self.head is None:
            return found.logits
        return self.head(found.last_hidden_state, mask)


def _write(graph: nn.Module, probe: Probe, folder: Path) -> None:
    import onnx

    axes = {0: "batch", 1: "length"}
    outputs = {0: "batch"} | ({} if probe_is_pooled(graph, probe) else {1: "length"})
    large = sum(p.numel() for p in graph.parameters()) * 4 > _MOST_INSIDE_BYTES
    with tempfile.TemporaryDirectory(dir=folder) as made, warnings.catch_warnings():
        # Of tracing, whose result is run and compared.
        warnings.simplefilter("ignore")
        with checkpoints.quietly():
            torch.onnx.export(
                graph,
                tuple(probe.inputs.values()),
                Path(made) / GRAPH,
                input_names=list(_INPUTS),
                output_names=["logits"],
                dynamic_axes={**dict.fromkeys(_INPUTS, axes), "logits": outputs},
                opset_version=_OPSET,
                # The other exporter takes ten times as long, and more packages.
                dynamo=False,
            )
        if not large:
            (Path(made) / GRAPH).replace(folder / GRAPH)
            return
        onnx.save_model(
            onnx.load(Path(made) / GRAPH),
            folder / GRAPH,
            save_as_external_data=True,
            location=WEIGHTS,
        )


def probe_is_pooled(graph: nn.Module, probe: Probe) -> bool:
    """Tell whether a graph gives one row a text."""
    return bool(graph(*probe.inputs.values()).dim() == 2)


def _run(folder: Path, probe: Probe) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        folder / GRAPH, options, providers=["CPUExecutionProvider"]
    )
    given = {name: values.numpy() for name, values in probe.inputs.items()}
    return torch.from_numpy(session.run(None, given)[0])


def _first(probe: Probe) -> Probe:
    """Return the first sequence alone, without padding."""
    length = int(probe.mask[0].sum())
    return Probe(probe.ids[:1, :length], probe.mask[:1, :length], probe.starts[:1])


def _selected(head: TrainedHead | None, logits: Tensor, probe: Probe) -> Tensor:
    """Return logits as `answers` orders them."""
    if head is None:
        return logits[:, :-1][probe.mask[:, 1:].bool()].float()
    return logits[probe.mask.bool()] if head.of_tokens else logits
