"""A real Triton on the CPU, out of PyPI's nvidia-pytriton, in an environment of its own.

It bundles the server and its Python backend, and no other backend. ``MASKRCNN_TEST_TRITON`` names the environment::

    python3 -m venv triton && triton/bin/pip install 'numpy<2' nvidia-pytriton 'opencv-python-headless<4.12' \\
        onnxruntime pycocotools rich
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "MASKRCNN_TEST_TRITON"
ROOT = Path(__file__).parents[3]
START_SECONDS = 60


@contextmanager
def running(environment: Path, repository: Path, folder: Path) -> Iterator[str]:
    """Start a server on a free port of this machine, yield HOST:PORT once it is ready, and end it."""
    site = next((environment / "lib").glob("python3.*/site-packages"))
    server = folder / "tritonserver"
    source = site / "pytriton" / "tritonserver"
    shutil.copytree(source, server, ignore=shutil.ignore_patterns("python_backend_stubs"))
    version = site.parent.name.removeprefix("python")
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(source / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    program = server / "bin" / "tritonserver"
    program.chmod(0o755)
    port = _free_port()
    variables = {
        **os.environ,
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{site}",
        "LD_LIBRARY_PATH": f"{site / 'nvidia_pytriton.libs'}:{_libpython()}",
    }
    command = [
        *(str(program), f"--model-repository={repository}", f"--backend-directory={server / 'backends'}"),
        *("--allow-grpc=false", "--allow-metrics=false", f"--http-port={port}", "--http-address=127.0.0.1"),
    ]
    log = folder / "triton.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(process, port, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(f"Triton is not ready:\n{log.read_text(errors='replace')[-4000:]}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _libpython() -> str:
    import sysconfig

    return sysconfig.get_config_var("LIBDIR") or str(Path(sys.prefix) / "lib")
