"""The layout of TenSEAL's bytes is checked, not assumed."""

import pytest

from fedllm.encryption import ciphertext_format
from fedllm.encryption.plan import make_plan
from fedllm.errors import FedllmError

PLAN = make_plan("bfv", 8, 4, 10, False)


@pytest.fixture(autouse=True)
def _fresh_layouts():
    ciphertext_format.layout_of.cache_clear()
    yield
    ciphertext_format.layout_of.cache_clear()


@pytest.mark.parametrize(
    ("name", "value"),
    [("_VERSION", (4, 2)), ("_MAGIC", 0xA15F), ("_CIPHERTEXT", None), ("_has_primes", None)],
)
def test_other_layout_is_refused_with_the_version_to_install(monkeypatch, name, value):
    if name == "_has_primes":
        value = lambda *_: False  # noqa: E731
    if name == "_CIPHERTEXT":
        value = ciphertext_format.struct.Struct("<31s?QQQdQ16sQ")
    monkeypatch.setattr(ciphertext_format, name, value)
    with pytest.raises(FedllmError, match=r"0\.3\.18"):
        ciphertext_format.layout_of(PLAN)


def test_residues_round_trip_through_tenseal_unchanged():
    layout = ciphertext_format.layout_of(PLAN)
    context = ciphertext_format.new_context(PLAN)
    key = layout.key_residues(context)
    public = layout.public_context(key)
    assert (layout.key_residues(public) == key).all()
    assert public.has_public_key() and not public.has_secret_key()
    assert not public.has_galois_keys() and not public.has_relin_keys()
