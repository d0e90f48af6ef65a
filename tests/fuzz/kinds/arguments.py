"""Command lines, names of files, and the environment."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.graft.__main__ import main as graft
from export.maskrcnn import main as export
from export.quantize import main as quantize
from runtime.build import main as build
from runtime.compare import main as compare
from runtime.comparison.recording import read_recording
from runtime.evaluate import main as evaluate
from runtime.infer import main as infer
from runtime.precision.__main__ import main as precision
from runtime.record import main as record
from runtime.run import main as run_model
from tests.fuzz import materials
from tests.fuzz.mutations import NAMES, pick
from tests.fuzz.results import wrong_results
from tests.fuzz.trial import Trial

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], tuple[str, ...], tuple[str, ...]]] = {
    # What runs; a good line; options.
    "infer": (
        infer,
        ("{1.png}", "--model", "{good.onnx}", "--out", "{out}", "--backend", "onnxruntime", "--threads", "1"),
        (
            "--model",
            "--backend",
            "--device",
            "--plugins",
            "--rebuild",
            "--threads",
            "--batch",
            "--host",
            "--score",
            "--json-score",
            "--out",
            "--no-overlays",
        ),
    ),
    "record": (
        record,
        (
            "{good.onnx}",
            "--images",
            "{1.png}",
            "-o",
            "{out}/r.npz",
            "--backend",
            "onnxruntime",
            "--threads",
            "1",
        ),
        ("--images", "-o", "--output", "--backend", "--batch", "--device", "--threads", "--host"),
    ),
    "evaluate": (
        evaluate,
        ("{good.npz}", "--images", "{.}", "--annotations", "{annotations.json}", "--json", "{out}/e.json"),
        (
            "--dataset",
            "--images",
            "--annotations",
            "--limit",
            "--backend",
            "--batch",
            "--device",
            "--threads",
            "--host",
            "--json",
        ),
    ),
    "compare": (
        compare,
        ("{good.npz}", "{good.npz}", "--images", "{1.png}", "{2.png}", "--json", "{out}/c.json"),
        (
            "--images",
            "--backend-a",
            "--backend-b",
            "--box-px",
            "--score",
            "--mask",
            "--min-score",
            "--layers",
            "--layer-tolerance",
            "--layer-chunk",
            "--json",
            "--batch",
        ),
    ),
    "build": (
        build,
        ("{good.onnx}", "-o", "{out}/e.engine"),
        (
            "--batch",
            "--size",
            "--shape",
            "--precision",
            "--plan",
            "--no-plan",
            "--workspace",
            "--tactic-sources",
            "--timing-cache",
            "--plugins",
            "--device-index",
            "--rebuild",
            "--verbose",
        ),
    ),
    "precision": (
        precision,
        ("convert", "{good.onnx}", "-o", "{out}/half.onnx"),
        ("--plan", "-o", "--output", "--json", "plan", "search"),
    ),
    "run": (
        run_model,
        (
            "{good.onnx}",
            "--random",
            "1",
            "--output-dir",
            "{out}",
            "--backend",
            "onnxruntime",
            "--threads",
            "1",
        ),
        ("--input", "--random", "--shape", "--output-dir", "--repeat", "--backend", "--device", "--threads"),
    ),
    "quantize": (
        quantize,
        ("{good.onnx}", "--images", "{1.png}", "-o", "{out}/q.onnx", "--threads", "1"),
        (
            "--images",
            "-o",
            "--activations",
            "--method",
            "--percentile",
            "--batch",
            "--cache",
            "--plan",
            "--leave-out",
            "--reduce-range",
            "--as-is",
            "--report",
            "--worst",
            "--ap-drop",
            "--dataset",
            "--limit",
        ),
    ),
    "graft": (
        graft,
        ("{good.onnx}", "--head", "scrfd", "-o", "{out}/g.onnx", "--images", "{1.png}"),
        (
            "--head",
            "-o",
            "--size",
            "--dynamic-size",
            "--classes",
            "--score",
            "--iou",
            "--max-per-img",
            "--pre-nms",
            "--resize-with",
            "--images",
            "--no-verify",
        ),
    ),
    "export": (
        export,
        ("{annotations.json}", "{good.npz}", "-o", "{out}/m.onnx"),
        (
            "-o",
            "--size",
            "--dynamic-size",
            "--masks",
            "--opset",
            "--max-per-img",
            "--no-simplify",
            "--no-verify",
            "--images",
            "--device",
            "--trust-checkpoint",
            "--allow-mismatch",
        ),
    ),
}
VALUES = (
    *(
        "",
        " ",
        "0",
        "1",
        "-1",
        "2",
        "1000000",
        "99999999999999999999",
        "1e9",
        "0.5",
        "nan",
        "inf",
        "-inf",
        "None",
        "x",
        "auto",
        "cpu",
        "cuda",
    ),
    *(
        "tensorrt",
        "onnxruntime",
        "foo",
        "always",
        "never",
        "fp16",
        "full",
        "800x1216",
        "0x0",
        "-1x-1",
        "64x96",
        "images=1x3,1x3,1x3",
        "=",
        "a=1,2",
    ),
    *(
        "{good.onnx}",
        "{good.npz}",
        "{annotations.json}",
        "{1.png}",
        "{.}",
        "{nothing}",
        "{out}",
        "{out}/new",
        "{fifo}",
        "{nothing}/x/y",
    ),
    *(
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/proc/self/mem",
        "/",
        ".",
        "..",
        "~",
        "*",
        "[",
        "{.}/*.png",
        "{.}/**",
        "-",
        "--",
        "a" * 300,
        "a/" * 3000,
    ),
    *(
        "\udcff",
        "\udcff.png",
        "new\nline",
        "\x1b[31m",
        "é",
        "\ud7ff",
        "file:///x",
        "https://x/y.pth",
        "C:\\x",
        "%s",
        "'",
        "\\",
        "$(x)",
        "none",
    ),
)
# Options that name a file to be written.
OUTPUTS = ("-o", "--output", "--json", "--timing-cache", "--report", "--cache")
# What a good line's threads would be; so many at once are refused by name.
ENVIRONMENT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("MASKRCNN_MAX_RECORDING_BYTES", ("", "0", "-1", "x", "1e9", "999999999999999999999", "10")),
    # What is no number there ends the process while cv2 is imported.
    ("OPENCV_IO_MAX_IMAGE_PIXELS", ("1", "0", "100000000000")),
    ("PYTHONIOENCODING", ("ascii", "latin-1", "utf-16", "cp037", "ascii:strict")),
    ("LC_ALL", ("C", "POSIX", "xx_YY.UTF-8", "")),
    ("LANG", ("C", "\udcff")),
    ("PYTHONUTF8", ("0", "1")),
    ("TERM", ("", "dumb", "xterm-256color", "\udcff")),
    ("COLUMNS", ("0", "1", "-1", "x", "99999999")),
    ("LINES", ("0", "x")),
    ("NO_COLOR", ("", "1")),
    ("FORCE_COLOR", ("1",)),
    ("TMPDIR", ("/nothing", "/dev/null", "")),
    ("HOME", ("/nothing", "", "/dev/null")),
    ("OMP_NUM_THREADS", ("0", "-1", "x", "1")),
    ("PYTHONWARNINGS", ("error", "ignore")),
    ("PYTHONOPTIMIZE", ("1", "2")),
    ("PYTHONDONTWRITEBYTECODE", ("1",)),
    ("MASKRCNN_PLUGINS", ("/nothing", "", "/dev/zero")),
    ("XDG_CACHE_HOME", ("/nothing",)),
    ("CUDA_VISIBLE_DEVICES", ("", "x", "-1")),
)


def arguments(folder: Path, random: np.random.Generator) -> Trial:
    """Change a good command line, and run it."""
    materials.write_good(folder)
    os.mkfifo(folder / "fifo")
    name = pick(random, list(COMMANDS))
    main, good, options = COMMANDS[name]
    line = list(good)
    for _ in range(1 + int(random.integers(3) == 0)):
        _change(line, options, random)
    filled = [_filled(word, folder) for word in line]
    said = f"{name} {' '.join(line)}"[:300]

    def run() -> int:
        os.chdir(out)
        return main(filled)

    out = folder / "out"
    out.mkdir()
    return Trial(said, run, (), True, outputs=out, may_change=_outputs(filled, folder), may_add=True)


def _outputs(line: list[str], folder: Path) -> tuple[Path, ...]:
    """Return files that a line names as outputs alone."""
    pairs = [word.split("=", 1) if word.startswith("--") and "=" in word else [word] for word in line]
    words = [word for pair in pairs for word in pair]
    named = [b for a, b in zip(words, words[1:]) if a in OUTPUTS]
    is_searched = str(folder) in words or any("*" in word for word in words)
    return tuple(Path(name) for name in named if words.count(name) == 1 and not is_searched)


def _change(line: list[str], options: tuple[str, ...], random: np.random.Generator) -> None:
    kind, at = int(random.integers(6)), int(random.integers(len(line)))
    if kind == 0:
        line += [pick(random, options), pick(random, VALUES)]
    elif kind == 1:
        line += [f"{pick(random, options)}={pick(random, VALUES)}"]
    elif kind == 2:
        line[at] = pick(random, VALUES)
    elif kind == 3 and len(line) > 1:
        del line[at]
    elif kind == 4:
        line.insert(at, pick(random, (*VALUES, *options)))
    else:
        line[at] = pick(random, (line[at] * 2, line[at][:-1], line[at].upper(), "{1.png}"))


def _filled(word: str, folder: Path) -> str:
    for name in ("1.png", "2.png", "good.onnx", "good.npz", "annotations.json", "nothing", "out", "fifo"):
        word = word.replace(f"{{{name}}}", str(folder / name))
    return word.replace("{.}", str(folder))


def names(folder: Path, random: np.random.Generator) -> Trial:
    """Give an image, a folder, a model or an output a name that is hard to handle."""
    materials.write_images(folder)
    model, out = folder / "good.onnx", folder / "out"
    model.write_bytes(materials.fake_model())
    name = os.fsdecode(pick(random, NAMES))
    kind = int(random.integers(5))
    common = ["--threads", "1", "--backend", "onnxruntime"]
    if kind < 2:
        image = folder / name
        image.write_bytes(materials.images()["1.png"])
        lines = [str(image), str(folder / "1.png")]
        if kind == 1:
            lines = [str(folder)]
        arguments = [*lines, "--model", str(model), "--out", str(out), *common]
        return Trial(
            f"an image {name!r}",
            lambda: infer(arguments),
            (str(image),),
            True,
            lambda: wrong_results(out),
            out,
        )
    if kind == 2:
        target = out / f"{os.fsdecode(os.fsencode(name)[:200])}.npz"
        arguments = [str(model), "--images", str(folder / "1.png"), "-o", str(target), *common]

        def check() -> str:
            return "" if len(read_recording(target).images) == 1 else "no image in it"

        return Trial(f"a recording {name!r}", lambda: record(arguments), (), True, check, out)
    if kind == 3:
        inner = folder / name.replace("~", "tilde")
        inner.mkdir()
        (inner / "a.png").write_bytes(materials.images()["1.png"])
        arguments = [str(inner), "--model", str(model), "--out", str(inner / "out"), *common]
        results = inner / "out"
        return Trial(
            f"a folder {name!r}", lambda: infer(arguments), (), True, lambda: wrong_results(results), results
        )
    other = folder / f"{os.fsdecode(os.fsencode(name)[:200])}.onnx"
    other.write_bytes(materials.fake_model())
    target = f"{other}.plan.json" if random.random() < 0.5 else str(out / "p.json")
    arguments = ["plan", str(other), "-o", target]
    return Trial(
        f"a model {name!r}", lambda: precision(arguments), (), True, outputs=out, may_change=(Path(target),)
    )


def environments(folder: Path, random: np.random.Generator) -> Trial:
    """Run a command of its own, with other variables, or with standard streams that are closed, full or not UTF-8."""
    materials.write_good(folder)
    odd = folder / "caf\udce9 é.png"
    odd.write_bytes(materials.images()["1.png"])
    changes = {name: pick(random, values) for name, values in _some(ENVIRONMENT, random)}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        **changes,
    }
    stream = pick(random, ("", ">&-", "2>&-", ">/dev/full", "2>/dev/full", "| head -c 1", "<&-"))
    module, line = pick(
        random,
        (
            (
                "runtime.infer",
                [
                    str(odd),
                    "--model",
                    str(folder / "good.onnx"),
                    "--out",
                    str(folder / "out"),
                    "--threads",
                    "1",
                ],
            ),
            (
                "runtime.evaluate",
                [
                    str(folder / "good.npz"),
                    "--images",
                    str(folder),
                    "--annotations",
                    str(folder / "annotations.json"),
                ],
            ),
            (
                "runtime.record",
                [
                    str(folder / "good.onnx"),
                    "--images",
                    str(odd),
                    "-o",
                    str(folder / "out" / "r.npz"),
                    "--threads",
                    "1",
                ],
            ),
        ),
    )
    script = f'set -o pipefail; "$@" {stream}'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", module, *line]
    out = folder / "out"

    def run() -> int:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
        print((done.stdout + done.stderr).decode(errors="replace"), file=sys.stderr)
        if "2>" in stream and done.returncode == 2:
            print("error: cannot say what it is", file=sys.stderr)
        return 0 if done.returncode == 141 and "head" in stream else done.returncode

    def check() -> str:
        return wrong_results(out) if module == "runtime.infer" else ""

    return Trial(f"{module} {stream} {changes}", run, (), True, check, out)


def _some(items: Sequence[Any], random: np.random.Generator) -> list[Any]:
    chosen = random.choice(len(items), int(random.integers(0, 4)), replace=False)
    return [items[int(index)] for index in chosen]
