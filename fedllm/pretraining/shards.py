"""The corpus as token ids: written once into memory-mapped shards with a manifest.

Every document stands as one boundary token followed by its own tokens. The boundary before
the next document is also the target of a document's last token, so the packed stream needs
no other separator and each token is predicted exactly once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from fedllm.errors import DataError
from fedllm.files import atomic_directory, write_json
from fedllm.pretraining.config import CorpusSection, PretrainConfig
from fedllm.pretraining.corpus import Document, corpus_files
from fedllm.pretraining.manifest import Manifest, Part, load_manifest
from fedllm.pretraining.selection import Selection, require_documents, source_documents
from fedllm.pretraining.tokenizer import boundary_id

SHARD_TOKENS = 1 << 28
_BATCH_DOCUMENTS = 1024
# Counted up when the same corpus comes to other shards, so that old ones are made again.
_FORMAT = 2
_HELD_OUT = "evaluation"


def training_texts(config: PretrainConfig, limit_bytes: int) -> Iterator[str]:
    """Yield the texts of all sources, in turn, up to ``limit_bytes`` of UTF-8."""
    data = config.data
    left = limit_bytes
    streams = [iter(source_documents(data, i)) for i in range(len(data.train))]
    while streams and left > 0:
        for stream in list(streams):
            document = next(stream, None)
            if document is None:
                streams.remove(stream)
                continue
            left -= len(document.text.encode("utf-8", "replace"))
            yield document.text


def tokenise(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Manifest:
    """Write the shards into ``folder``, or take those that are there and still valid.

    A document is trained on at most once, and not at all when it also stands in a held-out
    or excluded file (equal up to white space).

    Raises
    ------
    DataError
        If a file is unreadable, or no document is left for training or evaluation.
    """
    key = _key(config, tokenizer)
    try:
        manifest = load_manifest(folder)
        if manifest.key == key:
            return manifest
    except DataError:
        pass
    with atomic_directory(folder) as temporary:
        manifest = _Writer(config, tokenizer, temporary).write(key)
        write_json(temporary / "manifest.json", asdict(manifest))
    return manifest


def _key(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    data = config.data
    locations = [*data.train, *data.evaluation, *data.exclude]
    stats = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for location in locations
        for path in corpus_files(location)
    ]
    parts = [
        data.model_dump(mode="json", exclude={"weights"}),
        config.report.evaluation_tokens,
        stats,
        _FORMAT,
        tokenizer.backend_tokenizer.to_str(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class _Writer:
    def __init__(
        self, config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, folder: Path
    ) -> None:
        self._data: CorpusSection = config.data
        self._limit = config.report.evaluation_tokens
        # A saved tokenizer may cut and pad texts, which packed documents must not be.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._boundary = boundary_id(tokenizer)
        self._dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
        self._folder = folder
        self._selection = Selection(config.data)

    def write(self, key: str) -> Manifest:
        data = self._data
        if data.evaluation:
            evaluation = tuple(self._held_out_file(i) for i in range(len(data.evaluation)))
            sources = tuple(self._source(i) for i in range(len(data.train)))
        else:
            held_out: list[Document] = []
            sources = tuple(self._source(i, held_out) for i in range(len(data.train)))
            # In the order of their digests, so that a limit takes from all sources alike.
            held_out.sort(key=Document.digest)
            evaluation = (self._write(_HELD_OUT, (), iter(held_out), self._limit),)
        require_documents(
            data, [p.documents for p in sources], sum(p.documents for p in evaluation)
        )
        return Manifest(key, self._dtype.name, self._boundary, sources, evaluation)

    def _held_out_file(self, index: int) -> Part:
        location = self._data.evaluation[index]
        kept = self._selection.evaluation(index)
        limit = max(1, self._limit // len(self._data.evaluation))
        part = self._write(f"{_HELD_OUT}{index}", (location,), kept, limit)
        return replace(part, duplicates=kept.duplicates)

    def _source(self, index: int, held_out: list[Document] | None = None) -> Part:
        location = self._data.train[index]
        kept = self._selection.training(index, held_out)
        part = self._write(f"source{index}", (location,), kept, None)
        return replace(part, duplicates=kept.duplicates, excluded=kept.excluded)

    def _write(
        self,
        name: str,
        locations: tuple[str, ...],
        documents: Iterable[Document],
        limit: int | None,
    ) -> Part:
        shards: list[str] = []
        count = tokens = text_bytes = 0
        stream: BinaryIO | None = None
        in_shard = 0
        for ids, size in self._encoded(documents):
            if limit is not None and tokens >= limit:
                continue  # the rest is read all the same: its digests are excluded
            if stream is None or in_shard + len(ids) > SHARD_TOKENS:
                if stream is not None:
                    self._close(stream)
                shards.append(f"{name}-{len(shards):05d}.bin")
                stream = (self._folder / shards[-1]).open("wb")
                in_shard = 0
            stream.write(np.asarray(ids, dtype=self._dtype).tobytes())
            in_shard += len(ids)
            count, tokens, text_bytes = count + 1, tokens + len(ids), text_bytes + size
        if stream is not None:
            self._close(stream)
        files = tuple(_describe(path) for loc in locations for path in corpus_files(loc))
        return Part(", ".join(locations), tuple(shards), count, tokens, text_bytes, 0, 0, files)

    def _close(self, stream: BinaryIO) -> None:
        # The closing boundary is the target of the last document's last token.
        stream.write(np.asarray([self._boundary], dtype=self._dtype).tobytes())
        stream.close()

    def _encoded(self, documents: Iterable[Document]) -> Iterator[tuple[list[int], int]]:
        iterator = iter(documents)
        while batch := [d.text for d in itertools.islice(iterator, _BATCH_DOCUMENTS)]:
            for text, encoding in zip(
                batch,
                self._backend.encode_batch_fast(batch, add_special_tokens=False),
                strict=True,
            ):
                ids = encoding.ids
                if ids and ids[0] == self._boundary:
                    ids = ids[1:]
                yield [self._boundary, *ids], len(text.encode("utf-8", "replace"))


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
