import contextlib
import dataclasses
import io

import pytest

from fedllm.audit.ledgers.comparison import load_comparison
from fedllm.demo.lexicon import HOSPITALS
from fedllm.demo.story import QUICK, tell
from fedllm.demo.telling import PlainTeller
from fedllm.pretraining.run import run_pretraining
from fedllm.runs.record import read_run_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    from fedllm_server.simulation import simulate

    folder = tmp_path_factory.mktemp("demo") / "out"
    settings = dataclasses.replace(
        QUICK, pretraining_tokens=30_000, rounds=2, candidates=8, threads=1, telling=True
    )
    with contextlib.redirect_stdout(io.StringIO()):
        tell(
            folder,
            settings,
            pretrain=lambda config, out, resume: run_pretraining(config, out, resume=resume),
            simulate=lambda config, out, resume: simulate(config, out, resume=resume),
            teller=PlainTeller(),
        )
    return folder


def test_the_private_run_keeps_its_promise(out):
    run = read_run_folder(out / "private")
    assert set(run.epsilon) == set(HOSPITALS)
    assert all(7.0 < spent <= 8.0 for spent in run.epsilon.values())
    assert len(list((out / "private" / "ledgers").glob("*.sqlite"))) == len(HOSPITALS)
    assert run.summary["privacy"]["unit"] == "person"
    assert run.summary["encryption"]["masks"] is True


def test_the_twin_starts_from_the_same_model_and_promises_nothing(out):
    private, twin = (read_run_folder(out / name) for name in ("private", "twin"))
    assert twin.rounds[0].metrics == private.rounds[0].metrics
    assert twin.rounds[-1].metrics != private.rounds[-1].metrics
    assert twin.epsilon == {}
    assert private.summary["adapter_sha256"] != twin.summary["adapter_sha256"]


def test_the_report_shows_run_and_attack(out):
    text = (out / "report.html").read_text(encoding="utf-8")
    comparison = load_comparison(out / "private")
    for shown in (*HOSPITALS, *(model.name for model in comparison.models)):
        assert shown in text
    assert text.count("<svg") == 3
