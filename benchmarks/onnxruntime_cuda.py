"""``python -m benchmarks.onnxruntime_cuda MODEL IMAGES --out FOLDER``: where the time of onnxruntime on CUDA goes.

In FP32 (TF32) and typed FP16, at batch 1, 2 and 8: latency with inputs and outputs bound and not, under other options
of the provider; the time of each operator, with the device waited for after every kernel (``CUDA_LAUNCH_BLOCKING``),
and the provider that it runs on; the nodes on the CPU and the copies; the kernels as CUPTI sees them, where PyTorch is
installed. Each part runs in a process of its own, since CUDA's libraries have to be found without PyTorch; one that
fails is told and the others go on. Everything goes into ``FOLDER/onnxruntime_cuda.json``.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import onnxruntime

from benchmarks.latency.measure import spread
from benchmarks.latency.onnxruntime_side import run_on_device
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.cli import CommandParser
from runtime.files import working_folder
from runtime.graphs.cuda_provider import CUDA, loaded_libraries, preload
from runtime.graphs.load import load_onnx, metadata_of
from runtime.host.preprocess import Batch, prepare
from runtime.images import read_image
from runtime.metadata import ModelMetadata

BATCHES = (1, 2, 8)
# Options of the provider beside those that the runtime sets: by precision of the file.
VARIANTS: dict[str, dict[str, dict[str, str]]] = {
    "fp32": {
        "default": {},
        "heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
        "algo default": {"cudnn_conv_algo_search": "DEFAULT"},
        "no tf32": {"use_tf32": "0"},
        "nhwc": {"prefer_nhwc": "1"},
        "nhwc, heuristic": {"prefer_nhwc": "1", "cudnn_conv_algo_search": "HEURISTIC"},
        "small workspace": {"cudnn_conv_use_max_workspace": "0"},
        "cuda graph": {"enable_cuda_graph": "1"},
        "fused bias": {"fuse_conv_bias": "1"},
    },
    "fp16": {
        "default": {},
        "heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
        "nhwc": {"prefer_nhwc": "1"},
        "nhwc, heuristic": {"prefer_nhwc": "1", "cudnn_conv_algo_search": "HEURISTIC"},
    },
}
RUNTIME_OPTIONS = {"use_tf32": "1", "fuse_conv_bias": "0"}
# The parts in the order of what they tell; what time is left decides how many of them run.
_LEAST, _MOST, _SECONDS, _WARMUP = 5, 40, 1.0, 2
_PROFILED_RUNS = 5
_TOP = 15
_PART_SECONDS = 110
_Run = Callable[[], Any]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and write the JSON, or run one part of it."""
    args = _parser().parse_args(argv)
    if args.part is not None:
        # A line of its own, behind whatever a library prints.
        print("\n" + json.dumps(_PARTS[args.part[0]](args, *args.part[1:])))
        return 0
    results = _measured(args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "onnxruntime_cuda.json").write_text(json.dumps(results, indent=1) + "\n")
    print(_report(results))
    return 0


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    """Run every part for which there is time left."""
    deadline = time.monotonic() + args.seconds
    with working_folder() as folder:
        half = folder / "fp16.onnx"
        command = [sys.executable, "-m", "runtime.precision", "convert", str(args.model), "-o", str(half)]
        # On another core, while FP32 is measured.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as converting:
            results: dict[str, Any] = {}
            for part in _schedule():
                if "fp16" in part and "convert" not in results:
                    results["convert"] = {"said": converting.communicate(timeout=300)[0].strip()[-300:]}
                results["/".join(part)] = _in_a_process(args, half, part, deadline)
    return results


def _schedule() -> Iterator[tuple[str, ...]]:
    yield ("environment",)
    yield "latency", "fp32", "default"
    yield "images", "fp32"
    yield "kernels", "fp32"
    for batch in BATCHES:
        yield "profile", "fp32", str(batch)
    yield "latency", "fp16", "default"
    yield "kernels", "fp16"
    for batch in BATCHES:
        yield "profile", "fp16", str(batch)
    for precision, variants in VARIANTS.items():
        yield from (("latency", precision, name) for name in variants if name != "default")
        yield "backend", precision
    yield ("agreement",)


def _in_a_process(
    args: argparse.Namespace, half: Path, part: tuple[str, ...], deadline: float
) -> dict[str, Any]:
    left = min(_PART_SECONDS, deadline - time.monotonic())
    if left < 5:
        return {"error": "no time left"}
    command = [sys.executable, "-m", "benchmarks.onnxruntime_cuda", str(args.model), str(args.images)]
    command += ["--half", str(half), "--part", *part]
    environment = {**os.environ, "CUDA_LAUNCH_BLOCKING": "1" if part[0] == "profile" else "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {left:.0f} s"}
    if done.returncode != 0:
        return {"error": " ".join((done.stderr or done.stdout).strip()[-400:].split())}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.onnxruntime_cuda", doc=__doc__)
    parser.add_argument("model", type=Path, help="an exported .onnx in FP32, masks crop")
    parser.add_argument("images", type=Path, help="a folder with eight .jpg or more")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the JSON (default: here)")
    parser.add_argument("--seconds", type=float, default=330, help="after which no part begins")
    parser.add_argument("--half", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    return parser


# The parts: each runs alone in its process.


def _environment(args: argparse.Namespace) -> dict[str, Any]:
    """Find the libraries as the runtime does."""
    del args
    missing = preload(onnxruntime)
    return {
        "onnxruntime": onnxruntime.__version__,
        "build": onnxruntime.get_build_info(),
        "providers": onnxruntime.get_available_providers(),
        "missing": missing,
        "libraries": [str(Path(*Path(file).parts[-4:])) for file in loaded_libraries()],
    }


def _latency(args: argparse.Namespace, precision: str, variant: str) -> dict[str, Any]:
    """Return ms by batch and way."""
    session = _session(_file(args, precision), VARIANTS[precision][variant])
    found: dict[str, Any] = {"active": session.get_providers()[0]}
    for size in BATCHES:
        batch = _batch(args, range(size))
        found[str(size)] = {"bound": _times(run_on_device(session, batch))}
        if variant == "default":
            feeds = {"images": batch.images, "image_sizes": batch.image_sizes}
            found[str(size)]["not bound"] = _times(lambda feeds=feeds: session.run(None, feeds))
    return found


def _images(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Return ms of single images, and of batches of one image several times: is it the images, or the batch?"""
    session = _session(_file(args, precision), {})
    found: dict[str, Any] = {}
    for index in range(max(BATCHES)):
        batch = _batch(args, [index])
        (count,) = session.run(["num_dets"], {"images": batch.images, "image_sizes": batch.image_sizes})
        found[str(index)] = {"num_dets": int(count[0]), **_times(run_on_device(session, batch), seconds=0.3)}
    for size in (2, 3, 4):
        found[f"{size} times 0"] = _times(run_on_device(session, _batch(args, [0] * size)), seconds=0.3)
    return found


def _profile(args: argparse.Namespace, precision: str, size: str) -> dict[str, Any]:
    """Return onnxruntime's own profile, per run: ms by operator and provider, nodes on the CPU, copies."""
    with working_folder() as folder:
        session = _session(_file(args, precision), {}, profile=str(folder / "profile"))
        run = run_on_device(session, _batch(args, range(int(size))))
        for _ in range(_WARMUP + _PROFILED_RUNS):
            run()
        events = json.loads(Path(session.end_profiling()).read_text())
    return _summed(events)


def _summed(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum the last runs' node events."""
    runs = sorted(
        (e["ts"], e["ts"] + e["dur"])
        for e in events
        if e.get("name") == "model_run" and e.get("cat") == "Session"
    )[-_PROFILED_RUNS:]
    nodes = [
        e
        for e in events
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time") and e["ts"] >= runs[0][0]
    ]
    ms: dict[tuple[str, str], float] = defaultdict(float)
    slowest: dict[str, float] = defaultdict(float)
    places: dict[str, str] = {}
    for event in nodes:
        name, op = event["name"][: -len("_kernel_time")], event["args"]["op_name"]
        provider = event["args"].get("provider", "").replace("ExecutionProvider", "")
        ms[op, provider] += event["dur"] / 1e3 / len(runs)
        slowest[f"{name} ({op}, {provider})"] += event["dur"] / 1e3 / len(runs)
        places[name] = f"{provider}: {op}"
    return {
        "runs": len(runs),
        "run_ms": float(np.median([(end - start) / 1e3 for start, end in runs])),
        "operators": [
            [op, provider, t] for (op, provider), t in sorted(ms.items(), key=lambda item: -item[1])
        ],
        "counts": Counter(place.partition(":")[0] for place in places.values()),
        "nodes": sorted(slowest.items(), key=lambda item: -item[1])[: 4 * _TOP],
        "cpu": {n: p.partition(": ")[2] for n, p in places.items() if p.startswith("CPU")},
        "copies": [n for n, p in places.items() if "Memcpy" in p],
    }


def _kernels(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Return ms and launches by kernel per run, as CUPTI traces them through PyTorch."""
    session = _session(_file(args, precision), {})
    runs = {size: run_on_device(session, _batch(args, range(size))) for size in BATCHES}
    for run in runs.values():
        for _ in range(_WARMUP):
            run()
    return {str(size): _traced(run) for size, run in runs.items()}


def _traced(run: _Run) -> dict[str, Any]:
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        start = time.perf_counter()
        for _ in range(_PROFILED_RUNS):
            run()
        wall = (time.perf_counter() - start) * 1e3 / _PROFILED_RUNS
    with working_folder() as folder:
        profiler.export_chrome_trace(str(folder / "trace.json"))
        events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    ms: dict[str, float] = defaultdict(float)
    launches: Counter[str] = Counter()
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            name = _short(event["name"])
            ms[name] += event["dur"] / 1e3 / _PROFILED_RUNS
            launches[name] += 1
    return {
        "wall_ms": wall,
        "device_ms": sum(ms.values()),
        "kernels": [
            [n, t, launches[n] / _PROFILED_RUNS] for n, t in sorted(ms.items(), key=lambda item: -item[1])
        ],
    }


def _short(kernel: str) -> str:
    """Return a kernel's name without its types and namespaces."""
    name = re.sub(
        r"\(anonymous namespace\)::|\b(onnxruntime|cuda|cub|thrust|cudnn|detail)::|^void ", "", kernel
    )
    return re.split(r"[<(]", name)[0][:60] if not name.startswith(("Memcpy", "Memset")) else name


def _backend(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Return ms of the runtime's own backend, with the batch in page-locked and in ordinary memory."""
    backend = OnnxRuntimeBackend(_file(args, precision), device="cuda")
    found: dict[str, Any] = {"notes": backend.notes}
    memory = backend._memory
    for size in BATCHES:
        plain = _batch(args, range(size))
        found[str(size)] = {"ordinary": _times(lambda b=plain: backend.run(b.images, b.image_sizes))}
        if memory is not None:
            images = memory.empty(plain.images.shape, plain.images.dtype)
            np.copyto(images, plain.images)
            sizes = plain.image_sizes
            found[str(size)]["page-locked"] = _times(lambda i=images, s=sizes: backend.run(i, s))
    return found


def _agreement(args: argparse.Namespace) -> dict[str, Any]:
    """Return how many of the CPU's detections each finds again, and how far off, batch 1 and 2."""
    expected = [_outputs(OnnxRuntimeBackend(args.model), args, [i]) for i in range(4)]
    found = {}
    for name, file, options in (
        ("fp32", args.model, {"precision": "fp32"}),
        ("tf32", args.model, {}),
        ("fp16", args.half, {}),
    ):
        backend = OnnxRuntimeBackend(file, device="cuda", **options)
        ones = [_outputs(backend, args, [i]) for i in range(4)]
        twos = [_outputs(backend, args, pair) for pair in ([0, 1], [2, 3])]
        found[name] = {
            "batch 1": _compared(expected, ones),
            "batch 2": _compared(expected, [row for pair in twos for row in _rows(pair)]),
        }
        backend.close()
    return found


def _outputs(
    backend: OnnxRuntimeBackend, args: argparse.Namespace, indices: Sequence[int]
) -> dict[str, np.ndarray]:
    batch = _batch(args, indices)
    return backend.run(batch.images, batch.image_sizes)


def _rows(outputs: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for index in range(len(outputs["num_dets"])):
        yield {name: array[index : index + 1] for name, array in outputs.items()}


def _compared(
    expected: Sequence[dict[str, np.ndarray]], found: Sequence[dict[str, np.ndarray]]
) -> dict[str, Any]:
    """Match detections of a label whose corners are within 10 px."""
    total = matched = 0
    worst_px = worst_mask = 0.0
    for one, other in zip(expected, found):
        num, other_num = int(one["num_dets"][0]), int(other["num_dets"][0])
        total += num
        free = set(range(other_num))
        for row in range(num):
            off = {
                j: float(np.abs(one["dets"][0, row, :4] - other["dets"][0, j, :4]).max())
                for j in free
                if one["labels"][0, row] == other["labels"][0, j]
            }
            best = min(off, key=lambda j: off[j], default=None)
            if best is None or off[best] > 10:
                continue
            free.remove(best)
            matched += 1
            worst_px = max(worst_px, off[best])
            worst_mask = max(worst_mask, float(np.abs(one["masks"][0, row] - other["masks"][0, best]).max()))
    return {"expected": total, "matched": matched, "box_px": worst_px, "mask_probability": worst_mask}


_PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "environment": _environment,
    "latency": _latency,
    "images": _images,
    "profile": _profile,
    "kernels": _kernels,
    "backend": _backend,
    "agreement": _agreement,
}


def _file(args: argparse.Namespace, precision: str) -> Path:
    return args.half if precision == "fp16" else args.model


def _batch(args: argparse.Namespace, indices: Sequence[int]) -> Batch:
    paths = sorted(args.images.glob("*.jpg"))
    metadata = _metadata(args.model)
    return prepare([read_image(paths[i], metadata.load) for i in indices], metadata)


@functools.cache
def _metadata(model: Path) -> ModelMetadata:
    return metadata_of(load_onnx(model))


def _session(
    model: Path, options: dict[str, str], profile: Optional[str] = None
) -> onnxruntime.InferenceSession:
    preload(onnxruntime)
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 3
    if profile is not None:
        session_options.enable_profiling, session_options.profile_file_prefix = True, profile
    providers = [(CUDA, {**RUNTIME_OPTIONS, **options}), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(
        str(model), session_options, providers=providers, enable_fallback=0
    )
    if session.get_providers()[0] != CUDA:
        raise RuntimeError(f"expected a session on CUDA, found {session.get_providers()}")
    return session


def _times(run: _Run, seconds: float = _SECONDS) -> dict[str, float]:
    """Return the spread of its ms, and those of its first run."""
    start = time.perf_counter()
    run()
    first = (time.perf_counter() - start) * 1e3
    for _ in range(_WARMUP):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST or (len(times) < _MOST and time.perf_counter() < end):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return {**spread(times), "first": first}


# The report.

_MOST_CHARACTERS = 9900


def _report(results: dict[str, Any]) -> str:
    lines = [f"{name}: {json.dumps(results.get(name))[:900]}" for name in ("environment", "convert")]
    lines += [f"FAILED {name}: {part['error'][:230]}" for name, part in results.items() if "error" in part]
    good = {n: p for n, p in results.items() if isinstance(p, dict) and "error" not in p}
    for name, part in good.items():
        kind = name.partition("/")[0]
        if kind in ("latency", "backend"):
            lines.append(
                f"{name}: " + "; ".join(_latency_words(size, part[size]) for size in map(str, BATCHES))
            )
        elif kind == "images":
            words = (
                f"{n} {t['median']:.1f}" + (f" ({t['num_dets']})" if "num_dets" in t else "")
                for n, t in part.items()
            )
            lines.append(f"{name}, ms (detections): " + "; ".join(words))
        elif kind == "profile":
            lines += _profile_lines(name, part, in_full=name.endswith("fp32/1"))
        elif kind == "kernels":
            lines += _kernel_lines(name, part)
        elif kind == "agreement":
            lines.append(f"{name}: {json.dumps(part)}")
    return "\n".join(lines)[:_MOST_CHARACTERS]


def _latency_words(size: str, ways: dict[str, Any]) -> str:
    return f"B{size} " + ", ".join(
        f"{way} {t['median']:.1f} (first {t['first']:.0f})" for way, t in ways.items()
    )


def _profile_lines(name: str, part: dict[str, Any], *, in_full: bool) -> Iterator[str]:
    operators = ", ".join(
        f"{op}{'' if p == 'CUDA' else '@' + p} {t:.2f}" for op, p, t in part["operators"][:_TOP]
    )
    yield f"{name}: run {part['run_ms']:.1f} ms, nodes {dict(part['counts'])}; {operators}"
    yield "  slowest nodes: " + ", ".join(f"{n.rpartition('/')[2]} {t:.2f}" for n, t in part["nodes"][:6])
    if in_full:
        yield (
            "  on the CPU: "
            + ", ".join(f"{n.rpartition('/')[2]} {op}" for n, op in part["cpu"].items())[:1500]
        )
        yield "  copies: " + ", ".join(part["copies"])[:700]


def _kernel_lines(name: str, part: dict[str, Any]) -> Iterator[str]:
    """Each kernel's ms at every batch, the most of the largest batches' first."""
    ms = {size: {n: (t, k) for n, t, k in part[size]["kernels"]} for size in part}
    totals = ", ".join(f"B{s} {p['wall_ms']:.1f} (device {p['device_ms']:.1f})" for s, p in part.items())
    yield f"{name}: {totals}; kernel ms at B{'/'.join(part)} (launches at B1)"
    order = sorted(
        {n for kernels in ms.values() for n in kernels},
        key=lambda n: -max(k.get(n, (0,))[0] for k in ms.values()),
    )
    for kernel in order[:_TOP]:
        times = "/".join(f"{kernels.get(kernel, (0, 0))[0]:.2f}" for kernels in ms.values())
        yield f"  {kernel} {times} ({ms['1'].get(kernel, (0, 0))[1]:.0f})"


if __name__ == "__main__":
    raise SystemExit(main())
