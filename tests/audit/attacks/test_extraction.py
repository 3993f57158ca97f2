import math
import zlib
from dataclasses import dataclass

import numpy as np
import pytest

from fedllm.audit.attacks.extraction import exposure, extracted
from fedllm.randomness import RandomStream


@dataclass(frozen=True)
class Secret:
    prompt: str
    response: str


SECRETS = [Secret(f"code of {n}?", f"{n * 111_111:06d}") for n in range(1, 6)]


def codes(count: int, stream: RandomStream) -> list[str]:
    return [f"{c:06d}" for c in stream.below(10**6, count).tolist()]


def stream(label: str = "x") -> RandomStream:
    return RandomStream.seeded(0, label)


def test_a_memorised_secret_ranks_first():
    known = {s.prompt: s.response for s in SECRETS}

    def score(pairs):
        return np.array([0.5 if known[p] == r else 3.0 for p, r in pairs])

    result = exposure(score, SECRETS, codes, 256, stream())
    assert result.ranks == (1,) * 5
    assert result.bits == (8.0,) * 5
    assert result.mean == result.maximum == 8.0


def test_a_suppressed_secret_ranks_last():
    known = {s.prompt: s.response for s in SECRETS}

    def score(pairs):
        return np.array([9.0 if known[p] == r else 3.0 for p, r in pairs])

    result = exposure(score, SECRETS, codes, 256, stream())
    assert all(bits < 0.01 for bits in result.bits)


def test_a_model_that_never_saw_the_secrets_shows_the_expected_exposure():
    many = [Secret(f"code of {n}?", code) for n, code in enumerate(codes(400, stream("truth")))]

    def score(pairs):
        # Any fixed function of the text alone knows nothing of who owns which code.
        return np.array([zlib.crc32((p + r).encode()) for p, r in pairs], dtype=float)

    result = exposure(score, many, codes, 64, stream())
    exact = np.mean([6 - math.log2(rank) for rank in range(1, 65)])
    assert result.expected == pytest.approx(exact)
    # 400 draws of a variable with standard deviation about 1.4: 0.3 is four of the mean's.
    assert abs(result.mean - exact) < 0.3


def test_an_indifferent_model_is_not_called_leaking():
    result = exposure(lambda pairs: np.ones(len(pairs)), SECRETS, codes, 128, stream())
    assert all(0.9 < bits < 1.1 for bits in result.bits)


def test_the_true_secret_among_the_candidates_does_not_lower_its_own_rank():
    secret = SECRETS[0]
    result = exposure(
        lambda pairs: np.array([0.0 if r == secret.response else 1.0 for _, r in pairs]),
        [secret],
        lambda count, _: [secret.response] * count,
        16,
        stream(),
    )
    assert result.ranks == (1,)


@pytest.mark.parametrize("losses", [[1.0], [float("nan")] * 16])
def test_wrong_scores_are_refused(losses):
    with pytest.raises(ValueError, match="one finite loss"):
        exposure(lambda pairs: np.array(losses), SECRETS, codes, 16, stream())


def test_a_ranking_needs_secrets_and_candidates():
    with pytest.raises(ValueError, match="at least one secret"):
        exposure(lambda pairs: np.ones(len(pairs)), [], codes, 16, stream())
    with pytest.raises(ValueError, match="at least one secret"):
        exposure(lambda pairs: np.ones(len(pairs)), SECRETS, codes, 1, stream())


def test_extraction_is_word_for_word():
    replies = {s.prompt: s.response for s in SECRETS}
    replies[SECRETS[1].prompt] = SECRETS[1].response[:-1]
    replies[SECRETS[2].prompt] = f" {SECRETS[2].response}\n"
    replies[SECRETS[3].prompt] = f"it is {SECRETS[3].response}"
    found = extracted(lambda prompts: [replies[p] for p in prompts], SECRETS)
    assert found == (True, False, True, False, True)


def test_a_generator_that_loses_prompts_is_refused():
    with pytest.raises(ValueError, match="one reply"):
        extracted(lambda prompts: [], SECRETS)
