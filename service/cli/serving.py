"""`ipet serve`: settings -> backbone -> registry -> engine -> application -> server."""

import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from service.settings import Settings

if TYPE_CHECKING:
    from service.api.context import Runtime

EXAMPLES = Path("adapters/examples")


def serve_command() -> Callable[..., None]:
    """The command, one option for each field of Settings, which are its flags, variables, defaults and help."""

    def serve(**flags: Any) -> None:
        """Serve adapters over HTTP. Every flag has the environment variable of its name."""
        from pydantic import ValidationError

        try:
            settings = Settings(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            lines = [f"--{_flag(str(e['loc'][0]))}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
            raise typer.BadParameter("; ".join(lines)) from error
        run(settings)

    parameters = [_option(name) for name in Settings.model_fields]
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return serve


def _option(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    is_switch = field.annotation is bool
    default = field.default
    shown = ",".join(default) if isinstance(default, tuple) else str(default)
    option = typer.Option(
        None,
        f"--{_flag(name)}/--no-{_flag(name)}" if is_switch else f"--{_flag(name)}",
        envvar=f"IPET_{name.upper()}",
        help=field.description,
        show_default=shown if shown not in ("", "None") else False,
        metavar=None if is_switch else _metavar(field.annotation),
    )
    annotation = bool | None if is_switch else str | None  # pydantic converts: one place for types and limits
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _metavar(annotation: Any) -> str:
    from typing import get_args

    if choices := [choice for choice in get_args(annotation) if isinstance(choice, str)]:
        return "|".join(choices)
    if annotation in (int, float):
        return "NUMBER"
    if annotation in (str, str | None):
        return "TEXT"
    return "LIST" if "tuple" in str(annotation) else "DIR"


def _flag(name: str) -> str:
    return name.replace("_", "-")


def require_keys(settings: Settings) -> None:
    """Ends the command where everybody could use what it would serve, and nobody has said that they may."""
    from service.access.keyring import is_loopback

    if not (settings.allow_anonymous or is_loopback(settings.host) or has_keys(settings)):
        typer.echo(
            f"error: {settings.host} can be reached from elsewhere and there are no keys. Make one with `ipet keys "
            "create`, set IPET_ADMIN_KEYS (and IPET_INFERENCE_KEYS), or IPET_ALLOW_ANONYMOUS=1 if everyone may use "
            "and change it.",
            err=True,
        )
        raise typer.Exit(1)


def run(settings: Settings) -> None:
    """Serves until a signal ends it, and the process with it: status 0, or 1 when the service cannot start or stop."""
    require_keys(settings)
    if os.getpid() == 1:  # of a container, which a signal without a handler does not end
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    listener = listen(settings.host, settings.port)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a log is no place for them
    from service.api.app import create_app  # takes seconds: what can be refused is refused before
    from service.api.opening import open_runtime
    from service.cli.server import Server
    from service.telemetry import configure_logging

    configure_logging(settings.log_level.upper())
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        server.end_within(settings.shutdown_timeout)
        server.should_exit = True

    def ready(runtime: "Runtime") -> None:
        greet(listener, runtime, app.context.keys.closed)

    app = create_app(settings, open_runtime, on_ready=ready, on_failed=failed)
    server = Server(app, settings)
    server.run(sockets=[listener])
    if failures:
        typer.echo(f"error: {failures[0]}", err=True)
        leave(1)
    leave(0 if app.context.device_stopped else 1)


def leave(status: int) -> NoReturn:
    """Ends the process without waiting for threads that nobody needs: a backbone half loaded, a device that hangs."""
    sys.stdout.flush()
    logging.shutdown()
    os._exit(status)


def has_keys(settings: Settings) -> bool:
    """Whether the service asks for keys: the environment's, or stored ones."""
    from service.access.keyring import MARKER, Keyring
    from service.database import database_of
    from service.errors import NotReady, ServiceError

    with suppress(ServiceError):  # the keyring says what is wrong with it
        if not database_of(settings.data_dir, settings.database_url).is_begun():  # nor is it to be, by looking
            return bool(settings.admin_keys or settings.inference_keys) or (settings.data_dir / MARKER).exists()
    keys = Keyring(settings)
    keys.refresh()
    try:
        return keys.in_force
    except NotReady:
        typer.echo(f"error: whether there are keys cannot be told: {keys.fault}", err=True)
        raise typer.Exit(1) from None


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is told at once and port 0 is known."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        typer.echo(f"error: cannot listen on {host}:{port}: {error.strerror or error}", err=True)
        raise typer.Exit(1) from error


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine finds the service; every address is also loopback's."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def greet(listener: socket.socket, runtime: "Runtime", has_keys: bool) -> None:
    """Prints where the service is and one line to try."""
    url = url_of(listener)
    records = list(runtime.registry.walk())
    spec = runtime.backbone
    lines = [
        f"ipet-serve is ready on {url}  (console; API docs at {url}/docs)",
        f"  backbone {spec.name} ({spec.parameters / 1e6:.1f} M parameters) on {runtime.device}, {runtime.dtype}; "
        f"adapters: {', '.join(record.name for record in records[:8]) or 'none yet'}",
    ]
    classifiers = [r.name for r in records if r.task_type == "AUDIO_CLASSIFICATION" and r.live is not None]
    if classifiers:
        name = "digits" if "digits" in classifiers else classifiers[0]
        clips = [*sorted(EXAMPLES.glob(f"{name.rstrip('s')}*.*")), *sorted(EXAMPLES.glob("*.wav"))]
        clip = clips[0] if clips else "clip.wav"
        key = ' -H "Authorization: Bearer $KEY"' if has_keys else ""
        lines.append(f"  curl{key} --data-binary @{clip} '{url}/v1/classify?adapter={name}'")
    print("\n".join(lines), file=sys.stdout, flush=True)
