#!/usr/bin/env python3
"""Set up this checkout, then run it: `python3 dev.py serve`, `python3 dev.py test`.

It needs only Python 3.11 or newer with pip; docs/development.md describes the set-up. The syntax stays
readable to Python 3.6, so that an older Python gets as far as the version check below.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing

if sys.version_info < (3, 11):  # noqa: UP036  # older versions get a clear message
    sys.exit(
        "dev.py: this is Python {}.{}, but Python 3.11 or newer is required: apt install python3 python3-pip "
        "(Debian 12, Ubuntu 24.04), or use another that you have: python3.12 dev.py".format(*sys.version_info)
    )
if os.name != "posix":
    sys.exit("dev.py: this needs Linux; on Windows use WSL")

# These are missing on Windows or before Python 3.11, so they follow the checks above.
import fcntl
import tomllib

USAGE = """\
python3 dev.py serve             run the backend on 127.0.0.1:3001 (HOST, PORT) with an embedded PostgreSQL
python3 dev.py test [ARGS]       run all tests with coverage; with ARGS: pytest ARGS, without coverage
python3 dev.py check             ruff, ruff format --check, mypy --strict
python3 dev.py bench [ARGS]      compare performance with similar libraries (docs/performance.md)
python3 dev.py traffic [ARGS]    send realistic traffic to the running backend; traffic --help
python3 dev.py keep ARGS         run a `watchkeeper` command for the backend, such as: keep retention plan

The first start creates .venv (test and check: .venv-test, bench: .venv-bench) and needs network access.
"""
ROOT = pathlib.Path(__file__).resolve().parent
PROJECTS = (ROOT, ROOT / "apps" / "backend", ROOT / "apps" / "traffic")

# Patterns for the output of a failed step, and what to tell the user. The order matters: a full disk shows up
# in many ways, and an unreachable network also ends in "No matching distribution".
MESSAGES = {
    r"No space left on device|Disk quota exceeded": "the disk is full: free space in {root} and {temp}",
    r"No module named pip": "{python} has no pip: apt install python3-pip (elsewhere: {python} -m ensurepip)",
    r"no such option: --python": "pip is too old: {python} -m pip install --user --upgrade 'pip>=22.3'",
    r"DO NOT MATCH THE HASHES": (
        "a package does not match its hash in {lock}: a proxy or mirror changed it, or pip's cache is "
        "damaged: {python} -m pip cache purge, then start again"
    ),
    r"Retrying \(|ConnectionError|Timeout|ProxyError|SSLError|\d (Client|Server) Error": (
        "pip could not reach its package index: check the network, or configure your proxy or mirror "
        "(pip config set global.proxy ..., pip config set global.index-url ...), then start again"
    ),
    r"No matching distribution found for (?P<package>[^\s;(]+)": (
        "the package index has no wheel of {package} for Python {version} on {machine}. {lock} supports "
        "CPython 3.11 to 3.14 on 64-bit Linux (x86-64, arm64) with glibc, not musl or 32 bit"
    ),
    r"Permission denied|Read-only file system": (
        "{folder} is not set up for this checkout and Python {version}, and you cannot write there: ask its "
        "owner to run this command once, or make your own clone"
    ),
}
# With these variables set, pip would install elsewhere or skip packages that it finds elsewhere.
MISLEADING = ("PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER")


class SetupError(Exception):
    """What is wrong and how to fix it."""


class Environment:
    """One virtual environment of the checkout, and its lock file."""

    def __init__(self, name: str, lock: str) -> None:
        self.folder = ROOT / name
        self.lock = ROOT / lock
        self.python = self.folder / "bin" / "python"
        self.stamp = self.folder / ".stamp"

    def fingerprint(self) -> str:
        """Hash what the environment is built from; console scripts contain the folder."""
        inputs: list[object] = [str(ROOT), sys.version, platform.machine(), self.lock.read_text("utf-8")]
        for project in PROJECTS:
            table = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
            inputs += [table["project"], table["build-system"], table.get("tool", {}).get("flit")]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def is_current(self) -> bool:
        """Whether it is complete, up to date, and executable by this user."""
        try:
            stamp = self.stamp.read_text("ascii")
        except (OSError, UnicodeDecodeError):
            return False
        return stamp == self.fingerprint() and os.access(self.python, os.X_OK)

    def explain(self, output: str) -> str:
        """Turn the output of a failed step into a message."""
        for pattern, message in MESSAGES.items():
            found = re.search(pattern, output)
            if found:
                facts = {
                    "folder": self.folder,
                    "lock": self.lock.name,
                    "root": ROOT,
                    "python": sys.executable,
                }
                facts |= {"version": platform.python_version(), "machine": platform.machine()}
                return message.format(temp=tempfile.gettempdir(), **facts, **found.groupdict())
        return f"the set-up of {self.folder.name} failed, see above; the next start sets it up from scratch"


SERVE = Environment(".venv", "requirements.lock")
TEST = Environment(".venv-test", "requirements-test.lock")
BENCH = Environment(".venv-bench", "requirements-bench.lock")


def say(text: str) -> None:
    """Write a line to stderr; stdout belongs to the program."""
    print(text, file=sys.stderr, flush=True)


def acquire(environment: Environment) -> None:
    """Set the environment up if needed, and keep a shared lock on it while this process lives.

    The lock is exclusive while one process builds, and shared by those that run from the environment.
    """
    waiting = False
    path = environment.folder.with_suffix(".lock")
    try:
        # Read-only, so that another user's file works too.
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
        while True:
            current = environment.is_current()
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if current else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    waiting = True
                    say(f"dev.py: waiting for another process that uses {environment.folder.name} ...")
                time.sleep(0.1)
                continue
            if current and environment.is_current():
                os.set_inheritable(descriptor, True)  # the lock survives execv
                return
            if not current and not environment.is_current():
                build(environment, descriptor)
    except OSError as error:
        raise SetupError(environment.explain(str(error))) from error


def build(environment: Environment, descriptor: int) -> None:
    """Build the environment from scratch. The stamp comes last, so an interrupted set-up is never current."""
    say(f"dev.py: setting up {environment.folder.name} (once, it takes a minute) ...")
    python = base_python()
    fingerprint = environment.fingerprint()
    step = functools.partial(run_step, environment, descriptor)
    clear(environment)
    step(python, "-m", "venv", "--without-pip", str(environment.folder))
    pip = [python, "-m", "pip", "--python", str(environment.python), "--disable-pip-version-check"]
    install = [*pip, "--no-input", "install", "--no-user", "--no-warn-script-location", "--progress-bar=off"]
    step(*install, "--require-hashes", "--only-binary=:all:", "-r", str(environment.lock))
    # Our own packages have no hash, hence a separate step. It creates their scripts and metadata.
    editable = [part for project in PROJECTS for part in ("-e", str(project))]
    step(*install, "--no-deps", "--no-build-isolation", "--no-index", *editable)
    environment.stamp.write_text(fingerprint, "ascii")
    say(f"dev.py: {environment.folder.name} is ready")


def base_python() -> str:
    """Return the Python to build with: never one from an environment that may be cleared."""
    if pathlib.Path(sys.prefix).resolve() in (SERVE.folder, TEST.folder, BENCH.folder):
        return f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    return sys.executable


def clear(environment: Environment) -> None:
    """Remove the environment, its stamp first. A link is removed, not followed."""
    if environment.folder.is_symlink() or environment.folder.is_file():
        environment.folder.unlink()
    elif environment.folder.exists():
        environment.stamp.unlink(missing_ok=True)
        shutil.rmtree(environment.folder)


def run_step(environment: Environment, descriptor: int, *command: str) -> None:
    """Run one command of the set-up; on failure raise SetupError.

    The command inherits the lock: if this process is killed, the next start waits for the command to end. It
    gets its own session because pip starts a child that a signal to pip alone would leave behind.
    """
    environ = {key: value for key, value in os.environ.items() if key not in MISLEADING}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environ,
        pass_fds=(descriptor,),
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
    if process.returncode:
        say("\n".join(f"    {line}" for line in output.splitlines()[-12:]))
        raise SetupError(environment.explain(output))


def run_program(environment: Environment, module: str, *arguments: str) -> int:
    """Replace this process with a module: signals and the exit code are then its own."""
    acquire(environment)
    if environment is BENCH:  # the bench is a package of the checkout that is not installed
        os.chdir(ROOT)
    program = [str(environment.python), "-m", module, *arguments]
    os.execv(environment.python, program)  # noqa: S606  # no shell is wanted


def run_tests(*arguments: str) -> int:
    """Run pytest; without arguments, all tests with branch coverage."""
    acquire(TEST)
    with tempfile.TemporaryDirectory(prefix="dev-test-") as scratch:
        if arguments:
            return run_tool(scratch, "pytest", *arguments)
        # Tests mostly wait, so use at least two processes; each starts a database server, so at most four.
        processes = str(min(max(os.cpu_count() or 1, 2), 4))
        steps = (["run", "-m", "pytest", "--numprocesses", processes], ["combine", "--quiet"], ["report"])
        # Stop at the first failure: a coverage report would hide the failed tests.
        return next(filter(None, (run_tool(scratch, "coverage", *step) for step in steps)), 0)


def run_checks(*unexpected: str) -> int:
    """Run every linter, even if an earlier one fails."""
    if unexpected:
        raise SetupError("check takes no arguments")
    acquire(TEST)
    with tempfile.TemporaryDirectory(prefix="dev-check-") as scratch:
        tools = (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"])
        return max([run_tool(scratch, *tool) for tool in tools])


def run_tool(scratch: str, *command: str) -> int:
    """Run a tool of the test environment in the checkout and wait for it, even after a signal."""
    environ = {**os.environ, "COVERAGE_FILE": f"{scratch}/coverage"}  # keeps concurrent runs apart
    with subprocess.Popen([TEST.python, "-m", *command], cwd=ROOT, env=environ) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the terminal sent it to the tool as well
                continue
            return code if code >= 0 else 128 - code


COMMANDS: typing.Mapping[str, typing.Callable[..., int]] = {
    "serve": functools.partial(run_program, SERVE, "realestate", "serve"),
    "test": run_tests,
    "check": run_checks,
    "bench": functools.partial(run_program, BENCH, "bench"),
    "traffic": functools.partial(run_program, SERVE, "realestate_traffic"),
    "keep": functools.partial(run_program, SERVE, "realestate", "keep"),
}


def main(command: str = "help", *arguments: str) -> int:
    """Run one command and return its exit code: 1 if the set-up failed, 2 for an unknown command."""
    if command in ("help", "--help", "-h"):
        print(USAGE, end="")
        return 0
    if command not in COMMANDS:
        say(f"dev.py: there is no command {command!r}\n{USAGE}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return COMMANDS[command](*arguments)
    except SetupError as error:
        say(f"dev.py: {error}")
    except KeyboardInterrupt:
        say("dev.py: interrupted; the next start sets up an unfinished environment from scratch")
        return 128 + signal.SIGINT
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
