import contextlib
import dataclasses
import io
import json
import sys

import numpy as np
import pytest
from demo_models import write_model
from support.tasks import load_model

from fedllm.audit.ledgers.comparison import load_comparison
from fedllm.config import RunConfig as Config
from fedllm.config import parse, read_toml, to_toml
from fedllm.demo.corpus import DemoSize
from fedllm.demo.lexicon import HOSPITALS
from fedllm.demo.story import FULL, QUICK, DemoSettings, run_config, tell
from fedllm.demo.telling import PlainTeller, RichTeller
from fedllm.errors import ConfigError

SMALL = DemoSettings(
    size=DemoSize(public_bytes=20_000, people=20, questions=16, secrets=1, repeats=2),
    rounds=2,
    batch_size=32,
    candidates=8,
    shown=2,
)


class Stage:
    """Plays pretraining and federation: nothing is learned, every file is there."""

    def __init__(self):
        self.configs = []
        self.resumed = []
        self.pretraining = None

    def pretrain(self, config, folder, resume):
        self.resumed.append((folder.name, resume))
        self.pretraining = config
        return write_model(folder / "model", folder.parent / "data" / "public.jsonl")

    def simulate(self, config, folder, resume):
        self.configs.append(config)
        self.resumed.append((folder.name, resume))
        folder.mkdir(parents=True, exist_ok=resume)
        (folder / "run.toml").write_text(to_toml(config))
        (folder / "summary.json").write_text(json.dumps({"sites": 4}))
        spent = {site: 7.5 for site in HOSPITALS} if config.private else {}
        lines = [{"round": 0}, {"round": 1, "sites": 4, "epsilon": spent}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        model = load_model(config)
        model.set_adapter(model.adapter() + np.float32(0.01 * len(self.configs)))
        model.save_adapter(folder / "adapter")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    stage, stdout = Stage(), sys.stdout
    sys.stdout = io.StringIO()
    try:
        report = tell(
            out, SMALL, pretrain=stage.pretrain, simulate=stage.simulate, teller=PlainTeller()
        )
        lines = sys.stdout.getvalue()
    finally:
        sys.stdout = stdout
    return out, stage, lines, report


def test_the_two_runs_differ_in_privacy_alone(told):
    _, stage, _, _ = told
    private, twin = (config.model_dump() for config in stage.configs)
    assert private["privacy"].pop("epsilon") == 8.0
    assert twin["privacy"].pop("epsilon") is None
    assert (private["data"].pop("unit"), twin["data"].pop("unit")) == ("person", None)
    assert (private.pop("name"), twin.pop("name")) == ("demo-private", "demo-twin")
    assert private == twin
    assert stage.configs[0].encryption.scheme == "bfv"
    assert stage.configs[0].unit == "person"


def test_only_public_text_is_pretrained_on(told):
    out, stage, _, _ = told
    assert stage.pretraining.data.train == (str(out / "data" / "public.jsonl"),)


def test_the_report_is_left_with_the_comparison(told):
    out, _, _, report = told
    assert report == out / "report.html"
    text = report.read_text(encoding="utf-8")
    assert text == (out / "private" / "report.html").read_text(encoding="utf-8")
    for shown in ("before training", "twin (no privacy)", "released (private)", *HOSPITALS):
        assert shown in text
    comparison = load_comparison(out / "private")
    assert [model.private for model in comparison.models] == [None, False, True]
    assert comparison.secrets == 4
    assert len(comparison.examples) == 2


def test_each_model_is_measured_with_its_own_adapter(told):
    out, _, _, _ = told
    before, twin, released = (m.exposure for m in load_comparison(out / "private").models)
    assert len({before, twin, released}) > 1


def test_the_story_says_what_was_measured(told):
    _, _, lines, report = told
    for shown in ("epsilon spent", "7.5", "secrets out", "0 of 4", str(report), *HOSPITALS):
        assert shown in lines, shown
    assert "\x1b" not in lines


def test_an_earlier_demo_is_replaced_and_nothing_else_is(told, tmp_path):
    stage = Stage()
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="no earlier demo"):
        tell(
            tmp_path, SMALL, pretrain=stage.pretrain, simulate=stage.simulate, teller=PlainTeller()
        )
    assert (tmp_path / "mine.txt").read_text() == "keep"
    assert stage.pretraining is None


def staged(out, stage, settings=SMALL, resume=False):
    """Tell the story on a stage; returns its lines."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        tell(
            out,
            settings,
            pretrain=stage.pretrain,
            simulate=stage.simulate,
            teller=PlainTeller(),
            resume=resume,
        )
    return stdout.getvalue()


def test_a_demo_that_was_stopped_goes_on_where_it_was(tmp_path):
    class Stops(Stage):
        def simulate(self, config, folder, resume):
            super().simulate(config, folder, resume)
            if folder.name == "private":
                raise KeyboardInterrupt

    out, again = tmp_path / "out", Stage()
    with pytest.raises(KeyboardInterrupt):
        staged(out, Stops())
    (out / "private" / "kept").touch()
    staged(out, again, resume=True)
    assert again.resumed == [("base", True), ("private", True), ("twin", False)]
    assert (out / "private" / "kept").exists()
    anew = Stage()
    staged(out, anew)
    assert anew.resumed == [("base", False), ("private", False), ("twin", False)]
    assert not (out / "private" / "kept").exists()


def test_only_a_demo_of_the_same_length_goes_on(tmp_path):
    out, short = tmp_path / "out", dataclasses.replace(SMALL, telling=False)
    with pytest.raises(ConfigError, match="no demo to resume"):
        staged(out, Stage(), resume=True)
    staged(out, Stage(), short)
    data = (out / "data" / "public.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="was begun with --quick"):
        staged(out, Stage(), FULL, resume=True)
    assert (out / "data" / "public.jsonl").read_bytes() == data
    (out / "made-by-fedllm-demo").write_text("This folder is replaced by the next demo.\n")
    with pytest.raises(ConfigError, match="by an earlier version"):
        staged(out, Stage(), short, resume=True)


def test_figures_that_tell_nothing_are_not_shown(told, tmp_path):
    _, _, whole, _ = told
    assert "right ward" in whole
    said = staged(tmp_path / "out", Stage(), dataclasses.replace(SMALL, telling=False))
    for claim in ("right ward", "%", "exposure", "secrets out", "ranked first"):
        assert claim not in said, claim
    assert "no figure of the models is shown" in said
    assert "epsilon spent" in said
    assert load_comparison(tmp_path / "out" / "private") is None
    assert not QUICK.telling
    assert FULL.telling


@pytest.mark.parametrize("settings", [FULL, QUICK, SMALL])
def test_settings_make_valid_runs(settings, tmp_path, told):
    out, _, _, _ = told
    config = run_config("x", tmp_path, _data(out), settings, 8.0, 0)
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert parse(Config, read_toml(tmp_path / "run.toml"), "x") == config
    persons = settings.size.people + settings.size.secrets
    # The public divisor is the expected number of persons in a hospital's batch.
    assert config.training.sampling_rate * persons == pytest.approx(config.training.batch_size)
    assert config.data.max_records_per_unit >= settings.size.repeats


def _data(out):
    from fedllm.demo.corpus import DemoData

    folder = out / "data"
    return DemoData(
        folder / "public.jsonl", folder / "hospitals.jsonl", folder / "test.jsonl", (), ()
    )


def test_plain_tables_line_up(capsys):
    PlainTeller().table(["name", "x"], [["a", "1"], ["longer", "22"]])
    assert capsys.readouterr().out == "name     x\na        1\nlonger  22\n"


def test_rich_output_takes_nothing_for_markup(capsys):
    teller = RichTeller()
    teller.chapter("[bold]title[/bold]")
    teller.say("[red]text[/red]")
    teller.table(["[b]head[/b]", "n"], [["[i]cell[/i]", "1"]])
    shown = capsys.readouterr().out
    for text in ("[red]text[/red]", "[b]head[/b]", "[i]cell[/i]"):
        assert text in shown
