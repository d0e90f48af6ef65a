"""Sources divided into blocks, the same in every run; tables; what is refused before Ray starts."""

import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.batch import main
from runtime.bulk.blocks import Block, blocks_of, digest
from runtime.bulk.tables import Row, begin_block, files_of, num_rows, write_block
from runtime.bulk.worker import BlockDetector, Task

pa = pytest.importorskip("pyarrow", reason="pyarrow, of the extra `ray`, is not installed")
pq = pytest.importorskip("pyarrow.parquet")
IMAGES = Path(__file__).parents[3] / "examples" / "images"


def _table(file: Path, row_group: int, **columns: list) -> Path:
    pq.write_table(pa.table(columns), file, row_group_size=row_group)
    return file


def test_every_image_is_in_one_block(tmp_path: Path) -> None:
    names = [f"{index:02d}.jpg" for index in range(7)]
    for name in names[:5]:
        (tmp_path / name).write_bytes(b"x")
    listed = tmp_path / "list.txt"
    # One more, one of the folder's, and one that is not there.
    listed.write_text(f"{tmp_path / names[5]}\n\n{tmp_path / names[0]}\n{tmp_path / names[6]}\n")
    blocks = blocks_of([str(tmp_path), str(listed)], 3)
    assert [path for block in blocks for path in block.paths] == [str(tmp_path / name) for name in names]
    assert [(block.number, block.count) for block in blocks] == [(0, 3), (1, 3), (2, 1)]
    assert digest(blocks) == digest(blocks_of([str(tmp_path), str(listed)], 3))
    assert digest(blocks) != digest(blocks_of([str(tmp_path)], 3))
    assert [Block.from_json(block.to_json()) for block in blocks] == blocks


def test_rows_of_parquet_files(tmp_path: Path) -> None:
    table = _table(
        tmp_path / "t.parquet",
        4,
        image=[b"%d" % i for i in range(10)],
        path=[f"p{i}" for i in range(10)],
    )
    blocks = blocks_of([str(tmp_path / "*.parquet")], 3, "image")
    assert [(b.row_group, b.start, b.count) for b in blocks] == [
        (0, 0, 3), (0, 3, 1), (1, 0, 3), (1, 3, 1), (2, 0, 2),
    ]  # fmt: skip
    assert {(b.table, b.column) for b in blocks} == {(str(table), "image")}
    assert blocks_of([str(table)], 3)[0].column == "path"


@pytest.mark.parametrize(
    ("columns", "column", "said"),
    [
        ({"x": [1]}, None, r"expected a column path or image or bytes of paths or of bytes, found x: int64"),
        ({"image": [b"a"]}, "pixels", r"expected a column pixels of paths or of bytes, found image: binary"),
    ],
)
def test_tables_without_images_are_refused(columns: dict, column: str, said: str, tmp_path: Path) -> None:
    table = _table(tmp_path / "t.parquet", 4, **columns)
    with pytest.raises(ValueError, match=said):
        blocks_of([str(table)], 3, column)


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="expected a Parquet file, found another"):
        blocks_of([str(tmp_path / "t.parquet")], 3)
    with pytest.raises(ValueError, match="expected a Parquet file, found nothing"):
        blocks_of([str(tmp_path / "u.parquet")], 3)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="sources: expected images, found none"):
        blocks_of([str(tmp_path / "empty.txt")], 3)


def test_a_worker_writes_a_row_an_image(fake_model: Path, tmp_path: Path) -> None:
    """Of files and of bytes: the same rows; what cannot be used has a reason."""
    good, other = IMAGES / "portrait.jpg", IMAGES / "landscape.jpg"
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    paths = [str(good), str(tmp_path / "bad.jpg"), str(tmp_path / "missing.jpg"), str(other)]
    contents = [good.read_bytes(), b"no image", None, other.read_bytes()]
    table = _table(tmp_path / "t.parquet", 4, path=paths, image=contents)
    worker = BlockDetector(Task(str(fake_model), str(tmp_path / "out"), "onnxruntime", batch_size=2))
    blocks = [Block(0, 4, tuple(paths)), Block(1, 4, table=str(table), column="image")]
    done = worker({"block": np.array([block.to_json() for block in blocks])})
    assert done == {"block": [0, 1], "images": [4, 4], "failed": [2, 2]}
    tables = []
    for number in (0, 1):
        assert num_rows(tmp_path / "out", number) == (2, 2)
        detected, failed = (pq.read_table(path).to_pydict() for path in files_of(tmp_path / "out", number))
        assert detected["path"] == [paths[0], paths[3]]
        assert failed["path"] == paths[1:3]
        assert "expected an image, found 8 bytes" in failed["reason"][0]
        tables.append({k: v for k, v in detected.items() if k != "block"})
    assert tables[0] == tables[1]
    (boxes, *_), (scores, *_), (rle, *_) = (tables[0][name] for name in ("boxes", "scores", "rle"))
    assert len(boxes) == len(scores) == len(rle) == 3
    assert "expected an image file, found null" in failed["reason"][1]


def test_a_block_has_a_row_an_image_or_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="block 0: expected 2 rows, found 1"):
        write_block(tmp_path, Block(0, 2, ("a", "b")), [Row("a", reason="r")], ("x",))
    assert not list(tmp_path.iterdir())


def test_a_block_whose_workers_die_ends_the_run(tmp_path: Path) -> None:
    block = Block(7, 2, ("/a.jpg", "/b.jpg"))
    for _ in range(4):
        begin_block(tmp_path, block)
    with pytest.raises(
        RuntimeError, match=r"block 7: .* found 4 that died; one of its images \(/a.jpg to /b.jpg\)"
    ):
        begin_block(tmp_path, block)
    write_block(tmp_path, block, [Row("/a.jpg", reason="r"), Row("/b.jpg", reason="r")], ("x",))
    begin_block(tmp_path, block)


def test_without_ray_it_says_what_to_install(
    fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([str(IMAGES), "--model", str(fake_model), "--output", str(tmp_path / "out")]) == 2
    assert "ray.data: expected the Python package, found none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
