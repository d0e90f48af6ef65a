"""The plugin library inside TensorRT: what concerns every operator, and the cases of them all.

Each operator's module ``<op>/plugin.py`` says what it takes and gives. Python 3.9, TensorRT, NumPy, cuda-python; no
torch, no pytest.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import tensorrt as trt

from tests.gpu import trt_harness as harness
from tests.gpu.multi_level_roi_align import plugin as multi_level_roi_align
from tests.gpu.trt_harness import Input

THREAD_SECONDS = 600
ONNX_VARIABLE = "MASKRCNN_TEST_ONNX"  # a folder with the files of tests/gpu/onnx_models.py
PLUGINS: list[ModuleType] = [
    importlib.import_module(f"tests.gpu.{path.parent.name}.plugin")
    for path in sorted(Path(__file__).parent.glob("*/plugin.py"))
]


def rows_of(table: str) -> list[tuple]:
    """Return the rows of a table that an operator's module may have, each after the module."""
    return [(plugin, *row) for plugin in PLUGINS for row in getattr(plugin, table, ())]


def case_registered() -> dict:
    """Every creator is there; handing them to loadLibrary and registering them again works."""
    ops = [op for plugin in PLUGINS for op in plugin.OPS]
    missing = [op for op in ops if harness.find_creator(op) is None]
    assert not missing, f"expected creators {ops}, missing {missing}"
    library = harness.load_library()
    registered = library.maskrcnn_plugins_register()
    assert registered == len(ops), f"expected {len(ops)} registered creators, found {registered}"
    return {"creators": ops, "compiled_for_tensorrt": library.maskrcnn_plugins_tensorrt_version()}


def case_refused_attributes() -> dict:
    rows = rows_of("REFUSED")
    for _, op, attributes, words in rows:
        harness.LOG.errors.clear()
        assert harness.create_plugin(op, attributes) is None, f"{op} accepted {attributes}"
        assert any(words in message for message in harness.LOG.errors), (words, harness.LOG.errors)
    return {"refused": len(rows), "example": harness.LOG.errors[-1]}


def case_serialised_attributes() -> dict:
    """What IPluginV2 stores is read back, and anything else is refused."""
    if harness.TRT_MAJOR >= 10:
        return {"skipped": "IPluginV3 stores its fields through TensorRT"}
    creator = harness.find_creator("MultiLevelRoiAlign")
    stored = bytes(harness.create_plugin("MultiLevelRoiAlign", multi_level_roi_align.ATTRIBUTES).serialize())
    again = creator.deserialize_plugin("plugin", stored)
    assert bytes(again.serialize()) == stored
    damaged = [
        stored[:-1],
        stored[:6],
        stored + b"x",
        b"XXXX" + stored[4:],
        stored[:4] + b"\x09" + stored[5:],
        b"M",
    ]
    for data in damaged:
        harness.LOG.errors.clear()
        assert creator.deserialize_plugin("plugin", data) is None
        assert any("rebuild it" in message or "attribute" in message for message in harness.LOG.errors)
    return {"bytes": len(stored), "damaged_refused": len(damaged)}


def case_new_process() -> dict:
    """An engine written by this process gives the same results in another one."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for plugin, plan, feeds in stored_engines():
            op = plugin.OPS[0]
            Path(folder, "plan").write_bytes(plan)
            np.savez(Path(folder, "feeds.npz"), **feeds)
            here = harness.run_once(harness.engine_from(plan), feeds)
            command = [sys.executable, "-m", "tests.gpu.plugins_report", "--replay", folder]
            done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr[-2000:]
            with np.load(Path(folder, "results.npz")) as there:
                for name, array in here.items():
                    np.testing.assert_array_equal(there[name], array, err_msg=f"{op} {name}")
            results[op] = f"equal, engine of {len(plan)} bytes"
    return results


def stored_engines() -> Iterator[tuple[ModuleType, bytes, dict]]:
    """Yield each operator with an engine of it and inputs."""
    for plugin in (plugin for plugin in PLUGINS if hasattr(plugin, "make_feeds")):
        op, attributes = plugin.OPS[0], plugin.ATTRIBUTES
        yield (
            plugin,
            harness.plan_of(op, attributes, plugin.make_inputs(), plugin.OUTPUTS),
            plugin.make_feeds(),
        )


def replay(folder: Path) -> None:
    harness.load_library()
    with np.load(folder / "feeds.npz") as stored:
        feeds = {name: stored[name] for name in stored.files}
    results = harness.run_once(harness.engine_from((folder / "plan").read_bytes()), feeds)
    np.savez(folder / "results.npz", **results)


def case_two_contexts() -> dict:
    """Two contexts of one engine with different inputs, on two streams, from two threads, at once."""
    rounds = 200
    for plugin in (plugin for plugin in PLUGINS if hasattr(plugin, "CONTEXT_SIZES")):
        plan = harness.plan_of(
            plugin.OPS[0], plugin.ATTRIBUTES, plugin.make_inputs(), plugin.OUTPUTS, profiles=2
        )
        engine = harness.engine_from(plan)
        feeds = [plugin.make_feeds(*size, seed=i + 1) for i, size in enumerate(plugin.CONTEXT_SIZES)]
        sessions = [harness.Session(engine, f, profile=i) for i, f in enumerate(feeds)]
        expected = [session.run() for session in sessions]
        failures: list[str] = []

        def work(session, wanted, failures=failures) -> None:
            try:
                with harness.new_stream() as stream:
                    for _ in range(rounds):
                        session.enqueue(stream)
                    harness.check(harness.cudart.cudaStreamSynchronize(stream))
                for name, array in session.download().items():
                    np.testing.assert_array_equal(array, wanted[name])
            except Exception:
                failures.append(traceback.format_exc())

        threads = [threading.Thread(target=work, args=pair) for pair in zip(sessions, expected)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(THREAD_SECONDS)
            assert not thread.is_alive()
        for session in sessions:
            session.close()
        assert not failures, failures[0]
    return {"rounds": rounds, "equal": True}


def case_made_up_inputs() -> dict:
    """NaN, infinities, huge boxes and ids in every input: it ends, and the next run is right."""
    results = {}
    for plugin, plan, feeds in stored_engines():
        engine = harness.engine_from(plan)
        start = time.perf_counter()
        for value in (np.nan, np.inf, -np.inf, 1e30, -1e9):
            bad = {k: np.full_like(v, value if v.dtype.kind == "f" else 2**31 - 1) for k, v in feeds.items()}
            harness.run_once(engine, bad)
        results[plugin.OPS[0]] = {"seconds": round(time.perf_counter() - start, 3)}
        result = harness.run_once(engine, feeds)
        plugin.check(result, feeds)
    return results


def case_times() -> dict:
    """Median enqueue, launch overhead included, and the same in a CUDA graph: nothing may need the host."""
    times = {}
    for plugin, kind, batch, dtype in rows_of("TIMED"):
        attributes, feeds = plugin.timed_case(kind, batch, dtype)
        inputs = [Input(name, array.dtype.type, (array.shape,)) for name, array in feeds.items()]
        half = dtype == np.float16
        engine = harness.engine_from(
            harness.plan_of(plugin.OPS[0], attributes, inputs, plugin.OUTPUTS, fp16=half)
        )
        session = harness.Session(engine, feeds)
        name = f"{kind} B={batch}" + ("" if dtype is None else f" {np.dtype(dtype).name}")
        times[name] = {"enqueue_ms": round(session.time_ms(), 4)}
        times[name]["graph_launch_ms"] = round(harness.graph_time_ms(session), 4)
        session.close()
    return times


def case_refused_networks() -> dict:
    """Inputs that cannot be: the build fails with a message, and the process lives."""
    messages = {}
    for plugin, name, attributes, inputs, words in rows_of("BAD_NETWORKS"):
        harness.LOG.errors.clear()
        try:
            harness.plan_of(plugin.OPS[0], attributes, inputs, ["out"])
            raise AssertionError(f"{name}: expected no engine")
        except RuntimeError:
            pass
        assert any(words in message for message in harness.LOG.errors), (name, words, harness.LOG.errors)
        messages[name] = next(message for message in harness.LOG.errors if words in message)
    return messages


def case_onnx_files() -> dict:
    """Files of tests/gpu/onnx_models.py, parsed, built in FP32 and FP16, run."""
    folder = os.environ.get(ONNX_VARIABLE)
    if not folder:
        return {
            "skipped": f"{ONNX_VARIABLE} is not set: it names the folder that tests/gpu/onnx_models.py wrote"
        }
    outcome = {}
    for plugin, name, verify in rows_of("ONNX_FILES"):
        inputs, feeds = plugin.make_inputs(), plugin.make_feeds()
        for fp16 in (False, True):
            net = harness.new_network(fp16=fp16)
            parser = trt.OnnxParser(net.network, harness.LOG)
            parsed = parser.parse(Path(folder, f"{name}.onnx").read_bytes())
            assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
            harness.add_profile(net, inputs)
            engine = harness.engine_from(harness.serialized(net))
            verify(harness.run_once(engine, feeds), feeds)
        outcome[name] = "parsed, built in FP32 and FP16, equal to the oracle"
    return outcome


def all_cases() -> dict:
    """Return the cases by name, in the order of a report: those that might take the process down last."""
    own = [case for plugin in PLUGINS for case in plugin.CASES]
    last = [case for plugin in PLUGINS for case in getattr(plugin, "LAST_CASES", ())]
    cases = [
        case_registered,
        case_refused_attributes,
        case_serialised_attributes,
        *own,
        case_new_process,
        case_two_contexts,
        case_onnx_files,
        case_times,
        case_made_up_inputs,
        case_refused_networks,
        *last,
    ]
    return {case.__name__[len("case_") :]: case for case in cases}


CASES = all_cases()
