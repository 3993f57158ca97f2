"""What audits found about a run, beside what was promised, for its report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from fedllm.audit.attacks.audited import Audited
from fedllm.audit.findings import Severity
from fedllm.audit.report.numbers import MOST_VALUES, at_least, bound, number, percent
from fedllm.audit.report.plots import promise_plot, roc_plot
from fedllm.audit.report.stale import date_of, found_by_looking_again, kept_results, stale_audits
from fedllm.identity.titles import shown as shown_name
from fedllm.runs.record import RunFolder

# Above this the bound on what an attacker can learn says little in practice.
_LARGE_EPSILON = 10.0


class AuditParts:
    """The parts that come from audits, each as plain values ready for the template."""

    def __init__(
        self, run: RunFolder, beside: Sequence[RunFolder], texts: Mapping[str, Any]
    ) -> None:
        self._mine = Audited.of(run)
        self._all = [self._mine, *map(Audited.of, beside)]
        self._texts = texts
        self._dates = {name: date_of(one) for name, one in kept_results(self._mine).items()}
        self._stale = stale_audits(self._all)

    def parts(self) -> dict[str, Any]:
        """Return every part by the name that the template has for it."""
        return {
            "findings": self.findings(),
            "audited": self._audited(),
            "promise": self._promise(),
            "ledgers": self._ledgers(),
            "membership": self._membership(),
            "extraction": self._extraction(),
        }

    def findings(self) -> list[SimpleNamespace]:
        """Return what speaks for or against the run: severity, its word, and text; worst first."""
        texts = self._texts["findings"]
        order: tuple[Severity, ...] = ("critical", "warning", "note")
        found = [
            SimpleNamespace(severity=severity, word=texts[severity], text=text)
            for severity, text in self._found()
        ]
        return sorted(found, key=lambda finding: order.index(finding.severity))

    def _audited(self) -> list[str]:
        """Say when each audit was made."""
        texts = self._texts["audited"]
        return [
            texts["line"].format(audit=texts[name], date=date or texts["no_date"])
            for name, date in self._dates.items()
        ]

    def _found(self) -> Iterator[tuple[Severity, str]]:
        texts, config = self._texts["findings"], self._mine.run.config
        if not config.private:
            yield "critical", texts["not_private"]
        elif self._mine.spent == math.inf:
            yield "critical", texts["unbounded"]
        if config.encryption.scheme == "none":
            yield "critical", texts["not_encrypted"]
        elif not config.encryption.masked:
            yield "warning", texts["not_masked"]
        if config.privacy.epsilon is not None and config.privacy.epsilon > _LARGE_EPSILON:
            yield "warning", texts["large"].format(epsilon=number(config.privacy.epsilon))
        if config.private and config.unit == "record":
            yield "note", texts["record"]
        if any(line.dropped for line in self._mine.run.rounds):
            yield "note", texts["dropped"]
        yield from self._found_by_rejecting()
        if self._mine.run.simulated:
            yield "note", texts["simulated"]
        yield from found_by_looking_again(self._mine, self._stale, self._texts)
        yield from self._found_by_measuring()
        yield from self._found_by_ledgers()
        yield from self._found_by_canaries()
        yield from self._found_by_membership()
        yield from self._found_by_extraction()

    def _found_by_rejecting(self) -> Iterator[tuple[Severity, str]]:
        """Yield which rounds did not count, by the reason."""
        texts, lines = self._texts["findings"], self._mine.run.rounds
        for reason, words in (("norm", "rejected_norm"), ("test", "rejected_test")):
            rounds = [str(line.number) for line in lines if reason in line.rejected]
            if rounds:
                shown = ", ".join(rounds[:MOST_VALUES])
                yield "warning", texts[words].format(rounds=shown)

    def _found_by_measuring(self) -> Iterator[tuple[Severity, str]]:
        """Yield what the test metrics say against the shared model."""
        texts, run = self._texts["findings"], self._mine.run
        first, last = run.first_metrics, run.last_metrics
        for name, worse in (("loss", 1), ("accuracy", -1), ("f1", -1)):
            if name in first and name in last and worse * (last[name] - first[name]) > 0:
                words = {"before": number(first[name]), "after": number(last[name])}
                yield "warning", texts[f"worse_{name}"].format(**words)
        lost = sorted({name for line in run.rounds for name in line.not_finite})
        lost += [k for k, v in run.section("metrics").items() if v is None and k not in lost]
        if lost:
            rounds = [str(line.number) for line in run.rounds if line.not_finite]
            words = {"names": ", ".join(lost), "rounds": ", ".join(rounds[:MOST_VALUES]) or "–"}
            yield "warning", texts["not_finite"].format(**words)

    def _found_by_ledgers(self) -> Iterator[tuple[Severity, str]]:
        texts, found = self._texts["findings"], self._mine.epsilon
        if found is None:
            yield "note", texts["no_ledgers"]
        elif found.critical:
            yield "critical", texts["ledgers"].format(count=found.critical)
        elif self._mine.run.config.private and not self._is_stale("epsilon"):
            yield "note", texts["ledgers_hold"].format(count=len(found.sites))
        if found is not None and found.warnings:
            yield "warning", texts["ledgers_warn"].format(count=found.warnings)

    def _is_stale(self, audit: str) -> bool:
        return any(one.audit == audit and one.of is self._mine for one in self._stale)

    def _found_by_canaries(self) -> Iterator[tuple[Severity, str]]:
        texts, found = self._texts["findings"], self._mine.canaries
        if found is None:
            yield "note", texts["no_canaries"]
        elif found.claimed is not None:
            largest = max((attack.epsilon for attack in found.attacks), default=0.0)
            words = {
                "found": at_least(largest),
                "claimed": number(found.claimed),
                "confidence": percent(found.confidence),
            }
            yield (
                ("critical", texts["refuted"].format(**words))
                if found.refuted
                else ("note", texts["canaries_hold"].format(**words))
            )

    def _found_by_membership(self) -> Iterator[tuple[Severity, str]]:
        texts, found = self._texts["findings"], self._mine.membership
        if found is None:
            yield "note", texts["no_membership"]
            return
        mine, control = found.models[0], found.control
        words = {
            "auc": number(mine.auc),
            "control": number(control.auc),
            "tpr": percent(mine.tpr_at_1_percent),
            "control_tpr": percent(control.tpr_at_1_percent),
        }
        yield (
            "warning" if found.told else "note",
            texts["membership" if found.told else "membership_chance"].format(**words),
        )

    def _found_by_extraction(self) -> Iterator[tuple[Severity, str]]:
        found = self._mine.extraction
        if found is None:
            return
        # The run's own model stands after the untrained one.
        mine = found.models[1]
        if mine.extracted:
            yield (
                "warning",
                self._texts["findings"]["extracted"].format(
                    count=mine.extracted, total=found.secrets
                ),
            )

    def _promise(self) -> SimpleNamespace:
        """Promise and attacks, a row for each run."""
        texts = self._texts["promise"]
        rows, unlimited = [], texts["unlimited"]

        def shown(value: float | None) -> str:
            return unlimited if value == math.inf else bound(value)

        for audited in self._all:
            private = audited.run.config.private
            attack = audited.membership.models[0] if audited.membership else None
            rows.append(
                SimpleNamespace(
                    run=audited.run.config.name,
                    promised=number(audited.run.config.privacy.epsilon) if private else unlimited,
                    spent=shown(audited.spent) if private else unlimited,
                    recomputed=shown(audited.recomputed) if private else unlimited,
                    white=at_least(audited.lower_bound("white-box")),
                    black=at_least(audited.lower_bound("black-box")),
                    auc=number(attack.auc) if attack else "–",
                    tpr=percent(attack.tpr_at_1_percent) if attack else "–",
                )
            )
        tested = [audited for audited in self._all if audited.canaries]
        plot = None
        if tested:
            bars = [
                (
                    audited.run.config.name,
                    (
                        audited.run.config.privacy.epsilon,
                        audited.lower_bound("white-box"),
                        audited.lower_bound("black-box"),
                    ),
                )
                for audited in tested
            ]
            words = {key: texts[f"plot_{key}"] for key in ("axis", "claimed", "white", "black")}
            plot = promise_plot(bars, {**words, "unlimited": texts["unlimited"]}, texts["plot"])
        return SimpleNamespace(rows=rows, plot=plot, canaries=self._canaries())

    def _canaries(self) -> list[str]:
        found, texts = self._mine.canaries, self._texts["promise"]
        if found is None:
            return []
        return [
            texts[attack.kind].format(
                right=attack.right,
                guesses=attack.guesses,
                canaries=attack.canaries,
                epsilon=at_least(attack.epsilon),
                plain=at_least(attack.epsilon_without_assumption),
                confidence=percent(attack.confidence),
            )
            for attack in found.attacks
        ]

    def _ledgers(self) -> list[SimpleNamespace]:
        found, unlimited = self._mine.epsilon, self._texts["promise"]["unlimited"]
        if found is None:
            return []

        def shown(value: float | None) -> str:
            return unlimited if value is None else bound(value)

        return [
            SimpleNamespace(
                site=site.site,
                shown=shown_name(site.site, self._mine.run.titles),
                claimed=shown(site.claimed),
                recomputed=shown(site.recomputed),
                colluders=shown(site.colluders),
                delta=number(site.delta),
            )
            for site in found.sites
        ]

    def _membership(self) -> SimpleNamespace | None:
        found, texts = self._mine.membership, self._texts["membership"]
        if found is None:
            return None
        unlimited = self._texts["promise"]["unlimited"]
        rows = [
            SimpleNamespace(
                name=model.name,
                epsilon=unlimited if model.epsilon is None else number(model.epsilon),
                auc=f"{model.auc:.3f} ({model.auc_interval[0]:.3f}–{model.auc_interval[1]:.3f})",
                tpr_at_0_1_percent=f"{model.tpr_at_0_1_percent:.2%}",
                tpr_at_1_percent=f"{model.tpr_at_1_percent:.2%}",
            )
            for model in found.models
        ]
        control = found.control
        rows.append(
            SimpleNamespace(
                name=texts["control"],
                epsilon="–",
                auc=f"{control.auc:.3f} ({control.auc_interval[0]:.3f}–"
                f"{control.auc_interval[1]:.3f})",
                tpr_at_0_1_percent=f"{control.tpr_at_0_1_percent:.2%}",
                tpr_at_1_percent=f"{control.tpr_at_1_percent:.2%}",
            )
        )
        words = {key: texts[key] for key in ("false", "true", "guessing")}
        named = [(model.name, model) for model in found.models] + [(texts["control"], control)]
        curves = [(name, (model.false_positive, model.true_positive)) for name, model in named]
        text = texts["text"].format(
            members=number(found.members),
            others=number(found.others),
            shadows=found.shadows,
            one=f"{1 / found.others:.2%}" if found.others else "–",
        )
        plot = roc_plot(curves, words, texts["plot"])
        return SimpleNamespace(rows=rows, plot=plot, text=text)

    def _extraction(self) -> SimpleNamespace | None:
        found, texts = self._mine.extraction, self._texts["extraction"]
        if found is None:
            return None
        rows = [
            SimpleNamespace(
                name=texts[model.name.replace(" ", "_")],
                extracted=texts["of"].format(count=model.extracted, total=found.secrets),
                exposure=number(sum(model.exposure) / len(model.exposure)),
            )
            for model in found.models
        ]
        text = texts["text"].format(
            secrets=found.secrets,
            candidates=number(round(2**found.maximum)),
            expected=number(found.expected),
            maximum=number(found.maximum),
        )
        return SimpleNamespace(rows=rows, text=text)
