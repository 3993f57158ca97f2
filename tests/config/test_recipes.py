from __future__ import annotations

from itertools import combinations

import pytest

from fedllm.config import DataSection, ModelSection, RunConfig, parse, parse_toml, to_toml
from fedllm.config.recipes import coordinator_step
from fedllm.errors import ConfigError
from fedllm.limits import MAX_SITES
from fedllm.runs.folder import config_digest

MINIMAL = {
    "name": "x",
    "task": "classification",
    "model": {"path": "m"},
    "data": {"train": "t"},
    "privacy": {"epsilon": 8.0},
}
SINGLE = {
    "training": {"local_steps": 10},
    "rounds": {"optimizer": "momentum"},
    "lora": {"rank": 8},
    "encryption": {"scheme": "ckks"},
    "data": {"site": "where"},
    "model": {"feature_scale": 0.0},
}


def made(**sections):
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in MINIMAL.items()}
    for name, section in sections.items():
        known = values.get(name)
        values[name] = {**known, **section} if isinstance(known, dict) else section
    return parse(RunConfig, values, "test")


def test_a_file_that_names_model_records_task_and_epsilon_gets_the_recipe():
    config = made()
    assert (config.model.head_start, config.model.feature_center) == ("label_names",) * 2
    assert (config.lora.rank, config.privacy.noise) == (0, "distributed")
    training, rounds = config.training, config.rounds
    assert (training.local_steps, training.optimizer, training.learning_rate) == (1, "sgd", 1.0)
    assert (training.sampling_rate, training.batch_size) == (0.4, 400)
    assert (rounds.count, rounds.min_sites, rounds.optimizer) == (100, 10, "adam")
    assert rounds.learning_rate == coordinator_step(100) == 0.013


@pytest.mark.parametrize("epsilon", ["none", 8.0])
@pytest.mark.parametrize(
    "task", ["classification", "instruction", "causal", "token_classification"]
)
@pytest.mark.parametrize("names", [(), *combinations(SINGLE, 1), *combinations(SINGLE, 2)])
def test_what_is_written_is_the_same_run_when_it_is_read(task, epsilon, names):
    config = made(task=task, **{"privacy": {"epsilon": epsilon}, **{n: SINGLE[n] for n in names}})
    assert parse(RunConfig, parse_toml(to_toml(config), "it"), "it") == config


def test_what_is_said_is_kept():
    config = made(
        model={"head_start": "zero"},
        lora={"rank": 4},
        rounds={"count": 7, "learning_rate": 0.5, "optimizer": "momentum", "min_sites": 3},
        training={"sampling_rate": 0.05},
        privacy={"noise": "local"},
    )
    assert (config.model.head_start, config.lora.rank) == ("zero", 4)
    rounds = config.rounds
    assert (rounds.count, rounds.optimizer, rounds.learning_rate) == (7, "momentum", 0.5)
    assert (rounds.min_sites, config.privacy.noise) == (3, "local")
    assert (config.training.sampling_rate, config.training.batch_size) == (0.05, 50)


def test_muon_steps_a_quarter_as_far_as_adam():
    adam, muon = (made(rounds={"optimizer": name}).rounds for name in ("adam", "muon"))
    assert muon.optimizer == "muon"
    assert muon.learning_rate == adam.learning_rate / 4


def test_a_step_of_muon_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"learning_rate = 1 with .*'muon'.*0\.005"):
        made(rounds={"optimizer": "muon", "learning_rate": 1.0})
    with pytest.raises(ConfigError, match="learning_rate = 1 with"):
        made(rounds={"optimizer": "muon"}, training={"local_steps": 5})


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"local_steps": 5}},
        {"training": {"optimizer": "adam"}},
        {"training": {"batch_size": 32}},
        {"training": {"learning_rate": 0.01}},
        {"privacy": {"unit": "site"}},
        {"privacy": {"clipping_quantile": 0.5}, "training": {"optimizer": "adam"}},
    ],
)
def test_who_trains_at_the_sites_is_left_to_it(sections):
    config = made(**sections)
    training, said = config.training, sections.get("training", {})
    assert (training.optimizer, training.sampling_rate) == ("adam", None)
    assert training.local_steps == said.get("local_steps", 10)
    assert (config.privacy.noise, config.rounds.optimizer) == ("local", "average")
    assert config.lora.rank == 8


@pytest.mark.parametrize("encryption", [{"scheme": "ckks"}, {"scheme": "none"}, {"masks": False}])
def test_noise_is_shared_only_where_no_update_can_be_opened(encryption):
    config = made(encryption=encryption)
    assert (config.privacy.noise, config.rounds.min_sites) == ("local", 2)


def test_the_noise_is_that_of_all_sites_that_can_be_in_a_sum():
    assert made(data={"sites": 4}).rounds.min_sites == 4
    assert made(rounds={"sites": 6}).rounds.min_sites == 6
    # How many there are, only the records say.
    assert made(data={"site": "where"}).rounds.min_sites == 2
    assert made(privacy={"epsilon": "none"}).rounds.min_sites == 2


def test_names_of_labels_are_of_use_to_texts_alone():
    for task in ("token_classification", "causal"):
        model = made(task=task).model
        assert (model.head_start, model.feature_center) == ("zero", "zero")
    assert made(model={"feature_scale": 0.0}).model.feature_center == "zero"


def test_sections_that_were_made_already_are_filled_too():
    config = RunConfig(
        name="x", task="classification", model=ModelSection(path="m"), data=DataSection(train="t")
    )
    assert config.model.head_start == "label_names" and config.model.path == "m"


def test_a_run_of_an_earlier_version_means_what_it_meant():
    # As it wrote its run.toml, before some keys of today were there.
    old = {
        "name": "x",
        "task": "classification",
        "model": {"path": "m", "max_length": 128, "pooling": "mean", "feature_scale": 10.0},
        "data": {"train": "t"},
        "lora": {"rank": 8, "alpha": 16.0},
        "rounds": {"count": 10, "min_sites": 2, "optimizer": "average", "learning_rate": 1.0},
        "training": {"local_steps": 10, "batch_size": 64, "optimizer": "adam"},
        "privacy": {"delta": 1e-5, "noise": "local"},
        "encryption": {"scheme": "bfv", "bits": 16},
    }
    config = parse(RunConfig, old, "run.toml")
    assert (config.model.head_start, config.model.feature_center) == ("zero", "zero")
    assert config.training.sampling_rate is None
    # Its checkpoints name this digest: what stood at the defaults of that time did not count.
    assert config_digest(config) == (
        "3a65b4071259bbc62a9e6600851efc4af9935a001bdff3b758d9b0ff1b04e183"
    )


SPELLED = [
    ({"data": {"sites": 20}}, {"data": {"sites": 20.0}}),
    ({"rounds": {"count": 50}}, {"rounds": {"count": 50.0}}),
    ({"rounds": {"count": 50}}, {"rounds": {"count": "50"}}),
    ({"rounds": {"sites": 4}}, {"rounds": {"sites": 4.0}}),
    ({"privacy": {"epsilon": 0.5}}, {"privacy": {"epsilon": "0.5"}}),
    ({"training": {"sampling_rate": 0.2}}, {"training": {"sampling_rate": "0.2"}}),
    ({"training": {"local_steps": 5}}, {"training": {"local_steps": "5"}}),
    ({"lora": {"rank": 0}}, {"lora": {"rank": 0.0}}),
    ({"model": {"feature_scale": 0.0}}, {"model": {"feature_scale": "0"}}),
    ({"encryption": {"masks": False}}, {"encryption": {"masks": "false"}}),
]


@pytest.mark.parametrize(("plain", "spelled"), SPELLED)
def test_the_recipe_reads_a_value_as_the_run_does(plain, spelled):
    assert made(**spelled) == made(**plain)


def test_more_sites_than_one_sum_holds_do_not_leave_the_smallest_sum_at_two():
    many = made(data={"sites": MAX_SITES + 1})
    assert many.rounds.min_sites == MAX_SITES
    assert made(data={"sites": MAX_SITES + 1}, rounds={"sites": 6}).rounds.min_sites == 6


@pytest.mark.parametrize("key", ["privacy.epsilon", "training.sampling_rate", "data.alpha"])
def test_a_number_of_four_hundred_digits_is_refused_by_its_key(key):
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=key):
        made(**{section: {name: 10**400}})


# Every key that once told a file of the program's from one written by hand, at its default.
AT_DEFAULT = {
    "model": {"max_length": 128},
    "rounds": {"count": 100},
    "training": {"local_steps": 1},
    "privacy": {"delta": 1e-5},
    "encryption": {"scheme": "bfv"},
    "lora": {"rank": 0},
}


def test_a_file_that_says_many_keys_as_the_recipe_has_them_is_the_same_run():
    assert made(**AT_DEFAULT) == made()


def test_what_is_written_says_that_it_is_complete():
    config = made()
    assert "\ncomplete = true\n" in to_toml(config)
    # With a key taken out, what the file leaves out stands at the section's default.
    values = parse_toml(to_toml(config), "it")
    del values["privacy"]["noise"]
    assert parse(RunConfig, values, "it").privacy.noise == "local"
    assert parse(RunConfig, {**values, "complete": False}, "it").privacy.noise == "distributed"
    with pytest.raises(ConfigError, match="complete"):
        parse(RunConfig, {**MINIMAL, "complete": "yes"}, "it")
