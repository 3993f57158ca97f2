"""Which documents of a corpus are trained on, which are held out, and which are neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fedllm.errors import DataError
from fedllm.pretraining.config import CorpusSection
from fedllm.pretraining.corpus import Document, corpus_files, read_documents


def source_documents(data: CorpusSection, source: int) -> Iterator[Document]:
    """Read all documents of one entry of ``data.train``."""
    return read_documents(data.train[source], data.text_of(source), data.text_documents)


class Kept:
    """Documents that are kept, one after another, and counts of those that were not.

    Attributes
    ----------
    duplicates, excluded : int
        Documents left out so far, because they were there before or are held out.
    """

    def __init__(self, choose: Callable[[Kept], Iterator[Document]]) -> None:
        self.duplicates = 0
        self.excluded = 0
        self._documents = choose(self)

    def __iter__(self) -> Iterator[Document]:
        return self._documents


class Selection:
    """Deals out the documents of a corpus: evaluation first, then training, in order.

    A document is trained on at most once, and not at all when it also stands in a held-out
    or excluded file (equal up to white space).

    Raises
    ------
    DataError
        If an excluded file is unreadable.
    """

    def __init__(self, data: CorpusSection) -> None:
        self._data = data
        self._seen: set[bytes] = set()
        self._held_out: set[bytes] = set()
        self._forbidden = {
            document.digest()
            for location in data.exclude
            for document in read_documents(location, data.text_of_evaluation(), data.text_documents)
        }

    def evaluation(self, part: int) -> Kept:
        """Give the documents of one entry of ``data.evaluation``."""
        data = self._data

        def choose(kept: Kept) -> Iterator[Document]:
            for document in read_documents(
                data.evaluation[part], data.text_of_evaluation(part), data.text_documents
            ):
                digest = document.digest()
                if digest in self._held_out:
                    kept.duplicates += 1
                    continue
                self._held_out.add(digest)
                self._forbidden.add(digest)
                yield document

        return Kept(choose)

    def training(self, source: int, held_out: list[Document] | None = None) -> Kept:
        """Give the documents of one entry of ``data.train``.

        Parameters
        ----------
        held_out : list of Document, optional
            Takes the share that ``data.held_out`` sets aside; left out, there is none.
        """

        def choose(kept: Kept) -> Iterator[Document]:
            for document in source_documents(self._data, source):
                digest = document.digest()
                if digest in self._forbidden:
                    kept.excluded += 1
                elif digest in self._seen:
                    kept.duplicates += 1
                elif held_out is not None and self._chosen(digest):
                    self._seen.add(digest)
                    held_out.append(document)
                else:
                    self._seen.add(digest)
                    yield document

        return Kept(choose)

    def _chosen(self, digest: bytes) -> bool:
        # By the text itself, so that a document stays on its side when the corpus grows.
        return int.from_bytes(digest[:8], "little") < self._data.held_out * 2**64


def check_corpus(data: CorpusSection) -> None:
    """Read the whole corpus once, before anything is computed from it.

    Raises
    ------
    DataError
        If a file or a row of it cannot be read, or too few documents are left for training
        or evaluation.
    """
    for location in (*data.exclude, *data.evaluation, *data.train):
        corpus_files(location)
    selection = Selection(data)
    held_out: list[Document] = []
    evaluation = sum(
        sum(1 for _ in selection.evaluation(part)) for part in range(len(data.evaluation))
    )
    set_aside = None if data.evaluation else held_out
    training = [
        sum(1 for _ in selection.training(source, set_aside)) for source in range(len(data.train))
    ]
    require_documents(data, training, evaluation + len(held_out))


def require_documents(data: CorpusSection, training: Sequence[int], evaluation: int) -> None:
    """Check that there are documents to train on and to evaluate on.

    Parameters
    ----------
    training : sequence of int
        Documents left of each entry of ``data.train``.
    evaluation : int
        Documents held out, of all files.

    Raises
    ------
    DataError
        Names the source that has none.
    """
    for location, count in zip(data.train, training, strict=True):
        if count == 0:
            raise DataError(
                f"{location}: no document is left for training",
                _several_in_a_file(data, location)
                or "check data.train, data.exclude and data.evaluation: documents that also stand "
                "in a held-out file or an earlier source are left out",
            )
    if evaluation == 0 and (data.evaluation or data.held_out):
        raise DataError(
            f"no document is held out for evaluation; {sum(training)} are there for training",
            next(filter(None, (_several_in_a_file(data, loc) for loc in data.train)), "")
            or "name data.evaluation, raise data.held_out, or set it to 0 to do without",
        )


def _several_in_a_file(data: CorpusSection, location: str) -> str:
    if data.text_documents != "file" or ".txt" not in location.lower():
        return ""
    return (
        f"{location} counts as one document a file: set data.text_documents = 'blank_line' or "
        "'line' if documents end there, name data.evaluation, or set data.held_out = 0"
    )
