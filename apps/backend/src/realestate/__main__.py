"""`realestate-backend serve | keep …`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from realestate.settings import service_settings
from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE: Final = """\
usage: realestate-backend <command>

  serve            run the service on HOST:PORT (default 127.0.0.1:3001)
  keep ...         the keeper's commands, such as: keep retention plan
"""
_HELP: Final = frozenset({"-h", "--help", "help"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 2 for a usage error, 1 for a failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command in _HELP or (command == "serve" and _HELP & set(arguments[1:])):
        sys.stdout.write(USAGE)
        return 0
    try:
        if command == "serve" and not arguments[1:]:
            return _serve()
        if command == "keep":
            return _keep(arguments[1:])
    except ConfigurationError as error:
        _print_error(str(error))
        return 1
    sys.stderr.write(USAGE)
    return 2


def _serve() -> int:
    from realestate.app import create_app  # noqa: PLC0415 - `--help` needs no web framework
    from realestate.made_secrets import complete_secrets  # noqa: PLC0415 - as above
    from realestate.monitoring import build  # noqa: PLC0415 - as above
    from watchkeeper.server import serve  # noqa: PLC0415 - as above

    environ, notice = complete_secrets(os.environ, service_settings(os.environ).service_dir)
    if notice:
        _print_error(notice)
    backend = build(environ)
    return serve(backend.keeper, create_app(backend), websockets=False)


def _keep(arguments: list[str]) -> int:
    from realestate.monitoring import build  # noqa: PLC0415 - as above
    from watchkeeper.cli import main as keep  # noqa: PLC0415 - as above

    return keep(arguments, keeper=build(os.environ).keeper)


def _print_error(text: str) -> None:
    sys.stderr.write(f"realestate: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
