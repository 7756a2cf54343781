"""``python``, ``dvc`` and ``pytest`` without their import time: a warm process forks, and the fork runs the command.

Each command of a workflow is a Python process of its own, and nearly all of its time goes into importing scikit-learn,
MLflow, DVC, pandas, and this repository. :func:`install` puts stand-ins for the three commands into a folder. A
stand-in asks the warm process, which has imported all that, to fork; the fork takes the caller's arguments, working
directory, environment, umask and open files, runs the same code, and its exit code or signal becomes the stand-in's.
Of this repository's own modules a fork keeps what was imported only if its checkout holds, byte for byte, the same.
Signals go through; who kills a stand-in kills its fork. Most of what a short command costs is the fork itself: hence
huge pages, and nothing in a fork that writes all over what it shares.

What a warm process cannot give (an option of the interpreter, a hash seed, inherited files) is asked of a fresh
interpreter instead, and so is every command once the warm process is gone: slower, never different. Linux only;
elsewhere every command is.
"""

import atexit
import ctypes
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
import typing
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

from _pytest.config import default_plugins

SOURCES = Path(__file__).parents[3] / "src" / "clearway"
COMMANDS = ("python", "python3", "dvc", "pytest")
IMPORTED = (
    "_pytest._argcomplete",
    *(f"_pytest.{name}" for name in default_plugins),
    "aiohttp",
    "alembic.command",
    "dvc.analytics",
    "dvc.cachemgr",
    "dvc.cli",
    "dvc.cli.parser",
    "dvc.commands.checkout",
    "dvc.commands.repro",
    "dvc.data_cloud",
    "dvc.fs",
    "dvc.lock",
    "dvc.repo",
    "dvc.repo.graph",
    "dvc.repo.plots",
    "dvc.rwlock",
    "dvc.scm",
    "dvc.stage.cache",
    "dvc.utils.strictyaml",
    "dvc_data.hashfile.db.local",
    "dvc_data.index",
    "dvc_data.index.checkout",
    "dvc_render",
    "fairlearn.metrics",
    "filelock",
    "flufl.lock",
    "fsspec.implementations.memory",
    "http.server",
    "httptools",
    "logging.config",
    "logging.handlers",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.tracking",
    "multiprocessing.resource_tracker",
    "multiprocessing.spawn",  # takes the interpreter's own path when it is imported
    "networkx",
    "onnxruntime",
    "pandas",
    "pandas.core.arrays.arrow.extension_types",
    "pandera.pandas",
    "pdb",
    "PIL.JpegImagePlugin",
    "prometheus_client",
    "pyarrow.csv",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "rich._emoji_codes",
    "rich.console",
    "rich.progress",
    "rich.table",
    "ruamel.yaml",
    "scipy.stats",
    "skl2onnx",
    "sklearn.calibration",
    "sklearn.ensemble",
    "sklearn.inspection",
    "sklearn.pipeline",
    "skops.io",
    "sqlalchemy.dialects.sqlite",
    "starlette.applications",
    "tenacity",
    "uvicorn",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
    "xml.etree.ElementTree",
    "yaml",
    "zc.lockfile",
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
    """The warm process of a test session; it ends with :meth:`close` or with the process that started it.

    Parameters
    ----------
    imported
        Modules that it has imported.
    most
        Commands at a time; a fresh interpreter is asked beyond.
    sources
        The package of this repository, whose modules it has imported too.
    """

    def __init__(self, imported: Sequence[str] = IMPORTED, most: int = 60, sources: Path = SOURCES) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm")
        self.socket = str(Path(self._folder.name) / "s")  # short: the length of such a name is limited
        self._told = Path(self._folder.name) / "told"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GITHUB_"))}
        environment |= {"MPLCONFIGDIR": self._folder.name, "PYDANTIC_DISABLE_PLUGINS": "__all__"}
        environment |= {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }  # others run beside, and threads would spin
        with self._told.open("wb") as told:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, self.socket, str(sources), str(most), *imported],
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

    def end(self) -> None:
        """End it, and what it forked."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)

    def close(self) -> None:
        """End it, and forget what it told."""
        self.end()
        self._folder.cleanup()


# --- in the warm process ---------------------------------------------------------------------------------------------


class _Command(NamedTuple):
    """A fork, and who asked for it."""

    child: int
    pidfd: int
    caller: socket.socket

    def close(self) -> None:
        os.close(self.pidfd)
        self.caller.close()


def _serve(name: str, most: int) -> socket.socket:
    """Fork for each caller, and tell it how its fork ended; returns in the forks only, with the caller's connection."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{name}.new")
    listener.listen(64)
    Path(f"{name}.new").rename(name)
    commands: list[_Command] = []
    while True:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(listener, select.POLLIN)
        for command in commands:
            poll.register(command.pidfd, select.POLLIN)
            poll.register(command.caller, select.POLLRDHUP)
        ready = {number for number, _ in poll.poll()}
        # Ends come before the next beginning, so that no number in `ready` has another meaning by now.
        commands = [command for command in commands if not _has_ended(command, ready)]
        if 0 in ready:
            os._exit(0)
        if listener.fileno() not in ready:
            continue
        caller, _ = listener.accept()
        if len(commands) >= most:
            _tell(f"{most} commands at a time: the next one gets a fresh interpreter")
            caller.close()
            continue
        child = os.fork()
        if child == 0:
            listener.close()
            for command in commands:
                command.close()
            return caller
        commands.append(_Command(child, os.pidfd_open(child), caller))


def _has_ended(command: _Command, ready: set[int]) -> bool:
    """Give a fork's end to its caller, or its caller's end to the fork."""
    if command.pidfd not in ready:
        if not ready & {0, command.caller.fileno()}:
            return False
        _tell(f"{command.child} is killed: " + ("the tests have ended" if 0 in ready else "its caller is gone"))
        _kill(command.child)
    code = os.waitstatus_to_exitcode(os.waitpid(command.child, 0)[1])
    with suppress(OSError):
        command.caller.sendall(code.to_bytes(8, "little", signed=True))
    command.close()
    return True


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


def _run(name: str, arguments: list[str], real: Path, path: list[str], sources: dict[str, tuple[str, bytes]]) -> None:
    """What the interpreter does with its command line; ``real`` is the folder that the commands are in."""
    sys.path[:] = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part] + path
    _move_sources(sources)
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
    script = Path(arguments[0]) if name.startswith("python") else real / name  # beside which is a stand-in
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


def _import_sources(package: Path) -> dict[str, tuple[str, bytes]]:
    """Import what neither asks where it is nor sets the environment of this repository's: name → path, source.

    Nor those that need what :data:`IMPORTED` leaves out: Feast alone is another hundred megabytes to fork.
    """
    present = set(sys.modules)
    left_out = {"clearway.project_folder", "clearway.cli", "feast", "distributed", "ray", "optuna"} - present
    sys.modules.update(dict.fromkeys(left_out))  # type: ignore[arg-type]  # what needs one of them cannot be imported
    sys.path.insert(0, str(package.parent))
    for path in sorted(package.rglob("*.py")):
        with suppress(Exception):
            import_module(".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"))
    sys.path.remove(str(package.parent))
    for name in left_out:
        del sys.modules[name]
    made = {name for name in set(sys.modules) - present if name.partition(".")[0] == package.name}
    files = {name: Path(str(sys.modules[name].__file__)) for name in made}
    return {name: (str(file.relative_to(package)), file.read_bytes()) for name, file in files.items()}


def _move_sources(known: dict[str, tuple[str, bytes]]) -> None:
    """Let what was imported of this repository be the caller's, if it has the same; else forget it."""
    found = PathFinder.find_spec("clearway", sys.path)
    top = os.path.dirname(found.origin) if found is not None and found.origin else None  # noqa: PTH120 - as a text
    if top is None or not all(_holds(f"{top}/{path}", content) for path, content in known.values()):
        for name in known:
            del sys.modules[name]
        return
    for name, (path, _) in known.items():
        module = sys.modules[name]
        folders = [os.path.dirname(f"{top}/{path}")] if hasattr(module, "__path__") else None  # noqa: PTH120
        spec = spec_from_file_location(name, f"{top}/{path}", submodule_search_locations=folders)
        if spec is None:
            raise ImportError(name)
        module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
        if folders is not None:
            module.__path__ = folders


def _holds(file: str, content: bytes) -> bool:
    """No :class:`Path`, which would cost each command more than the reading."""
    try:
        with open(file, "rb", buffering=0) as stream:  # noqa: PTH123
            return stream.read() == content
    except OSError:
        return False


def _use_huge_pages() -> None:
    """Let each fork copy one entry of the page table for 512, where the kernel can: most of what a fork costs."""
    collapse, size = 25, 1 << 21  # MADV_COLLAPSE, since Linux 6.1; bytes of a huge page
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, _, _, file, *_ = line.split()
        first, last = (int(edge, 16) for edge in span.split("-"))
        start, end = -(-first // size) * size, last // size * size
        if mode == "rw-p" and file == "0" and start < end:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), collapse)


def main() -> None:
    """The warm process, and each of its forks."""
    name, sources, most, *imported = sys.argv[1:]
    real, path = Path(sys.executable).parent, list(sys.path)
    gc.disable()
    for module in imported:
        import_module(module)
    _remember_sources(Path(sources))
    known = _import_sources(Path(sources))
    for forget in typing._cleanups:  # type: ignore[attr-defined]  # onnx does so at the end of each process
        forget()
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000)  # a command ends soon
    _use_huge_pages()
    caller = _serve(name, int(most))
    command, arguments = _become(caller)
    try:
        _run(command, arguments, real, path, known)
    except BaseException as error:
        _end(error)
    _end(None)


if __name__ == "__main__":
    main()
