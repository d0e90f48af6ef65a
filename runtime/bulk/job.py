"""All blocks of a run: which are done already, the others through Ray Data, and whether none is missing in the end."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from runtime.bulk.blocks import Block, blocks_of, digest
from runtime.bulk.tables import BEGUN, DETECTIONS, FAILED, begun_file, files_of, num_rows
from runtime.bulk.worker import BlockDetector, Task
from runtime.comparison.detections import Progress, no_progress
from runtime.documents import parsed
from runtime.files import remove_abandoned, sha256_of, write_whole
from runtime.ray_cluster import Connected, import_ray, last_line
from runtime.reading import SMALL, bounded_bytes

JOB, SUMMARY = "job.json", "summary.json"
FORMAT = 1


@dataclass(frozen=True)
class Workers:
    """What Ray is asked for.

    Attributes:
        num: workers, each with a model.
        cpus, gpus: of each.
        address: of a cluster; None: ``RAY_ADDRESS``, or Ray on this machine.
    """

    num: int = 1
    cpus: float = 1
    gpus: float = 0
    address: Optional[str] = None


@dataclass(frozen=True)
class Summary:
    """What became of a run.

    Attributes:
        images, failed: numbers of images.
        blocks, resumed: numbers of blocks, and of those that were done before.
    """

    images: int
    failed: int
    blocks: int
    resumed: int


def detect_all(
    sources: Sequence[str],
    task: Task,
    *,
    block_size: int = 1000,
    column: Optional[str] = None,
    workers: Workers = Workers(),
    progress: Progress = no_progress,
) -> Summary:
    """Detect in all images of sources, each once, and write Parquet files. What an earlier run has done stays.

    Args:
        sources, column: see ``blocks_of``.
        task: model, folder, what is asked of each block.
        block_size: most images of a block: what is done again after a crash, and the rows of a file.
        workers: see there.
        progress: shows how far it is.

    Raises:
        OSError, ValueError: a source cannot be read, or the folder has results of another run; says which.
        RuntimeError: Ray is not installed, a worker failed for good, or results are missing in the end.
    """
    ray = import_ray("data", ", or detect on this machine alone with `python -m runtime.infer`")
    folder = Path(task.folder)
    blocks = blocks_of(sources, block_size, column)
    _check_job(folder, _job(task, blocks, block_size))
    todo = [block for block in blocks if not _is_done(folder, block)]
    for block in todo:
        begun_file(folder, block.number).unlink(missing_ok=True)
    if todo:
        with Connected(ray, workers.address):
            _run(ray, todo, task, workers, progress)
    return _audited(folder, blocks, len(blocks) - len(todo))


def _job(task: Task, blocks: Sequence[Block], block_size: int) -> dict[str, Any]:
    """Return what makes a run's results what they are."""
    return {
        "format": FORMAT,
        "model": sha256_of(task.model),
        "images": sum(block.count for block in blocks),
        "sources": digest(blocks),
        "block_size": block_size,
        "min_score": task.min_score,
    }


def _check_job(folder: Path, job: dict[str, Any]) -> None:
    """Write down what the folder holds, or hold it against what is there."""
    path = folder / JOB
    if path.exists():
        found = parsed(bounded_bytes(path, SMALL))
        differing = [k for k in job if not isinstance(found, dict) or found.get(k) != job[k]]
        if differing:
            raise ValueError(
                f"output {folder}: expected no results, or those of the same run, found those of a run with another "
                f"{', '.join(differing)}; name another folder, or remove this one"
            )
        for name in (DETECTIONS, FAILED, BEGUN):
            remove_abandoned(folder / name)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"output {folder}: expected a new or an empty folder, found files without {JOB}; name another"
        )
    write_whole(path, (json.dumps(job, indent=2) + "\n").encode())


def _is_done(folder: Path, block: Block) -> bool:
    return all(path.is_file() for path in files_of(folder, block.number))


def _run(ray: Any, blocks: Sequence[Block], task: Task, workers: Workers, progress: Progress) -> None:
    # Ours is the one that is shown.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = ray.data.from_items(
        [{"block": block.to_json()} for block in blocks], override_num_blocks=len(blocks)
    )
    done = rows.map_batches(
        BlockDetector,
        fn_constructor_args=(task,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers.num, len(blocks))),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    try:
        for _ in progress(done.iter_rows(), len(blocks), "detecting, blocks"):
            pass
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"a worker of Ray failed: {last_line(error)}; what is finished stays, the same command goes "
            "on with the rest"
        ) from error


def _audited(folder: Path, blocks: Sequence[Block], resumed: int) -> Summary:
    """Count all rows; none may be missing or there twice.

    Raises:
        RuntimeError: a block has not a row an image.
    """
    failed = 0
    for block in blocks:
        detected, not_detected = num_rows(folder, block.number)
        if detected + not_detected != block.count:
            raise RuntimeError(
                f"block {block.number} in {folder}: expected {block.count} rows, found {detected} and {not_detected}; "
                "remove its files and run the same command again"
            )
        failed += not_detected
    summary = Summary(sum(block.count for block in blocks), failed, len(blocks), resumed)
    write_whole(folder / SUMMARY, (json.dumps(vars(summary), indent=2) + "\n").encode())
    return summary
