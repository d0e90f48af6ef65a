"""What is no regular file, or larger than what is meant, is not read."""

import os
from pathlib import Path

import pytest

from runtime.documents import parsed
from runtime.reading import bounded_bytes, limit


def test_a_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    assert bounded_bytes(tmp_path / "a", 4) == b"1234"
    with pytest.raises(ValueError, match="expected a file of up to 3 bytes, found 4; buy memory"):
        bounded_bytes(tmp_path / "a", 3, "buy memory")


def test_a_sparse_file_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=f"up to 4096 bytes, found {1 << 40}"):
        bounded_bytes(tmp_path / "a", 4096)


def test_a_file_that_says_it_is_empty_and_has_no_end_is_cut() -> None:
    """As those of /proc do."""
    with pytest.raises(ValueError, match="expected a file of up to 10 bytes, found 11"):
        bounded_bytes("/proc/self/status", 10)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a named pipe"), ("link", "a device"), ("", "a folder")):
        with pytest.raises(ValueError, match=f"expected a regular file, found {kind}; name a file"):
            bounded_bytes(tmp_path / name, 10)


@pytest.mark.parametrize(("name", "kind"), [("nothing", FileNotFoundError), ("a/b", NotADirectoryError)])
def test_what_is_not_there_is_named(name: str, kind: type, tmp_path: Path) -> None:
    """Also where the system says nothing but its reason."""
    (tmp_path / "a").touch()
    with pytest.raises(kind) as refused:
        bounded_bytes(tmp_path / name, 10)
    assert f"cannot read: {refused.value.strerror.partition(': ')[2]}: '{tmp_path / name}'" in str(
        refused.value
    )
    assert refused.value.filename == str(tmp_path / name)


def test_a_limit_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("X", raising=False)
    assert limit("X", 7) == 7
    monkeypatch.setenv("X", "12")
    assert limit("X", 7) == 12
    for text in ("", "-1", "1e9", "٣", "9" * 19):
        monkeypatch.setenv("X", text)
        with pytest.raises(ValueError, match="X: expected a whole number, found .*; set or unset it"):
            limit("X", 7)


@pytest.mark.parametrize("document", ["", "{", b"\xff\xfe\x00", "[" * 100_000, '{"a":' * 100_000, "1" * 5000])
def test_what_is_no_json_is_said_in_one_line(document: object) -> None:
    with pytest.raises(ValueError, match=r"expected JSON, found '.*' \(.+\)") as refused:
        parsed(document)
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)
