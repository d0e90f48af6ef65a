"""Run any model by its tensors' names: ``python -m runtime.run MODEL --input x=x.npy --output-dir out``.

Prints every input and output with its dtype, shape and range, and how long a run takes; writes each output as an
``.npy``. The exit status is 0, 2 if nothing could be run, or 130 or 143 after SIGINT or SIGTERM.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from runtime.backends import BACKENDS
from runtime.cli import EXIT_OK, CommandParser, add_tensor_inputs, command, count, run_as_program, threads


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    # Only now: signals are handled, and arguments known to be good.
    from runtime.console import status
    from runtime.files import refuse_inputs
    from runtime.session import Session
    from runtime.tensor_files import (
        made_feeds,
        output_paths,
        print_tensors,
        read_inputs,
        timed,
        write_outputs,
    )

    given, files = read_inputs(args.input)
    with status(f"loading {args.model}"):
        opened = Session(args.model, args.backend, device=args.device, threads=args.threads)
    with opened as session:
        paths = output_paths(session.outputs, args.output_dir) if args.output_dir else {}
        for path in paths.values():
            refuse_inputs(path, [args.model, *files])
        feeds = made_feeds(args.model, session.inputs, given, args.shape, args.random)
        outputs, milliseconds = timed(session, feeds, args.repeat)
    print_tensors(feeds, outputs)
    print(f"{args.repeat} run{'s' if args.repeat > 1 else ''}: {milliseconds:.2f} ms (median)")
    write_outputs(outputs, paths)
    if paths:
        print(f"wrote {', '.join(path.name for path in paths.values())} to {args.output_dir}")
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m runtime.run", doc=__doc__)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="any ONNX, or an engine with its sidecar")
    add_tensor_inputs(parser)
    add("--output-dir", type=Path, help="write each output as NAME.npy (default: write nothing)")
    add(
        "--repeat",
        type=count(10**6),
        default=1,
        help="runs, of which the median is told (default: %(default)s)",
    )
    add("--backend", choices=BACKENDS, default="auto", help="default: by the model's suffix")
    add("--device", choices=("cpu", "cuda"), help="of onnxruntime (default: cpu)")
    add("--threads", type=threads, help="CPU threads (default: as many as there are cores)")
    return parser


if __name__ == "__main__":
    run_as_program(main)
