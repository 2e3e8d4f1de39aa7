"""A result is complete or not there; pipes and devices are written as it comes; errors say what to do."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from moshi_mlx.cli.transcript import Transcript
from moshi_mlx.errors import StorageError
from moshi_mlx.files import ResultFile, storage_errors


def test_a_result_has_its_name_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "result.bin"
    target.write_bytes(b"from before")
    with ResultFile(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"from before"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["result.bin"]


def test_a_run_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "result.bin"
    target.write_bytes(b"from before")
    with pytest.raises(RuntimeError), ResultFile(target) as file:
        file.write(b"half of ")
        raise RuntimeError
    assert target.read_bytes() == b"from before"
    assert os.listdir(tmp_path) == ["result.bin"]


def test_a_result_that_nobody_holds_any_more_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ResultFile(tmp_path / "result.bin")
    result.write(b"half")
    del result
    assert os.listdir(tmp_path) == []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ResultFile(tmp_path / "result.bin")
    assert os.listdir(tmp_path) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link.bin"
    link.symlink_to("elsewhere/real.bin")
    with ResultFile(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere/real.bin").read_bytes() == b"new"


def test_a_device_is_written_and_not_replaced() -> None:
    with ResultFile("/dev/null") as file:
        assert not file.seekable
        file.write(b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_named() -> None:
    with pytest.raises(StorageError, match="disk is full"), ResultFile("/dev/full") as file:
        file.write(b"much")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no folder .*nowhere.* mkdir -p"):
        ResultFile(tmp_path / "nowhere" / "result.bin")


def test_a_folder_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a folder"):
        ResultFile(tmp_path)


def test_a_folder_that_could_not_be_copied_says_why(tmp_path: Path) -> None:
    (tmp_path / "from" / "part").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "part").touch()
    with pytest.raises(StorageError, match=r"Can't write folder: \[Errno \d+\] File exists"), storage_errors("folder"):
        shutil.copytree(tmp_path / "from", tmp_path / "folder", dirs_exist_ok=True)
    file = tmp_path / "folder" / "part"
    with pytest.raises(StorageError, match=r"Can't write folder: .* same file"), storage_errors("folder"):
        shutil.copyfile(file, file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_forbidden_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission"):
        ResultFile(tmp_path / "result.bin")


def test_a_transcript_tells_pieces_and_their_times() -> None:
    transcript = Transcript()
    for step, text in [(0, ""), (13, " Hello"), (14, ""), (15, " wörld"), (16, "!")]:
        transcript.add(step, text)
    assert json.loads(transcript.to_json(model="nano")) == {
        "model": "nano",
        "text": "Hello wörld!",
        "pieces": [
            {"time": 1.04, "text": " Hello"},
            {"time": 1.2, "text": " wörld"},
            {"time": 1.28, "text": "!"},
        ],
    }
