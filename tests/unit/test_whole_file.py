"""Files that are put in place whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.whole_file import write_whole


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text("before")
    was = path.stat().st_ino
    write_whole(path, "after")
    assert path.read_text() == "after"
    assert path.stat().st_ino != was
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    """As root, `--output /dev/null` would else take it from the whole machine."""
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    # as /dev/stdout is one
    link.symlink_to(file)
    write_whole(link, "text")
    assert link.is_symlink()
    assert file.read_text() == "text"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="cannot be written"):
        write_whole(tmp_path / "away" / "file", "text")
