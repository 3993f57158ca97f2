"""Noise and steps that the accountant confirms afterwards."""

import math
from types import SimpleNamespace

import pytest

from fedllm.config import load_run_config
from fedllm.errors import BudgetError, ConfigError
from fedllm.privacy.accounting import calibration
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.calibration import solve_noise_multiplier
from fedllm.privacy.accounting.events import Gaussian, NonPrivate, PoissonGaussian, Stated, fold

SPENT = (PoissonGaussian(0.1, 1.2, 50), Gaussian(10.0, 20))


@pytest.mark.parametrize(
    ("budget", "rate", "steps", "spent"),
    [(8.0, 0.064, 100, ()), (1.0, 0.2, 300, ()), (8.0, 0.1, 100, SPENT), (3.0, 1.0, 10, ())],
)
def test_noise_is_enough_and_not_more(budget, rate, steps, spent):
    noise = solve_noise_multiplier(budget, 1e-5, rate, steps, spent)
    assert epsilon([*spent, PoissonGaussian(rate, noise, steps)], 1e-5).value <= budget
    less = noise * (1 - 2.5e-3)
    assert epsilon([*spent, PoissonGaussian(rate, less, steps)], 1e-5).value > budget
    assert float(f"{noise:.4g}") == noise


def test_known_noise():
    assert solve_noise_multiplier(8.0, 1e-5, 0.064, 100) == pytest.approx(0.763, abs=2e-3)


def test_analytic_gaussian_calibration():
    # Balle and Wang 2018: epsilon 1, delta 1e-5 needs 3.7306 for sensitivity 1.
    assert solve_noise_multiplier(1.0, 1e-5, 1.0, 1) == pytest.approx(3.731, abs=1e-3)


def test_spent_budget_asks_for_more_noise():
    assert solve_noise_multiplier(8.0, 1e-5, 0.1, 100, SPENT) > solve_noise_multiplier(
        8.0, 1e-5, 0.1, 100
    )


@pytest.mark.parametrize(
    "spent", [[NonPrivate()], [PoissonGaussian(0.5, 0.5, 100)], [Stated(8.0, 0.0)]]
)
def test_budget_that_is_gone_is_refused(spent):
    with pytest.raises(BudgetError, match="already spent"):
        solve_noise_multiplier(8.0, 1e-5, 0.1, 10, spent)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_impossible_budget_is_refused(budget):
    with pytest.raises(ConfigError, match="is not a positive number"):
        solve_noise_multiplier(budget, 1e-5, 0.1, 10)


def test_no_steps_are_refused():
    with pytest.raises(ConfigError):
        solve_noise_multiplier(8.0, 1e-5, 0.1, 0)


def test_huge_budget_needs_hardly_any_noise():
    noise = solve_noise_multiplier(1e9, 1e-5, 0.1, 1)
    assert epsilon([PoissonGaussian(0.1, noise, 1)], 1e-5).value <= 1e9
    assert noise == 1e-3


def test_plan_command(tmp_path):
    import json

    from typer.testing import CliRunner

    from fedllm.commands.privacy import app

    plot = tmp_path / "plan.svg"
    common = ["plan", "--records", "50,64", "--batch", "64", "--rounds", "1,4", "--steps", "5"]
    result = CliRunner().invoke(app, [*common, "--json", "--plot", str(plot)])
    rows = json.loads(result.output)
    assert [(r["records"], r["rounds"], r["steps"]) for r in rows] == [
        (50, 1, 5),
        (50, 4, 20),
        (64, 1, 5),
        (64, 4, 20),
    ]
    assert all(7.9 < row["epsilon"] <= 8 and row["sampling_rate"] == 1 for row in rows)
    assert "<svg" in plot.read_text()
    asked = CliRunner().invoke(app, [*common, "--noise", "2,1e-200", "--json"])
    assert [row["epsilon"] is None for row in json.loads(asked.output)] == [False, True] * 4
    table = CliRunner().invoke(app, common)
    assert "noise multiplier" in table.output
    wrong = CliRunner().invoke(app, ["plan", "--records", "many"])
    assert isinstance(wrong.exception, ConfigError)


def test_plan_of_a_run(tmp_path):
    import json

    from typer.testing import CliRunner

    from fedllm.commands.privacy import app
    from fedllm.mechanisms import mechanism_of

    path = tmp_path / "run.toml"
    path.write_text(
        """
        name = "x"
        task = "classification"
        [model]
        path = "m"
        [data]
        train = "t"
        [rounds]
        count = 4
        min_sites = 4
        [training]
        local_steps = 1
        sampling_rate = 0.25
        optimizer = "sgd"
        [privacy]
        epsilon = 4
        noise = "distributed"
        """
    )
    common = ["plan", str(path), "--json", "--records", "50"]
    (row,) = json.loads(CliRunner().invoke(app, common).output)
    assert (row["rounds"], row["steps"], row["sampling_rate"]) == (4, 4, 0.25)
    assert 3.9 < row["epsilon"] <= 4.0 < row["colluders_epsilon"]
    assert row["noise_multiplier"] == mechanism_of(load_run_config(path)).announced_noise(1, ())
    evaluating = CliRunner().invoke(app, [*common, "--set", "evaluation.every=2"])
    (paying,) = json.loads(evaluating.output)
    assert paying["noise_multiplier"] > row["noise_multiplier"]
    (without,) = json.loads(
        CliRunner().invoke(app, [*common, "--set", "privacy.epsilon=none"]).output
    )
    assert without["epsilon"] is None
    table = CliRunner().invoke(app, ["plan", str(path), "--records", "50"])
    assert "colluders" in table.output
    assert "single updates" not in table.output
    changes = ("privacy.noise=local", "encryption.masks=false")
    sets = [word for change in changes for word in ("--set", change)]
    bare = CliRunner().invoke(app, ["plan", str(path), "--records", "50", *sets])
    assert "can open single updates" in bare.output
    assert "same epsilon" in bare.output
    refused = CliRunner().invoke(app, [*common, *sets[2:]])
    assert isinstance(refused.exception, ConfigError)
    assert "needs masks" in refused.exception.message
    for option, value in (("--epsilon", "3"), ("--rounds", "5"), ("--noise", "1")):
        wrong = CliRunner().invoke(app, [*common, option, value])
        assert isinstance(wrong.exception, ConfigError)
        assert option in wrong.exception.message
    alone = CliRunner().invoke(app, ["plan", "--set", "privacy.epsilon=3"])
    assert isinstance(alone.exception, ConfigError)


def test_what_is_left_after_most_is_spent_can_still_be_used():
    spent = (PoissonGaussian(0.2, 1.524, 4),)
    assert 1.6 < epsilon(spent, 1e-5).value < 2.0
    noise = solve_noise_multiplier(2.0, 1e-5, 0.2, 4, spent)
    assert noise > 1.524
    assert 1.9 < epsilon([*spent, PoissonGaussian(0.2, noise, 4)], 1e-5).value <= 2.0
    # Here the quick bound finds that what is spent is too much already.
    most = (PoissonGaussian(0.2, 1.418, 4),)
    assert epsilon(most, 1e-5).value < 1.95 < 2.2 < calibration.quick_bound(fold(most), 1e-5)
    assert solve_noise_multiplier(2.0, 1e-5, 0.2, 4, most) == 3.352


def test_noise_that_the_last_check_refuses_is_raised_digit_by_digit(monkeypatch):
    """The slower check may find a little more than the bound that was solved for."""
    bare = solve_noise_multiplier(8.0, 1e-5, 0.1, 100)

    def checked(events, delta):
        return SimpleNamespace(value=1.002 * calibration.upper_bound(fold(events), delta))

    monkeypatch.setattr(calibration, "account", checked)
    noise = solve_noise_multiplier(8.0, 1e-5, 0.1, 100)
    assert bare < noise <= bare * 1.004
    assert checked([PoissonGaussian(0.1, noise, 100)], 1e-5).value <= 8.0
    assert float(f"{noise:.4g}") == noise


def test_noise_that_no_check_accepts_is_not_returned(monkeypatch):
    tried: list[float] = []

    def refused_always(events, delta):
        tried.extend(event.noise_multiplier for event in events)
        return SimpleNamespace(value=9.0 if events else 0.0)

    monkeypatch.setattr(calibration, "account", refused_always)
    with pytest.raises(BudgetError) as refused:
        solve_noise_multiplier(8.0, 1e-5, 0.1, 100)
    assert refused.value.message == (
        "no noise multiplier keeps epsilon 8 at delta 1e-05 for these steps"
    )
    assert "raise epsilon" in refused.value.remedy
    # A thousandth more each time, in four digits.
    assert len(tried) == 20
    assert tried[1:] == [calibration._round_up(noise * 1.001) for noise in tried[:-1]]


def test_more_steps_than_any_noise_hides_are_refused():
    with pytest.raises(BudgetError) as refused:
        solve_noise_multiplier(1e-6, 1e-10, 1.0, 10**12)
    assert refused.value.message.startswith("no noise multiplier keeps epsilon 1e-06 for these")


def test_digits_are_rounded_up():
    for value, rounded in ((1.2341, 1.235), (1.234, 1.234), (0.00100001, 0.001001), (2e9, 2e9)):
        assert calibration._round_up(value) == rounded


def test_no_noise_is_tried_that_is_far_from_the_one_that_is_found():
    """Each try is an accountant's work, and there is an end to the tries."""
    for wanted, high in ((3.0, 4.0), (3.0, 16.0), (0.75, 1.0)):
        asked: list[float] = []

        def cost(noise: float, wanted: float = wanted, asked: list[float] = asked) -> float:
            asked.append(noise)
            assert noise >= min(1.0, wanted / 2), "even twice as much is too little"
            assert len(asked) < 50
            return (wanted / noise) ** 2

        found = calibration._bisect_noise(cost, 1.0, high)
        assert wanted <= found <= wanted * 1.001
        asked.clear()
        assert wanted <= calibration._bracket_noise(cost, 1.0) < 2 * wanted
        assert max(asked) < 4 * wanted
