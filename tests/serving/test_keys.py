"""A key opens the models that it is for, and nothing tells another's from none."""

from __future__ import annotations

import hashlib

import pytest

from fedllm.errors import ConfigError
from fedllm.serving.keys import Keys, Tenant, read_keys

WARD, LAB = "w" * 32, "l" * 32
MODELS = frozenset({"a", "b"})


def written(tmp_path, text, mode=0o600):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_each_tenant_has_its_models(tmp_path):
    digest = hashlib.sha256(LAB.encode()).hexdigest()
    path = written(
        tmp_path, f'[ward]\nkey = "{WARD}"\nmodels = ["a"]\n\n[lab]\nkey_sha256 = "{digest}"\n'
    )
    keys = read_keys(path, "e" * 30, MODELS)
    ward, lab = keys.tenant(f"Bearer {WARD}"), keys.tenant(f"bearer {LAB}")
    assert (ward.name, ward.may_ask("a"), ward.may_ask("b")) == ("ward", True, False)
    assert (lab.name, lab.may_ask("b")) == ("lab", True)
    assert keys.tenant(f"Bearer {'e' * 30}").name == "environment"
    for wrong in (
        None,
        "",
        WARD,
        f"Basic {WARD}",
        f"Bearer {WARD}x",
        f"Bearer {digest}",
        "Bearer ",
    ):
        assert keys.tenant(wrong) is None
    assert WARD not in repr(keys)


def test_a_key_is_compared_by_its_bytes():
    """As a header has them: what a client sends in UTF-8 arrives as Latin-1."""
    key = "ключ-ключ-ключ-ключ-ключ"
    keys = Keys((Tenant("ward", None, hashlib.sha256(key.encode()).digest()),))
    assert keys.tenant("Bearer " + key.encode().decode("latin-1")).name == "ward"


def test_every_key_is_compared(tmp_path, monkeypatch):
    """However early one fits."""
    import hmac

    seen = []
    own = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append(a) or own(a, b))
    path = written(tmp_path, "".join(f'[t{n}]\nkey = "{n}{"k" * 30}"\n' for n in range(5)))
    keys = read_keys(path, None, MODELS)
    for given in (f"0{'k' * 30}", "nobody's"):
        seen.clear()
        keys.tenant(f"Bearer {given}")
        assert len(seen) == 5


def test_without_keys_everybody_may_ask():
    assert Keys().tenant(None).may_ask("a")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "key = 'x'\n",
        "[ward]\n",
        '[ward]\nkey = "short"\n',
        f'[ward]\nkey = " {WARD}"\n',
        '[ward]\nkey = "ключ-ключ-ключ-ключ-ключ"\n',
        "[ward]\nkey = 7\n",
        '[ward]\nkey_sha256 = "ab"\n',
        f'[ward]\nkey = "{WARD}"\nkey_sha256 = "{"a" * 64}"\n',
        f'[ward]\nkey = "{WARD}"\nmodels = ["c"]\n',
        f'[ward]\nkey = "{WARD}"\nmodels = "a"\n',
        f'[ward]\nkey = "{WARD}"\nmodel = ["a"]\n',
        f'[ward]\nkey = "{WARD}"\n[lab]\nkey = "{WARD}"\n',
    ],
)
def test_a_wrong_file_is_refused_and_no_key_is_told(text, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_keys(written(tmp_path, text), None, MODELS)
    assert WARD not in str(caught.value)


def test_a_file_that_others_can_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="others can read"):
        read_keys(written(tmp_path, f'[ward]\nkey = "{WARD}"\n', 0o640), None, MODELS)
