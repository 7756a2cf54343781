"""``python``, ``dvc`` and ``pytest`` without their import time: a warm process forks, and the fork runs the command.

Each command of a workflow is a Python process of its own, and nearly all of its time goes into importing scikit-learn,
MLflow, DVC and pandas. :func:`install` puts stand-ins for the three commands into a folder. A stand-in asks the warm
process, which has imported those packages and nothing of this repository, to fork; the fork takes the caller's
arguments, working directory, environment, umask and open files, runs the same code, and its exit code or signal becomes
the stand-in's. Signals go through; who kills a stand-in kills its fork. Each fork has a keeper, a fork too, that waits
for both ends, so that no command knows of another, and those that run outlive the warm process.

What a warm process cannot give (an option of the interpreter, a hash seed, inherited files) is asked of a fresh
interpreter instead, and so is every command once the warm process is gone: slower, never different. Linux only;
elsewhere every command is.
"""

import atexit
import gc
import io
import marshal
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from contextlib import suppress
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

MOST = 60
"""Commands at a time; a fresh interpreter is asked beyond."""
COMMANDS = ("python", "python3", "dvc", "pytest")
IMPORTED = (
    "_pytest.config",
    "dvc.cli",
    "dvc.commands.repro",
    "dvc.commands.checkout",
    "dvc.repo",
    "dvc.stage.cache",
    "dvc.fs",
    "dvc_data.index",
    "matplotlib.figure",
    "mlflow",
    "multiprocessing.resource_tracker",
    "multiprocessing.spawn",  # takes the interpreter's own path when it is imported
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.tracking",
    "onnxruntime",
    "pandas",
    "pandera.pandas",
    "pyarrow.parquet",
    "rich.console",
    "rich.progress",
    "rich.table",
    "scipy.stats",
    "skl2onnx",
    "sklearn.calibration",
    "sklearn.ensemble",
    "sklearn.inspection",
    "sklearn.pipeline",
    "skops.io",
    "starlette.applications",
    "xml.etree.ElementTree",
    "yaml",
)
"""What scripts of this repository import, a fork of which must be as good as an import."""

_CLIENT = r"""#!{python} -IS
import os, sys
REAL, SOCKET, PYTHON, NAME = {real!r}, {socket!r}, {standin!r}, {name!r}
FRESH = ("PYTHONHASHSEED", "PYTHONHOME", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONUTF8")
arguments = sys.argv[1:]


def fresh():
    os.execv(REAL, [REAL, *arguments])


if any(name in os.environ for name in FRESH):
    fresh()
if NAME.startswith("python") and not (arguments and (arguments[0][:1] != "-" or arguments[0] in ("-m", "-c"))):
    fresh()
if any(int(number) > 2 and os.path.exists("/proc/self/fd/" + number) for number in os.listdir("/proc/self/fd")):
    fresh()  # files that are inherited by their number
import _signal, _socket, marshal

link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
umask = os.umask(0)
os.umask(umask)
try:
    link.connect(SOCKET)
    request = marshal.dumps((PYTHON, NAME, arguments, os.getcwdb(), dict(os.environb), umask))
    request = len(request).to_bytes(8, "little") + request
    files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    sent = link.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)])
    link.sendall(request[sent:])
    answer = link.recv(8)
except OSError:
    answer = b""
if len(answer) != 8:
    fresh()
child = int.from_bytes(answer, "little")
passed_on = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2)
for number in passed_on:
    _signal.signal(number, lambda number, frame: os.kill(child, number))
status = link.recv(8)
if len(status) != 8:
    sys.stderr.write("warm python: nobody can say how " + NAME + " " + " ".join(arguments) + " ended\n")
    os._exit(137)
code = int.from_bytes(status, "little", signed=True)
if code < 0:
    if -code not in (_signal.SIGKILL, _signal.SIGSTOP):
        _signal.signal(-code, _signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class WarmPython:
    """The warm process of a test session; it ends with :meth:`close` or with the process that started it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm")
        self.socket = str(Path(self._folder.name) / "s")  # short: the length of such a name is limited
        self._told = Path(self._folder.name) / "told"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GITHUB_"))}
        environment |= {"MPLCONFIGDIR": self._folder.name, "PYDANTIC_DISABLE_PLUGINS": "__all__"}
        sources = Path(__file__).parents[3] / "src" / "clearway"
        with self._told.open("wb") as told:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, self.socket, str(sources)],
                env=environment,
                cwd=self._folder.name,
                stdin=subprocess.PIPE,
                stderr=told,
                start_new_session=True,
            )
        deadline = time.monotonic() + 300
        while not Path(self.socket).exists():
            assert self._process.poll() is None, f"the warm process did not start: {self.told()}"
            assert time.monotonic() < deadline, "the warm process did not start in five minutes"
            time.sleep(0.05)
        atexit.register(self.close)

    def install(self, folder: Path) -> None:
        """Put the stand-ins for :data:`COMMANDS` into ``folder``, before all else that is there."""
        for name in COMMANDS:
            path = folder / name
            path.unlink(missing_ok=True)
            real = str(Path(sys.executable).parent / name)
            standin = str(folder.absolute() / "python")
            path.write_text(
                _CLIENT.format(python=sys.executable, real=real, socket=self.socket, standin=standin, name=name)
            )
            path.chmod(0o755)

    def told(self) -> str:
        """What it had to say for itself: nothing, if all went well."""
        ended = self._process.poll()
        return self._told.read_text() + ("" if ended is None else f"warm python: ended with {ended}\n")

    def close(self) -> None:
        """End it, and what it forked."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)
        self._folder.cleanup()


# --- in the warm process ---------------------------------------------------------------------------------------------


def _serve(name: str) -> socket.socket:
    """Fork for each caller; returns in the forks only, with the caller's connection."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{name}.new")
    listener.listen(64)
    Path(f"{name}.new").rename(name)
    keepers: set[int] = set()
    while True:
        ready, _, _ = select.select([0, listener], [], [])
        if 0 in ready:  # the tests have ended
            os._exit(0)
        caller, _ = listener.accept()
        keepers = {pid for pid in keepers if os.waitpid(pid, os.WNOHANG) == (0, 0)}
        if len(keepers) >= MOST:
            _tell(f"{MOST} commands at a time: the next one gets a fresh interpreter")
        else:
            keeper = os.fork()
            if keeper == 0:
                listener.close()
                return _keep(caller)
            keepers.add(keeper)
        caller.close()


def _keep(caller: socket.socket) -> socket.socket:
    """Fork once more, and give that fork's end to the caller, or the caller's end to the fork; returns in the fork."""
    child = os.fork()
    if child == 0:
        return caller
    pidfd = os.pidfd_open(child)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    poll.register(caller, select.POLLRDHUP)
    ready = {number for number, _ in poll.poll()}
    if pidfd not in ready:
        _tell(f"{child} is killed: " + ("the tests have ended" if 0 in ready else "its caller is gone"))
        _kill(child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        caller.sendall(code.to_bytes(8, "little", signed=True))
    os._exit(0)


def _tell(text: str) -> None:
    print(f"warm python {os.getpid()}: {text}", file=sys.stderr, flush=True)


def _kill(child: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def _become(caller: socket.socket) -> tuple[str, list[str]]:
    """Take the place of the caller's process: its files, folder, environment, umask."""
    os.setpgid(0, 0)
    data, files, _, _ = socket.recv_fds(caller, 1 << 16, 3)
    size = int.from_bytes(data[:8], "little")
    while len(data) < 8 + size:
        more = caller.recv(1 << 16)
        if not more:
            os._exit(1)
        data += more
    sys.executable, name, arguments, folder, environment, umask = marshal.loads(data[8:])
    for target, source in enumerate(files):
        os.dup2(source, target)
        os.close(source)
    os.umask(umask)
    os.chdir(folder)
    os.environ.clear()
    os.environb.update(environment)
    time.tzset()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    caller.sendall(os.getpid().to_bytes(8, "little"))
    caller.close()
    _open_streams()
    np = sys.modules.get("numpy")
    if np is not None:
        np.random.seed()
    return name, arguments


def _open_streams() -> None:
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8").split(":")[0]

    def opened(number: int, mode: str, errors: str, lines: bool) -> io.TextIOWrapper:
        raw = open(number, mode, closefd=False)  # noqa: SIM115
        return io.TextIOWrapper(raw, encoding, errors, line_buffering=lines, write_through=unbuffered)

    sys.stdin = sys.__stdin__ = opened(0, "rb", "strict", False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = opened(1, "wb", "strict", os.isatty(1) or unbuffered)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = opened(2, "wb", "backslashreplace", True)  # type: ignore[misc]


def _run(name: str, arguments: list[str], path: list[str]) -> None:
    """What the interpreter does with its command line."""
    sys.path[:] = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part] + path
    sys.path_importer_cache.clear()
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    if not name.startswith("python"):
        arguments = [str(Path(sys.executable).parent / name), *arguments]
    _arm(arguments)
    if arguments[0] == "-m":
        sys.argv = ["-m", *arguments[2:]]
        sys.path.insert(0, str(Path.cwd()))
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
        return
    main: Any = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path.insert(0, "")
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
        return
    sys.argv = arguments
    script = Path(arguments[0])
    sys.path.insert(0, str(script.resolve().parent))
    main.__file__ = arguments[0]
    exec(compile(script.read_bytes(), arguments[0], "exec"), main.__dict__)


def _arm(arguments: list[str]) -> None:
    """Have this fork killed before it gives a file the name that a test asks for, if it is the command asked for."""
    words, _, name = os.environ.get("STANDIN_KILL", "").partition("|")
    if not name or words not in " ".join(arguments):
        return

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "os.rename" and os.fspath(given[1]).endswith(name):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _end(error: BaseException | None) -> None:
    """Leave as the interpreter would, but for taking apart each imported module."""
    code = 0
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            code = error.code & 0xFF
        elif error.code is not None:
            print(error.code, file=sys.stderr)
            code = 1
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _remember_sources(folder: Path) -> None:
    """Let forks compile no source that is, byte for byte, one of this repository: each checkout has its own copies."""
    compiled: dict[bytes, types.CodeType] = {}
    for path in folder.rglob("*.py"):
        code = SourceFileLoader(path.stem, str(path)).get_code(path.stem)
        if code is not None:
            compiled[path.read_bytes()] = code
    compile_source = SourceFileLoader.source_to_code

    def source_to_code(self: SourceFileLoader, data: Any, path: Any, *, _optimize: int = -1) -> Any:
        known = compiled.get(bytes(data)) if isinstance(data, bytes) else None
        if known is None:
            return compile_source(self, data, path, _optimize=_optimize)  # type: ignore[call-arg]
        import _imp

        _imp._fix_co_filename(known, str(path))
        return known

    SourceFileLoader.source_to_code = source_to_code  # type: ignore[method-assign,assignment]


def main() -> None:
    """The warm process, and each of its forks."""
    name, sources = sys.argv[1:]
    path = list(sys.path)
    for module in IMPORTED:
        import_module(module)
    _remember_sources(Path(sources))
    gc.collect()
    gc.freeze()
    caller = _serve(name)
    command, arguments = _become(caller)
    try:
        _run(command, arguments, path)
    except BaseException as error:
        _end(error)
    _end(None)


if __name__ == "__main__":
    main()
