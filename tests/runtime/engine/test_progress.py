import time

from runtime.console import heartbeat
from runtime.engine.progress import BuildLog

# Of TensorRT 8.5.3.1, --verbose, a network of four layers; the middle of it left out.
VERBOSE_LOG = """\
Original: 6 layers
After dead-layer removal: 6 layers
Graph construction completed in 0.00012 seconds.
Running: ConstShuffleFusion on (Unnamed Layer* 3) [Constant]
After Myelin optimization: 5 layers
After final dead-layer removal: 3 layers
Graph optimization time: 0.0321 seconds.
=============== Computing costs for\x20
*************** Autotuning format combination: Float(150528,50176,224,1) -> Float(802816,12544,112,1) ***************
--------------- Timing Runner: /backbone/conv1/Conv + /backbone/relu/Relu (CaskConvolution)
Tactic: 0x0a143be7a52f301a Time: 0.0451
Fastest Tactic: 0x0a143be7a52f301a Time: 0.0451
=============== Computing reformatting costs
*************** Autotuning Reformat: Float(1,1) -> Half(1,1) ***************
=============== Computing costs for\x20
=============== Computing costs for\x20
=============== Computing costs for\x20
Formats and tactics selection completed in 12.3 seconds.
After reformat layers: 4 layers
Total Activation Memory: 33554432
"""


def test_a_verbose_log_becomes_phases() -> None:
    seen = []
    log = BuildLog(lambda *step: seen.append(step))
    for line in VERBOSE_LOG.splitlines():
        log("verbose", line)
    assert seen == [
        ("fusing layers", 0, 0),
        ("fusing layers", 0, 0),
        ("fusing layers", 0, 0),
        ("choosing kernels", 1, 3),
        ("choosing kernels", 2, 3),
        ("choosing kernels", 3, 3),
        ("choosing kernels", 3, 3),  # TensorRT looks at some layers twice
        ("writing the engine", 0, 0),
    ]


def phases(log: BuildLog, seen: list, lines: list[str]) -> list:
    """Return what the monitor sees of more lines."""
    start = len(seen)
    for line in lines:
        log("verbose", line)
    return seen[start:]


def test_a_further_build_starts_at_its_first_layer() -> None:
    """After a build without a kernel for some layer, which ends early, and after a whole one."""
    seen: list = []
    log = BuildLog(lambda *step: seen.append(step))
    lines = VERBOSE_LOG.splitlines()
    costs = [i for i, line in enumerate(lines, 1) if line.startswith("=============== Computing costs")]
    early = phases(log, seen, lines[: costs[1]])
    assert early[-1] == ("choosing kernels", 2, 3)
    whole = phases(log, seen, lines)
    assert whole == [
        *[("fusing layers", 0, 0)] * 3,
        *[("choosing kernels", done, 3) for done in (1, 2, 3, 3)],
        ("writing the engine", 0, 0),
    ]
    more = [line.replace("removal: 3 layers", "removal: 4 layers") for line in lines]
    assert more != lines
    assert [step for step in phases(log, seen, more) if step[0] == "choosing kernels"] == [
        ("choosing kernels", done, 4) for done in (1, 2, 3, 4)
    ]


def test_errors_and_each_warning_once_are_kept() -> None:
    log = BuildLog()
    for severity, message in (
        ("warning", "weights are subnormal"),
        ("error", " 2: [builder.cpp] no kernel\n"),
        ("warning", "weights are subnormal"),
        ("warning", "cuDNN is old"),
        ("internal_error", "assertion"),
        ("info", "hello"),
        ("verbose", "After final dead-layer removal: 3 layers"),
    ):
        log(severity, message)
    assert log.errors == ["2: [builder.cpp] no kernel", "assertion"]
    assert log.warnings == ["weights are subnormal", "cuDNN is old"]


def test_every_line_is_echoed() -> None:
    lines = []
    log = BuildLog(echo=lines.append)
    log("info", "hello")
    log("verbose", "Tactic: 0")
    assert lines == ["[info] hello", "[verbose] Tactic: 0"]


def test_the_heart_beats_until_the_work_is_done() -> None:
    beats = []
    with heartbeat(beats.append, seconds=0.02):
        time.sleep(0.15)
    count = len(beats)
    assert count >= 2
    assert beats == sorted(beats)
    assert 0 < beats[0] < 0.15
    time.sleep(0.06)
    assert len(beats) == count


def test_the_heart_stops_with_an_exception() -> None:
    beats = []
    try:
        with heartbeat(beats.append, seconds=0.01):
            raise KeyError
    except KeyError:
        pass
    count = len(beats)
    time.sleep(0.05)
    assert len(beats) == count
