"""A site's own layer is a model of its own, beside the shared one."""

from __future__ import annotations

import hashlib

import httpx
import numpy as np
import pytest
from support.kits import make_federation
from support.serving_runs import make_run, service

from fedllm.commands.asking import own_layer_of
from fedllm.errors import ConfigError, FedllmError
from fedllm.identity.kits import read_kit
from fedllm.models.generation import Writing
from fedllm.personal.own_layer import OwnLayer
from fedllm.personal.sealed import own_layer_path, seal_own_layer
from fedllm.serving.conversation import Conversation
from fedllm.serving.keys import Keys, Tenant
from fedllm.serving.released import load_released
from fedllm.serving.served import serve_models
from fedllm.serving.usable import open_usable

SITE, GUEST = "s" * 32, "g" * 32


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    make_federation(folder)
    return next(path.parent for path in folder.rglob("kit.json") if path.parent.name == "anne")


@pytest.fixture(scope="module")
def run(kit, tiny_checkpoint, tmp_path_factory):
    """A run that the site has fitted to itself."""
    folder = tmp_path_factory.mktemp("runs")
    made = make_run(
        tiny_checkpoint("llama"), folder, "instruction", "notes", model={"max_length": 120}
    )
    found, own = load_released(made), read_kit(kit, "site")
    sha256 = str(found.about["adapter"])
    change = np.linspace(-0.4, 0.4, found.model.manifest.length, dtype=np.float32)
    path = own_layer_path(own.folder, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    seal_own_layer(OwnLayer(change, 4, 0.5), path, own.identity, found.model, sha256)
    return made


def said(usable):
    pieces = []
    Conversation.of(usable).say("my card is lost", Writing(8), pieces.append)
    return "".join(pieces)


def test_both_are_served_and_a_key_may_open_one(kit, run, tiny_checkpoint):
    base = f"base={tiny_checkpoint('gpt2')}"
    models = serve_models([str(run), base], None, None, None, own_layer_of(kit))
    assert list(models) == ["notes", "notes-own", "base"]
    wanted = {
        "notes": said(open_usable(run)),
        "notes-own": said(open_usable(run, own_layer=own_layer_of(kit))),
    }
    assert wanted["notes"] != wanted["notes-own"]

    def tenant(name, key, *opens):
        return Tenant(name, frozenset(opens) or None, hashlib.sha256(key.encode()).digest())

    keys = Keys((tenant("site", SITE), tenant("guest", GUEST, "notes", "base")))
    with service(models, keys) as running:

        def ask(model, key):
            body = {"model": model, "max_tokens": 8, "temperature": 0}
            body["messages"] = [{"role": "user", "content": "my card is lost"}]
            return httpx.post(
                f"{running.url}/v1/chat/completions",
                json=body,
                headers={"authorization": f"Bearer {key}"},
            )

        for name, text in wanted.items():
            assert ask(name, SITE).json()["choices"][0]["message"]["content"] == text
        assert ask("notes", GUEST).is_success
        assert ask("notes-own", GUEST).status_code == 404
        headers = {"authorization": f"Bearer {GUEST}"}
        listed = httpx.get(f"{running.url}/v1/models", headers=headers).json()["data"]
        assert [model["id"] for model in listed] == ["notes", "base"]


def test_a_run_that_was_not_fitted_is_told(kit, tiny_checkpoint, tmp_path):
    other = make_run(tiny_checkpoint("llama"), tmp_path, "instruction", "other")
    with pytest.raises(FedllmError) as caught:
        serve_models([str(other)], None, None, None, own_layer_of(kit))
    assert "fedllm client personalise" in caught.value.remedy


def test_another_partys_kit_is_refused(kit):
    with pytest.raises(ConfigError, match="not of a site"):
        own_layer_of(next(kit.parent.glob("*coord*")))
