"""The parties of one run with training left out, for `protocol_round.py`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from fedllm.config import AllowSection, BudgetSection, RunConfig, SitePolicy, parse
from fedllm.federation.authority.authority import Authority
from fedllm.federation.coordinator.rounds import run_round, statement_of
from fedllm.federation.protocol.terms import make_terms
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.site import Site
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.tasks.cache import ModelCache

ROUNDS = 3
# Labels for so many values or more; with them the features that make up the length.
LABELS = ((10**6, 1000), (10**4, 100), (0, 10))


def checkpoint(folder: Path, hidden: int) -> Path:
    """Write a model that is never run; it has one layer of ``hidden`` features."""
    vocabulary = {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3, "word": 4}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    size = {"vocab_size": 5, "hidden_size": hidden, "num_attention_heads": 1}
    size |= {"num_hidden_layers": 1, "intermediate_size": 8, "max_position_embeddings": 16}
    AutoModel.from_config(AutoConfig.for_model("bert", **size)).save_pretrained(folder)
    return folder


def configuration(path: Path, sites: int, labels: int) -> RunConfig:
    """Return a run without privacy, of which nothing but the head is trained."""
    values = {
        "name": "protocol",
        "task": "classification",
        "model": {"path": str(path), "max_length": 16},
        "lora": {"rank": 0},
        "data": {"train": "none", "labels": [f"{i:04}" for i in range(labels)], "sites": sites},
        "rounds": {"count": ROUNDS, "min_sites": max(2, 2 * sites // 3)},
        "engine": {"threads": 1},
    }
    return parse(RunConfig, values, "benchmark")


class Cohort:
    """Sites, authority and coordinator of one run, and the vector that each site adds."""

    def __init__(self, folder: Path, sites: int, length: int) -> None:
        labels = next(labels for least, labels in LABELS if length >= least)
        path = checkpoint(folder / "model", length // labels - 1)
        self.config = configuration(path, sites, labels)
        names = [f"site-{number:05}" for number in range(sites)]
        identities = {name: Identity.generate(name) for name in [*names, "authority"]}
        public = {name: identities[name].public_bytes() for name in names}
        self.roster = Roster(identities["authority"].public_bytes(), public)
        cache = ModelCache()
        policy = SitePolicy(budget=BudgetSection(epsilon=1e6), allow=AllowSection(non_private=True))
        self.sites = {
            name: Site(
                identity=identities[name],
                roster=self.roster,
                policy=policy,
                files=SiteFiles(*(folder / f"{name}.{end}" for end in ("sqlite", "json", "log"))),
                model_path=self.config.model.path,
                records=lambda task: [],
                models=cache,
                full_errors=True,
            )
            for name in names
        }
        model = cache.get(self.config, tuple(self.config.data.labels or ()))
        self.terms = make_terms(self.config, model, "run-1")
        minimum = self.config.rounds.min_sites
        self.authority = Authority(identities["authority"], self.roster, minimum, full_errors=True)
        self.adapter = np.zeros(self.terms.adapter_length, dtype=np.float32)
        bounds = np.repeat(*np.array(self.terms.bounds).T[::-1].tolist())
        self.update = 0.5 * bounds * np.cos(np.arange(len(bounds)))

    def round(self, sites: Any, authority: Any, number: int, members: Any) -> None:
        """Carry one round through, with the parties as the coordinator reaches them.

        Raises
        ------
        RuntimeError
            If what is opened is not what the sites added.
        """
        statement = statement_of(self.terms, members, number, number, None)
        about: dict[str, Any] = {"statement": statement, "adapter": self.adapter}
        if "members" in inspect.signature(run_round).parameters:
            about["members"] = members
        parties = {"sites": sites, "authority": authority, "roster": self.roster}
        outcome = run_round(**parties, **about, terms=self.terms, heard=lambda *_: None)
        bits = self.config.encryption.bits
        error = np.abs(outcome.mean - self.update).max() / np.abs(self.update).max()
        if len(outcome.survivors) < len(self.sites) or error > 8 * 2.0**-bits:
            raise RuntimeError(f"the sum is wrong: {outcome.dropped}, off by {error:g}")
