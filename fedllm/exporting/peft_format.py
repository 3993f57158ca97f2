"""An adapter as peft loads it onto its base, without fedllm.

Where transformers' own head computes what the run's head does, it is saved as that head, and
``AutoPeftModelForTokenClassification`` or ``AutoPeftModelForSequenceClassification`` loads both.
No head of transformers pools a text's states by their mean or gives vectors a length, which is
what runs train by default: then adapter and head lie side by side, and a script of the export's
own puts them together.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save as format_safetensors

from fedllm.errors import ConfigError
from fedllm.exporting.kinds import Kind, TrainedHead, kind_of
from fedllm.exporting.probe import REMEDY, Probe, head_answers, language_answers, require_same
from fedllm.exporting.released import Released, quantized_notes
from fedllm.exporting.script_base import weights_digest
from fedllm.exporting.scripts import Use
from fedllm.exporting.standard_head import StandardHead, standard_head
from fedllm.exporting.tanh_head import tanh_head
from fedllm.exporting.written import Settings, Written
from fedllm.files import write_bytes, write_json
from fedllm.models import checkpoints, saved
from fedllm.models.contents import read_object
from fedllm.models.core import folded

if TYPE_CHECKING:
    from peft import PeftModel

LABELS = "labels.json"
_AUTO_PEFT = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}
# Both compute in float32, on the same weights, in another order at most.
_MOST = 1e-3


def write_peft(released: Released, folder: Path, settings: Settings) -> Written:
    """Write an adapter, and its head, into an empty folder.

    Raises
    ------
    ConfigError
        If the run trained tensors of the base itself.
    TrainingError
        If what was written answers otherwise than the run's own model.
    """
    model = released.model
    if model.own_tensors:
        raise ConfigError(
            f"lora.method = {model.method!r} trained tensors of the base model itself, for which "
            "peft has no format",
            "take --format merged: a whole checkpoint with these tensors in it",
        )
    kind = kind_of(model)
    standard = None
    if model.peft is not None:
        standard = standard_head(released) or tanh_head(released)
    if standard is None:
        model.save_adapter(folder / "adapter", released.repository)
        for path in (folder / "adapter").iterdir():
            # What takes a core apart again is for runs that go on from it.
            if path.name != saved.CORE:
                path.replace(folder / path.name)
            else:
                path.unlink()
        (folder / "adapter").rmdir()
    else:
        _write_standard(released, standard, folder)
    model.tokenizer.save_pretrained(folder)
    use = Use(
        kind.auto if standard is None else standard.auto,
        adapter=model.peft is not None,
        plain_head=kind.head is not None and standard is None,
        about=saved.ABOUT if standard is None else LABELS,
        dtype=released.run.config.model.precision,
        weights=weights_digest(released.base),
    )
    found = _read_back(released, kind, standard, folder, settings.probe)
    largest = require_same("the exported adapter", found, settings.wanted, _MOST, REMEDY)
    return Written(
        library="transformers" if model.peft is None else "peft",
        what=_what(released, standard),
        largest=largest,
        use=use,
        notes=_notes(released, standard),
    )


def _what(released: Released, standard: StandardHead | None) -> str:
    if released.model.peft is None:
        return "The head that a run trained, for the last states of its base model."
    if standard is not None:
        loads = f"AutoPeftModelFor{standard.auto.removeprefix('AutoModelFor')}"
        return f"An adapter and its head, in peft's format ({loads})."
    config = saved.lora_config(released.model, None)["task_type"]
    loads = _AUTO_PEFT[str(config)]
    alone = kind_of(released.model).head is None
    more = "" if alone else " and, beside it, the head that the run trained"
    return f"An adapter in peft's format ({loads}){more}."


def _notes(released: Released, standard: StandardHead | None) -> tuple[str, ...]:
    notes = [standard.note] if standard is not None and standard.note else []
    if released.model.peft is not None:
        notes.append(
            "peft's own class finds the base model by the name in adapter_config.json: a "
            "repository that is in the hub's cache, or a folder, or a link to one, of that name "
            "where it is called."
        )
    return (*notes, *quantized_notes(released))


def _write_standard(released: Released, standard: StandardHead, folder: Path) -> None:
    """Write adapter and head under the names that they have in transformers' class."""
    from peft import get_peft_model_state_dict

    model = released.model
    settings = saved.lora_config(model, released.repository)
    settings["target_modules"] = [standard.inside(n) for n in settings["target_modules"]]
    settings |= {"task_type": standard.task_type, "modules_to_save": list(standard.modules)}
    start = "base_model.model."
    tensors = {
        start + standard.inside(name.removeprefix(start)): values.detach()
        for name, values in folded(get_peft_model_state_dict(cast("PeftModel", model.peft))).items()
    }
    for name, values in standard.tensors.items():
        tensors[start + name] = values
    plain = {name: values.contiguous() for name, values in sorted(tensors.items())}
    write_bytes(folder / saved.LORA, format_safetensors(plain, {"format": "pt"}))
    write_json(folder / saved.LORA_CONFIG, settings)
    write_json(folder / LABELS, {"labels": list(model.labels)})


def _read_back(
    released: Released, kind: Kind, standard: StandardHead | None, folder: Path, probe: Probe
) -> torch.Tensor:
    """Load what was written as anybody would, and return its answers."""
    import transformers

    auto: Any = getattr(transformers, kind.auto if standard is None else standard.auto)
    more = {} if standard is None else {"num_labels": standard.outputs}
    with checkpoints.quietly():
        model = auto.from_pretrained(
            released.base, dtype=torch.float32, local_files_only=True, **more
        )
        if released.model.peft is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(folder))
    model.eval()
    if standard is not None:
        with torch.no_grad():
            logits = model(**probe.inputs).logits.float()
        return logits[probe.mask.bool()] if standard.of_tokens else logits
    if kind.head is None:
        return language_answers(released, model, probe)
    return head_answers(model, written_head(folder, saved.ABOUT), probe)


def written_head(folder: Path, about: str) -> TrainedHead:
    """Read a head as it lies in a folder."""
    tensors = saved.read_any_tensors(folder / saved.HEAD)
    if (folder / saved.CENTER).exists():
        tensors |= saved.read_any_tensors(folder / saved.CENTER)
    told = read_object(folder / about)
    return TrainedHead(tensors, told.get("pooling", "none"), told["feature_scale"])
