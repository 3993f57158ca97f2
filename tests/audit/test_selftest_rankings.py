"""The self-test sees preferences that count twice, and losses that compare with the wrong model."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from fedllm.audit.selftest.material import Material
from fedllm.audit.selftest.rankings import rankings_count_once
from fedllm.models.reference import Reference
from fedllm.privacy import dpsgd
from fedllm.tasks import preference_events, preference_losses
from fedllm.training import local


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("selftest"))


def test_sound_code_passes(material):
    assert rankings_count_once(material) is None


def clip_answers_apart(patch):
    """As where the answers of a pair are one batch through hooks: as many samples as answers."""

    def apart(self, pieces):
        parts = np.zeros(self.model.manifest.length)
        for rows, piece in pieces:
            attached = self.model.attach(self.dataset, rows, piece)
            count = int(attached["labels"].max()) // 4 + 1
            scores_of = preference_losses.scores_of
            for kept in range(count):

                def only(*given, kept=kept, scores_of=scores_of):
                    scores = scores_of(*given)
                    alone = torch.arange(len(scores)) == kept
                    return torch.where(alone, scores, scores.detach())

                with pytest.MonkeyPatch.context() as inner:
                    inner.setattr(preference_losses, "scores_of", only)
                    gradient = dpsgd.added_up(
                        self.gradients(
                            self.model.trained,
                            lambda a=attached: local._losses(self.model, a, self.record),
                        )
                    )
                parts += dpsgd.clipped(gradient, self.settings.clipping_norm).values
        self.record.norms.append(np.array([1.0]))
        return parts

    patch.setattr(local._OneUnit, "clipped", apart)


def read_rows_apart(patch):
    """Each row an event by itself: ten pairs of one ranking are ten units."""
    patch.setattr(preference_events, "event_of", lambda ranking: str(ranking.answers))


def refer_to_the_trained_model(patch):
    patch.setattr(Reference, "_starting", lambda self: nullcontext())


def forget_the_reference(patch):
    patch.setattr(preference_losses, "_reference", lambda *_: 0.0)


def sum_over_pairs(patch):
    right = preference_losses.means_of_records

    def summed(values, records, size):
        counts = torch.bincount(records, minlength=size).clamp(min=1)
        return right(values, records, size) * counts

    patch.setattr(preference_losses, "means_of_records", summed)


@pytest.mark.parametrize(
    ("plant", "seen"),
    [
        (clip_answers_apart, "clipped gradient is off"),
        (read_rows_apart, "18 units"),
        (refer_to_the_trained_model, "is off"),
        pytest.param(forget_the_reference, "is off", marks=pytest.mark.slow),
        pytest.param(sum_over_pairs, "is off", marks=pytest.mark.slow),
    ],
)
def test_planted_bugs_are_seen(plant, seen, material, monkeypatch):
    plant(monkeypatch)
    assert seen in (rankings_count_once(material) or "")
