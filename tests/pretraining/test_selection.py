"""What is trained on and held out, and a corpus that is too small found before any work."""

import json
import subprocess
import sys

import pytest

from fedllm.errors import DataError
from fedllm.pretraining.config import CorpusSection
from fedllm.pretraining.selection import Selection, check_corpus


def rows(path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def section(train: str, **keys) -> CorpusSection:
    return CorpusSection.model_validate({"train": train, **keys})


def test_documents_are_dealt_out_once(tmp_path):
    data = section(
        rows(tmp_path / "a.jsonl", "one", "two", "one", "gone", "test"),
        evaluation=rows(tmp_path / "e.jsonl", "test", "te st", "test"),
        exclude=rows(tmp_path / "x.jsonl", " gone "),
    )
    selection = Selection(data)
    held_out, kept = selection.evaluation(0), selection.training(0)
    assert [d.text for d in held_out] == ["test", "te st"]
    assert [d.text for d in kept] == ["one", "two"]
    assert (held_out.duplicates, kept.duplicates, kept.excluded) == (1, 1, 2)
    check_corpus(data)


def test_a_share_is_set_aside_by_content(tmp_path):
    data = section(rows(tmp_path / "a.jsonl", *map(str, range(200))), held_out=0.3)
    held_out = []
    kept = list(Selection(data).training(0, held_out))
    assert len(kept) + len(held_out) == 200
    assert 30 < len(held_out) < 90
    check_corpus(data)


def test_one_document_is_too_few_and_the_setting_is_named(tmp_path):
    path = tmp_path / "big.txt"
    path.write_text("".join(f"document {i}\n\n" for i in range(200)))
    with pytest.raises(DataError, match=r"no document is held out.*\n.*big\.txt counts as one"):
        check_corpus(section(str(path)))
    check_corpus(section(str(path), held_out=0.0))
    for documents in ("blank_line", "line"):
        check_corpus(section(str(path), text_documents=documents))


def test_a_source_without_documents_is_named(tmp_path):
    test = rows(tmp_path / "e.jsonl", "one")
    data = section(rows(tmp_path / "a.jsonl", "one"), evaluation=test)
    with pytest.raises(DataError, match=r"a\.jsonl: no document is left for training"):
        check_corpus(data)
    data = section(rows(tmp_path / "a.jsonl", "two"), evaluation=rows(tmp_path / "e.jsonl"))
    with pytest.raises(DataError, match="no document is held out for evaluation; 1 are there"):
        check_corpus(data)


def test_the_last_file_is_looked_for_before_the_first_is_read(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{")
    with pytest.raises(DataError, match=r"there is no file .*none\.jsonl"):
        check_corpus(CorpusSection(train=(str(bad), str(tmp_path / "none.jsonl"))))


def test_a_bad_row_is_found_before_torch_is_loaded(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": 1}\n')
    (tmp_path / "run.toml").write_text('name = "x"\n[data]\ntrain = "a.jsonl"\n')
    program = (
        "import sys\nfrom pathlib import Path\nfrom fedllm.commands.pretrain import pretrain\n"
        "from fedllm.errors import DataError\n"
        "try:\n    pretrain(Path('run.toml'), [], None, False, tensorboard=None)\n"
        "except DataError as error:\n    print(error)\n"
        "print(sorted({'torch', 'tokenizers', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "a.jsonl row 2 (line 2): field 'text' is of type int, not text" in done.stdout
    assert done.stdout.endswith("[]\n"), done.stderr
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
