#!/usr/bin/env python3
"""Sets this checkout up by itself, then runs it: `python3 dev.py serve`, `python3 dev.py test`.

It needs Python 3.11 or newer with pip, and nothing else. What the backend needs goes into `.venv`, what tests
and checks need into `.venv-test`, the peers of the bench into `.venv-bench`, each made once from a lock file
with hashes (see docs/development.md).

This file has no syntax newer than Python 3.6: an older Python reads as far as the first sentence below.
"""

import contextlib
import difflib
import errno
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

if sys.version_info < (3, 11):  # noqa: UP036  # the very check that names the version
    sys.exit(
        "dev.py: this is Python {}.{}, and Python 3.11 or newer is needed: apt install python3 python3-pip "
        "(Debian 12, Ubuntu 24.04), or name one that you have: python3.12 dev.py".format(*sys.version_info)
    )
if os.name != "posix":
    sys.exit("dev.py: this runs on Linux; on Windows use WSL")

# Not on Windows, and not before Python 3.11: hence after the sentences above.
import fcntl
import tomllib

USAGE = """\
python3 dev.py serve             run the backend on 127.0.0.1:3001 (HOST, PORT), with a PostgreSQL of its own
python3 dev.py test [ARGS]       run all tests with coverage; with ARGS: pytest ARGS, without coverage
python3 dev.py check             ruff, ruff format --check, mypy --strict
python3 dev.py bench [ARGS]      measure it beside its peers, see docs/performance.md; bench --help
python3 dev.py traffic [ARGS]    play a client against the running backend; traffic --help
python3 dev.py keep ARGS         the keeper's own commands, such as: keep retention plan

The first start sets up .venv, for test and check .venv-test, for bench .venv-bench, and needs the network
once.
"""
ROOT = pathlib.Path(__file__).resolve().parent
PROJECTS = (ROOT, ROOT / "apps" / "backend", ROOT / "apps" / "traffic")
OLDEST_PIP = (22, 3)  # the first with --python: it installs into an environment that has no pip of its own

NO_PIP = "{python} has no pip: apt install python3-pip; if this Python is not Debian's: {python} -m ensurepip"
OLD_PIP = "pip {found} is too old, 22.3 or newer is needed: {python} -m pip install --user --upgrade pip"
DISK_FULL = "the disk is full: free some space under {root} and in {temp}, then start again"
WRONG_HASH = (
    "a package differs from its hash in {lock}: a proxy or mirror on the way changed it, or pip's cache is "
    "damaged: {python} -m pip cache purge, then start again"
)
NO_NETWORK = (
    "pip did not reach its package index: look at the network, or tell pip of your proxy or mirror "
    "(pip config set global.proxy ..., pip config set global.index-url ...), then start again"
)
NO_WHEEL = (
    "pip's package index has no wheel of {package} for this machine ({machine}). {lock} is made for CPython "
    "3.11 to 3.14 on 64-bit Linux (x86-64, arm64) with glibc, not for musl or 32 bit. If that is what you "
    "have, the index lacks the package or was not reached: look at pip config list"
)
NO_RIGHTS = (
    "{folder} is not set up for this checkout and Python {version}, and you may not write there: let its "
    "owner run this command once, or clone into a folder of your own"
)
# What the output of a failed step is searched for, in this order: a full disk shows up in many ways, and a
# network that is away ends in "No matching distribution" too.
SENTENCES = {
    r"No space left on device|Disk quota exceeded": DISK_FULL,
    r"DO NOT MATCH THE HASHES": WRONG_HASH,
    r"Retrying \(|ConnectionError|Timeout|ProxyError|SSLError|\d (Client|Server) Error": NO_NETWORK,
    r"No matching distribution found for (?P<package>[^\s;(]+)": NO_WHEEL,
    r"Permission denied|Read-only file system": NO_RIGHTS,
}
# How pip announces a package of the lock, from an index or a folder; older ones do not say from which file.
PACKAGE_LINE = re.compile(r"(?:Collecting|Processing) (?:\S*/)?(\S+)(?: \(from -r |$)", re.MULTILINE)
# With these of the user's, packages would count as installed that are not, or be installed elsewhere.
MISLEADING = ("PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER")


class SetupError(Exception):
    """What is wrong and how to mend it, in a sentence for the person at the terminal."""


class Environment:
    """One virtual environment of the checkout, and the lock file that it is made from."""

    def __init__(self, name: str, lock: str) -> None:
        self.folder = ROOT / name
        self.lock = ROOT / lock
        self.python = self.folder / "bin" / "python"
        self.stamp = self.folder / ".stamp"

    def fingerprint(self) -> str:
        """Hash what the environment is made from: when the hash changes, it has to be made again.

        The folder is part of it because console scripts name it; the projects are with what concerns their
        packaging alone: another linter setting is no reason.
        """
        made_from: list[object] = [str(ROOT), sys.version, platform.machine(), self.lock.read_text("utf-8")]
        for project in PROJECTS:
            table = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
            made_from += [table["project"], table["build-system"], table.get("tool", {}).get("flit")]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def is_current(self) -> bool:
        """Tell whether it was finished, from what is here now, and whether this user can run it."""
        try:
            stamp = self.stamp.read_text("ascii")
        except (OSError, UnicodeDecodeError):
            return False
        return stamp == self.fingerprint() and os.access(self.python, os.X_OK)


SERVE = Environment(".venv", "requirements.lock")
TEST = Environment(".venv-test", "requirements-test.lock")
BENCH = Environment(".venv-bench", "requirements-bench.lock")


def say(text: str) -> None:
    """Write a line to stderr: stdout belongs to what is run."""
    print(text, file=sys.stderr, flush=True)


def occupy(environment: Environment) -> None:
    """Make the environment unless it is current, and keep it from being cleared while this process lives."""
    while True:
        if not environment.is_current():
            ensure(environment)
        try:
            descriptor = lock(environment, fcntl.LOCK_SH)
        except OSError:  # who may only read the checkout cannot be asked to lock it
            return
        os.set_inheritable(descriptor, True)  # it outlives the step from this script to the backend
        if environment.is_current():
            return
        os.close(descriptor)


def ensure(environment: Environment) -> None:
    """Make the environment, or wait for the process that does."""
    try:
        descriptor = lock(environment, fcntl.LOCK_EX)
        try:
            if not environment.is_current():
                build(environment, descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SetupError(fill_in(DISK_FULL, environment)) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SetupError(fill_in(NO_RIGHTS, environment)) from error
        raise SetupError(f"the set-up of {environment.folder} failed: {error}") from error


def lock(environment: Environment, kind: int) -> int:
    """Take the environment's file lock: alone to make it, together with others to run from it.

    The file is opened for reading, so that another user's serves as well.
    """
    path = environment.folder.with_suffix(".lock")
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        name = environment.folder.name
        say(f"dev.py: another process sets up {name} or runs from it, waiting for it ...")
        fcntl.flock(descriptor, kind)
    return descriptor


def build(environment: Environment, descriptor: int) -> None:
    """Make the environment from nothing: what an interrupted set-up left is cleared, the stamp comes last."""
    started = time.monotonic()
    name = environment.folder.name
    python = choose_python()
    check_pip(python)
    say(f"dev.py: setting up {name} for Python {platform.python_version()} (once, it takes a minute) ...")
    fingerprint = environment.fingerprint()
    step = functools.partial(run_step, environment, descriptor)
    clear(environment)
    step(python, "-m", "venv", "--without-pip", str(environment.folder))
    pip = [python, "-m", "pip", "--python", str(environment.python), "--disable-pip-version-check"]
    install = [*pip, "--no-input", "install", "--no-user", "--no-warn-script-location", "--progress-bar=off"]
    step(*install, "--require-hashes", "--only-binary=:all:", "-r", str(environment.lock))
    # Our own packages have no hash, hence a step of their own; it gives them their scripts and metadata.
    editable = [part for project in PROJECTS for part in ("-e", str(project))]
    step(*install, "--no-deps", "--no-build-isolation", "--no-index", *editable)
    environment.stamp.write_text(fingerprint, "ascii")
    say(f"dev.py: {name} is ready after {time.monotonic() - started:.0f} s")


def choose_python() -> str:
    """Name the Python to make environments with: the one that runs this, unless it is out of one of them."""
    if pathlib.Path(sys.prefix).resolve() in (SERVE.folder, TEST.folder, BENCH.folder):
        return f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    return sys.executable


def check_pip(python: str) -> None:
    """Refuse a Python without pip, or with one that cannot install into other environments."""
    probe = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"pip ((\d+)\.(\d+)\S*)", probe.stdout)
    if "No module named pip" in probe.stderr:
        raise SetupError(NO_PIP.format(python=python))
    if probe.returncode or found is None:
        last_line = (probe.stderr.strip() or "it prints nothing").splitlines()[-1]
        raise SetupError(f"pip does not run ({python} -m pip --version): {last_line}")
    if (int(found[2]), int(found[3])) < OLDEST_PIP:
        raise SetupError(OLD_PIP.format(found=found[1], python=python))


def clear(environment: Environment) -> None:
    """Remove what is there, its stamp first: whatever interrupts this leaves nothing that looks finished."""
    if environment.folder.is_symlink() or environment.folder.is_file():
        environment.folder.unlink()
    elif environment.folder.exists():
        environment.stamp.unlink(missing_ok=True)
        shutil.rmtree(environment.folder)


def run_step(environment: Environment, descriptor: int, *command: str) -> None:
    """Run one command of the set-up, show how far it is, and turn its failure into a sentence.

    The command inherits the lock: when this process is killed, the next start waits for the command's end. It
    is a session of its own, because pip has a child that a signal to pip alone would leave behind.
    """
    environ = {key: value for key, value in os.environ.items() if key not in MISLEADING}
    output: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environ,
        pass_fds=(descriptor,),
        start_new_session=True,
    ) as process:
        try:
            for line in process.stdout or ():
                output.append(line.rstrip())
                show_progress(line, output, environment)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
        finally:
            show("")
    if process.returncode:
        say("\n".join(f"    {line}" for line in output[-12:]))
        raise SetupError(explain("\n".join(output), environment))


def show_progress(line: str, output: list[str], environment: Environment) -> None:
    """Show on one line of a terminal where pip is, and say once that the index does not answer."""
    package = PACKAGE_LINE.match(line)
    if package:
        seen = sum(PACKAGE_LINE.match(earlier) is not None for earlier in output)
        total = len(re.findall(r"^[\w.-]+==", environment.lock.read_text("utf-8"), flags=re.MULTILINE))
        show(f"    {seen} of {total}: {package[1]}")
    elif line.startswith("Installing "):
        show("    installing")
    elif "Retrying (" in line and sum("Retrying (" in earlier for earlier in output) == 1:
        say("dev.py: the package index does not answer, pip tries again ...")


def show(text: str) -> None:
    """Replace the terminal's current line; where stderr is no terminal, nothing."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def explain(output: str, environment: Environment) -> str:
    """Find the sentence for what a failed step printed."""
    for pattern, sentence in SENTENCES.items():
        found = re.search(pattern, output)
        if found:
            return fill_in(sentence, environment, **found.groupdict())
    return f"the set-up of {environment.folder.name} failed, see above; the next start begins anew"


def fill_in(sentence: str, environment: Environment, **more: str) -> str:
    """Put the facts of this machine into a sentence."""
    version = platform.python_version()
    libc = " ".join(platform.libc_ver()).strip() or "no glibc"
    return sentence.format(
        folder=environment.folder,
        lock=environment.lock.name,
        machine=f"{platform.python_implementation()} {version}, {platform.machine()}, {libc}",
        python=sys.executable,
        root=ROOT,
        temp=tempfile.gettempdir(),
        version=version,
        **more,
    )


def start_backend(command: str, arguments: list[str]) -> int:
    """Become a command of the backend."""
    return become(SERVE, "realestate", command, *arguments)


def start_traffic(arguments: list[str]) -> int:
    """Become the client that plays against the backend."""
    return become(SERVE, "realestate_traffic", *arguments)


def start_bench(arguments: list[str]) -> int:
    """Become the bench, which is a package of the checkout and not of an environment."""
    os.chdir(ROOT)
    return become(BENCH, "bench", *arguments)


def become(environment: Environment, module: str, *arguments: str) -> int:
    """Run a module instead of this script: signals and exit code are then its own."""
    occupy(environment)
    program = [str(environment.python), "-m", module, *arguments]
    os.execv(environment.python, program)  # noqa: S606  # no shell is wanted


def run_tests(arguments: list[str]) -> int:
    """Run pytest; without arguments with branch coverage, also of the processes that the tests start.

    Tests wait more than they work, so all of them run in as many processes as there are processors: two at
    least, and four at most, each of which has a database server.
    """
    occupy(TEST)
    with tempfile.TemporaryDirectory(prefix="dev-test-") as scratch:
        tool = functools.partial(run_tool, scratch)
        if arguments:
            return tool("pytest", *arguments)
        # After a failed run there is no report: it would stand between the failures and who looks for them.
        processes = str(min(max(os.cpu_count() or 1, 2), 4))
        steps = (["run", "-m", "pytest", "--numprocesses", processes], ["combine", "--quiet"], ["report"])
        return next(filter(None, (tool("coverage", *step) for step in steps)), 0)


def run_checks(arguments: list[str]) -> int:
    """Run every linter, also after one that finds something."""
    if arguments:
        raise SetupError("check takes no arguments, it always checks the whole checkout")
    occupy(TEST)
    with tempfile.TemporaryDirectory(prefix="dev-check-") as scratch:
        tools = (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"])
        return max([run_tool(scratch, *tool) for tool in tools])


def run_tool(scratch: str, *command: str) -> int:
    """Run a tool of the test environment in the checkout and wait for it, whatever signal comes."""
    environ = {**os.environ, "COVERAGE_FILE": f"{scratch}/coverage"}  # two runs at once do not mix
    if not os.access(ROOT, os.W_OK):  # set up by another user: what the tools remember goes elsewhere
        environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{scratch}/hypothesis"
        environ["MYPY_CACHE_DIR"] = os.devnull
        environ["PYTEST_ADDOPTS"] = f"{os.environ.get('PYTEST_ADDOPTS', '')} -p no:cacheprovider"
        environ["RUFF_NO_CACHE"] = "true"
    with subprocess.Popen([TEST.python, "-m", *command], cwd=ROOT, env=environ) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the terminal has sent it to the tool too, which ends in its own time
                continue
            return code if code >= 0 else 128 - code


COMMANDS: typing.Mapping[str, typing.Callable[[list[str]], int]] = {
    "serve": functools.partial(start_backend, "serve"),
    "test": run_tests,
    "check": run_checks,
    "bench": start_bench,
    "traffic": start_traffic,
    "keep": functools.partial(start_backend, "keep"),
}


def main(command: str = "help", *arguments: str) -> int:
    """Run one command and return the exit code: 1 where the set-up failed, 2 for what is no command."""
    if command in ("help", "--help", "-h"):
        print(USAGE, end="")
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        say(f"dev.py: there is no command {command!r}" + (f", did you mean {near[0]}?" if near else ""))
        say(USAGE)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return COMMANDS[command](list(arguments))
    except SetupError as error:
        say(f"dev.py: {error}")
    except KeyboardInterrupt:
        say("dev.py: interrupted; a set-up that is not finished begins anew at the next start")
        return 128 + signal.SIGINT
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
