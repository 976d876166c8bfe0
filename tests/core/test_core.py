"""The contracts: errors of one line, files that appear whole, fields and catalogue without gaps."""

import os
from pathlib import Path

import pytest

from equidyn.core.errors import EquidynError, InputError, unknown_name
from equidyn.core.fields import FIELDS
from equidyn.core.files import make_folder, write_atomically
from equidyn.models import SYSTEMS


def test_an_error_is_one_line_with_all_its_parts():
    error = InputError("wrong\n shape", where=Path("some") / "file", expected=[1, 2], got="a\nb")
    assert str(error) == "wrong shape, in some/file, expected [1, 2], got a b"
    assert isinstance(error, EquidynError)
    assert isinstance(error, ValueError)
    assert str(InputError("what", expected=0)) == "what, expected 0"


def test_the_nearest_name_is_offered():
    assert str(unknown_name("system", "egnoo", ["egnn", "egno"])) == "unknown system 'egnoo', expected 'egno'"
    assert "one of a, b" in str(unknown_name("system", "zzzzz", ["b", "a"], where="x"))


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "text")
    write_atomically(path, b"bytes")
    assert path.read_bytes() == b"bytes"

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=r"cannot write, in .*file, got No space left on device"):
        write_atomically(path, "half")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"bytes"


def test_folders_that_cannot_be_written(tmp_path):
    make_folder(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to the folder, in .*file/below"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(InputError, match="cannot write"):
        write_atomically(tmp_path / "none" / "file", "")


def test_fields_and_entries_name_each_other():
    assert all(name == field.name and field.meaning.endswith(".") for name, field in FIELDS.items())
    for name, entry in SYSTEMS.items():
        assert name == entry.name
        assert set(entry.needs) <= FIELDS.keys()
        assert entry.citation.bibtex().startswith(f"@inproceedings{{{entry.citation.key},")
        assert entry.citation.arxiv in entry.citation.bibtex()
