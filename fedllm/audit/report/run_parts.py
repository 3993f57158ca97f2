"""What a run recorded, put into words and tables for its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import inf
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

from fedllm.audit.report.numbers import (
    MOST_VALUES,
    bound,
    factor,
    is_number,
    number,
    percent,
)
from fedllm.audit.report.plots import epsilon_plot, metric_plot
from fedllm.audit.report.quality import quality_parts, site_parts
from fedllm.errors import RefusedError
from fedllm.identity.titles import shown as shown_name
from fedllm.mechanisms import Wording, mechanism_of, planned_cost
from fedllm.runs.lineage import Ancestor, ancestors, may_have_trained, names, spent_together
from fedllm.runs.record import RunFolder
from fedllm.tasks import task_of

_MOST_SITES = 40
# Names of folders that say nothing by themselves.
_ANY_MODEL = {"model", "models", "base", "checkpoint", "snapshot", "final"}


def model_name(location: str) -> str:
    """Return the end of a model's location that names it, without the folders above."""
    parts = PurePath(location.removeprefix("package:")).parts[-2:]
    telling = parts if parts and parts[-1].lower() in _ANY_MODEL else parts[-1:]
    return "/".join(part for part in telling if part.strip("/")) or location


class RunParts:
    """The parts that the run itself recorded, each as plain values ready for the template."""

    def __init__(self, run: RunFolder, texts: Mapping[str, Any]) -> None:
        self._run = run
        self._config = run.config
        self._summary = run.summary
        self._texts = texts

    def parts(self) -> dict[str, Any]:
        """Return every part by the name that the template has for it."""
        return {
            "title": self._texts["page"]["title"].format(run=self._config.name),
            "private": self._config.private,
            "verdict": self._verdict(),
            "cards": list(self._cards()),
            "what": self._what(),
            "who": self._who(),
            "protected": list(self.protected()),
            "progress": self._progress(),
            "epsilon_plot": self._epsilon_plot(),
            "limits": list(self._limits()),
        }

    @property
    def _epsilon(self) -> dict[str, float]:
        return self._run.epsilon

    @property
    def _largest_epsilon(self) -> float | None:
        claimed = self._run.claimed_epsilon
        values = [*self._epsilon.values(), *([] if claimed is None else [claimed])]
        return max(values, default=None)

    def _bound(self, value: float | None) -> str:
        return str(self._texts["promise"]["unlimited"]) if value == inf else bound(value)

    @property
    def _words(self) -> Wording:
        return mechanism_of(self._config).wording

    @property
    def _measures(self) -> tuple[str, ...]:
        return task_of(self._config).measures

    @property
    def _unit(self) -> str:
        return str(self._texts["unit"][self._config.unit])

    def _verdict(self) -> str:
        texts = self._texts["verdict"]
        if not self._config.private:
            return str(texts["not_private"])
        return str(
            texts["unbounded" if self._largest_epsilon == inf else "private"].format(
                unit=self._unit,
                epsilon=bound(self._largest_epsilon),
                delta=number(self._config.privacy.delta),
            )
        )

    def _cards(self) -> Iterator[tuple[str, str]]:
        texts = self._texts["cards"]
        yield str(self._site_count), texts["sites"]
        yield str(self._finished_rounds), texts["rounds"]
        first, last = self._run.first_metrics, self._run.last_metrics
        for name in [n for n in self._measures if n in last][:1]:
            key = "metric" if name in first else "metric_alone"
            yield (
                number(last[name]),
                texts[key].format(name=name, before=number(first.get(name))),
            )
        if self._config.private:
            ceiling = number(self._config.privacy.epsilon)
            yield self._bound(self._largest_epsilon), texts["epsilon"].format(ceiling=ceiling)
        else:
            yield texts["none"], texts["no_epsilon"]
        scheme = self._config.encryption.scheme
        yield (texts["none"] if scheme == "none" else scheme.upper()), texts["encryption"]
        total = self._run.section("seconds").get("total")
        if is_number(total):
            yield number(total), texts["seconds"]

    @property
    def _site_count(self) -> int:
        sites = self._summary.get("sites")
        if isinstance(sites, list | dict):
            return len(sites)
        return sites if isinstance(sites, int) else len(self._run.sites)

    @property
    def _finished_rounds(self) -> int:
        return self._run.rounds[-1].number

    def _what(self) -> SimpleNamespace:
        texts, config = self._texts["what"], self._config
        model = self._run.section("model")
        task = self._texts["task"][config.task]
        adapter = model.get("sent_parameters", model.get("adapter_parameters"))
        rows = [(texts["task"], task), (texts["model"], self._model_text())]
        rows += [
            (texts[key], number(model[key]))
            for key in ("parameters", "adapter_parameters", "sent_parameters")
            if key in model
        ]
        if started := self._run.section("started_from"):
            runs = names(ancestors(started), texts["started_unknown"])
            rows.append((texts["started_from"], runs))
        rows += [
            (texts["sites"], str(self._site_count)),
            (texts["rounds"], f"{self._finished_rounds} / {config.rounds.count}"),
            (texts["local_steps"], str(config.training.local_steps)),
        ]
        if config.private:
            # Sites are in every round, whatever part of their records a step takes.
            if config.training.sampling_rate is not None and self._words.sampled:
                rate = number(config.training.sampling_rate)
                rows.append((texts["records"].format(unit=self._unit), rate))
            norm = number(config.privacy.clipping_norm)
            rows.append((self._clipping_text(), norm))
        text = texts["simulated" if self._run.simulated else "text"]
        return SimpleNamespace(text=text.format(task=task, adapter=number(adapter)), rows=rows)

    def _model_text(self) -> str:
        """Name the base model, its kind and the start of its fingerprint."""
        texts, model = self._texts["what"], self._run.section("model")
        text = model_name(str(model.get("path") or self._config.model.path))
        if "architecture" in model:
            shape = {key: number(model.get(key)) for key in ("layers", "hidden_size")}
            text += "; " + texts["architecture"].format(kind=model["architecture"], **shape)
        if "fingerprint" in model:
            text += "; " + texts["fingerprint"].format(start=str(model["fingerprint"])[:16])
        if model.get("quantization", "none") != "none":
            text += "; " + texts["quantized"].format(held=model["quantization"])
        return text

    def _clipping_text(self) -> str:
        return str(self._texts["what"][self._words.clipping].format(unit=self._unit))

    def _who(self) -> SimpleNamespace:
        texts = self._texts["who"]
        trained = [line for line in self._run.rounds if line.number > 0]
        recorded = self._summary.get("site_names")
        named = map(str, recorded) if isinstance(recorded, list) else ()
        names = sorted({*self._run.sites, *self._epsilon, *named})
        names.sort(key=lambda name: -self._epsilon.get(name, 0.0))
        ceiling = self._config.privacy.epsilon
        rows = []
        for name in names[:_MOST_SITES]:
            spent = self._epsilon.get(name)
            left = None if spent is None or ceiling is None else max(0.0, ceiling - spent)
            part = sum(name not in line.dropped for line in trained)
            rows.append(
                SimpleNamespace(
                    name=name,
                    title=self._run.titles.get(name, ""),
                    shown=shown_name(name, self._run.titles),
                    rounds=f"{part} / {len(trained)}",
                    epsilon=self._bound(spent),
                    left=number(left),
                )
            )
        notes = []
        if len(names) > _MOST_SITES:
            most = self._bound(self._epsilon.get(names[_MOST_SITES]))
            notes.append(texts["more"].format(count=len(names) - _MOST_SITES, epsilon=most))
        if not names:
            notes.append(texts["unnamed"].format(count=self._site_count))
        incomplete = [str(line.number) for line in trained if line.dropped]
        if incomplete:
            shown = ", ".join(incomplete[:MOST_VALUES])
            notes.append(texts["dropped"].format(rounds=shown))
        return SimpleNamespace(sites=rows, notes=notes)

    def protected(self) -> Iterator[str]:
        """Yield what protected the records, and what did not, in sentences."""
        texts, config = self._texts["protected"], self._config
        if self._run.simulated:
            yield texts["simulated"]
        if config.private and self._largest_epsilon is not None and self._largest_epsilon < inf:
            yield texts["dp"].format(
                unit=self._unit,
                epsilon=bound(self._largest_epsilon),
                factor=factor(self._largest_epsilon),
                delta=number(config.privacy.delta),
            )
            yield texts[f"dp_unit_{config.unit}"]
            yield texts[f"noise_{self._words.noise}"].format(sharing=self._sharing())
            yield from self._colluding()
            yield texts["ledger"]
            yield from self._started()
        elif self._largest_epsilon == inf:
            yield self._verdict()
        elif not config.private:
            yield texts["no_dp"]
        if config.encryption.scheme == "none":
            yield texts["not_encrypted"]
        else:
            yield texts["encrypted"].format(scheme=config.encryption.scheme.upper())
            yield texts["masked" if config.encryption.masked else "not_masked"]
        if config.private and not config.encryption.masked:
            # Shared noise without masks is refused.
            yield texts["single_updates"]

    def _started(self) -> Iterator[str]:
        """Say what a record that took part in the runs before this one has spent."""
        texts, earlier = self._texts["protected"], self._earlier
        if not earlier:
            return
        spent = spent_together(earlier, self._config.unit)
        if spent is None:
            yield texts["started_unbounded"]
        elif len(earlier) == 1:
            yield texts["started"].format(epsilon=bound(spent))
        else:
            runs = names(earlier, self._texts["what"]["started_unknown"])
            yield texts["started_chain"].format(count=len(earlier), runs=runs, epsilon=bound(spent))

    @property
    def _earlier(self) -> tuple[Ancestor, ...]:
        return ancestors(self._run.section("started_from"))

    def _seen_before(self) -> Iterator[str]:
        """Say that records on which sites measured may have been trained on in earlier runs."""
        if not self._run.section("site_metrics"):
            return
        if seen := may_have_trained(self._earlier, self._config, self._run.simulated):
            runs = names(seen, self._texts["what"]["started_unknown"])
            yield self._texts["limits"]["seen_before"].format(runs=runs)

    def _colluding(self) -> Iterator[str]:
        """Say what everyone else together could learn: as spent, or in a deployment as planned."""
        texts = self._texts["protected"]
        if self._words.noise != "distributed":
            return
        spent = self._run.section("privacy").get("colluders_epsilon")
        if isinstance(spent, int | float):
            yield texts["colluding"].format(epsilon=bound(spent))
        elif not self._run.simulated:
            # The sites' ledgers stay with them. Sampling rate and noise are public here.
            with suppress(RefusedError):
                planned = planned_cost(self._config, self._config.training.batch_size)
                if planned.colluders_epsilon is not None:
                    epsilon = bound(planned.colluders_epsilon)
                    yield texts["colluding_planned"].format(epsilon=epsilon)

    def _sharing(self) -> str:
        """Say how many sites may give their shares of the noise away."""
        count = self._config.privacy.colluders
        key = {0: "sharing_0", 1: "sharing_1"}.get(count, "sharing_more")
        return str(self._texts["protected"][key].format(colluders=count))

    def _progress(self) -> SimpleNamespace:
        texts = self._texts["progress"]
        first, last = self._run.first_metrics, self._run.last_metrics
        rows = [(name, number(first.get(name)), number(value)) for name, value in last.items()]
        plots = []
        for name in self._measures:
            points = [(r.number, r.metrics[name]) for r in self._run.rounds if name in r.metrics]
            if len(points) > 1:
                description = texts["plot"].format(
                    name=name, first=number(points[0][1]), last=number(points[-1][1])
                )
                plots.append(metric_plot(name, points, texts["round"], description))
        quality = quality_parts(
            self._run.section("quality"), self._measures, self._texts["quality"]
        )
        at_sites = site_parts(
            self._run.section("site_quality"),
            self._run.section("site_metrics"),
            self._measures,
            self._texts["quality"],
        )
        return SimpleNamespace(
            rows=rows,
            plots=plots,
            lost=self._averaging_lost(),
            quality=list(quality),
            at_sites=list(at_sites),
        )

    def _averaging_lost(self) -> str:
        """Say what averaging A and B apart lost; nothing where it loses nothing."""
        if not self._config.averages_factors:
            return ""
        texts = self._texts["progress"]
        known = [r.averaging_lost for r in self._run.rounds if r.averaging_lost is not None]
        if not known:
            return str(texts["lost_unknown"])
        return str(texts["lost"].format(last=percent(known[-1]), most=percent(max(known))))

    def _epsilon_plot(self) -> str | None:
        texts, ceiling = self._texts["epsilon"], self._config.privacy.epsilon
        curves: dict[str, list[tuple[int, float]]] = {}
        for line in self._run.rounds:
            for site, spent in line.epsilon.items():
                if spent == inf:
                    continue
                name = shown_name(site, self._run.titles)
                curves.setdefault(name, [(0, 0.0)]).append((line.number, spent))
        if not curves:
            return None
        words = {
            "round": self._texts["progress"]["round"],
            "epsilon": texts["label"],
            "ceiling": texts["ceiling"].format(ceiling=number(ceiling)),
            "range": texts["range"],
            "several": texts["several"],
        }
        description = texts["plot"].format(largest=self._bound(self._largest_epsilon))
        return epsilon_plot(curves, ceiling, words, description)

    def _limits(self) -> Iterator[str]:
        texts, config = self._texts["limits"], self._config
        if not config.private:
            yield texts["not_private"]
        yield from self._seen_before()
        if config.encryption.scheme == "none":
            yield texts["not_encrypted"]
        if self._run.simulated:
            yield texts["simulation"]
        if config.private:
            yield texts[config.unit]
        if all(line.norm_ratio is None for line in self._run.rounds):
            yield texts["norms_untested"]
        yield from texts["items"]
