"""The `servewright` command: validate, run, manifests, status, info, cache, version.

Exit codes: 0 done or drained, 2 a configuration to correct, 1 anything else. What a user can
cause ends in one sentence on stderr; a traceback means a bug of ours and goes to a file.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from servewright_api import (
    ManifestError,
    Override,
    __version__,
    load_manifests,
    parse_override,
    revision,
)
from servewright_runtime.errors import ConfigError, ServewrightError

if TYPE_CHECKING:
    from servewright_runtime.fetch.cache import Cache

DEBUG_VARIABLE = "SERVEWRIGHT_DEBUG"

app = typer.Typer(
    name="servewright",
    help="Serve language models from a manifest: OpenAI's API on this machine.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(no_args_is_help=True, help="List and prune the fetched models.")
app.add_typer(cache_app, name="cache")

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Manifests, YAML or JSON.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Set a field, as spec.engine.threads=1."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"servewright {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version_: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def validate(files: Files, sets: Sets = None) -> None:
    """Check manifests against the schema, without fetching or starting anything."""
    services = load_manifests(files, overrides=_overrides(sets))
    for service in services:
        typer.echo(f"{service.title}: valid, revision {revision(service)}")


@app.command()
def run(
    files: Files,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the API; 0 takes a free one.")
    ] = 8000,
    admin_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of health and metrics, on loopback.")
    ] = 9000,
    api_keys: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of API keys, one a file (a mounted Secret)."),
    ] = None,
    sets: Sets = None,
) -> None:
    """Serve the models of the manifests on this machine until Ctrl-C."""
    services = load_manifests(files, overrides=_overrides(sets))
    if not host:  # getaddrinfo would take every address
        raise ConfigError("--host is empty; give an address, such as 127.0.0.1.")
    if port == admin_port != 0:
        raise ConfigError(f"--port and --admin-port are both {port}; choose two ports.")
    _configure_logs()
    from servewright_runtime import local
    from servewright_runtime.supervisor import Settings

    settings = Settings(host=host, port=port, admin_port=admin_port)
    raise typer.Exit(local.run(services, settings, api_keys))


@app.command()
def manifests(
    files: Files,
    image: Annotated[
        str | None,
        typer.Option(help="Image of the runtime; the chart's default unless given."),
    ] = None,
    cuda_image: Annotated[
        str | None,
        typer.Option(help="The same for models with an accelerator."),
    ] = None,
    pod_monitors: Annotated[
        bool, typer.Option("--pod-monitors", help="The cluster has the kind PodMonitor.")
    ] = False,
    sets: Sets = None,
) -> None:
    """Print what the operator would apply for the manifests, without asking any cluster."""
    from servewright_operator.rendering import DEFAULT_CUDA_IMAGE, DEFAULT_IMAGE, render
    from servewright_operator.settings import PodDefaults

    services = load_manifests(files, overrides=_overrides(sets))
    pods = PodDefaults(image or DEFAULT_IMAGE, cuda_image or DEFAULT_CUDA_IMAGE)
    typer.echo(render(services, pods, pod_monitors=pod_monitors), nl=False)


@app.command()
def status(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the ModelService.")],
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="Its namespace; the context's own unless given."),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Context of the kubeconfig; the current one unless given.")
    ] = None,
    kubeconfig: Annotated[
        str | None, typer.Option(metavar="FILE", help="Instead of what KUBECONFIG names.")
    ] = None,
) -> None:
    """Tell the story of a ModelService on a cluster.

    Exit code: 0 it is Ready, 1 it is not, 2 it could not be looked at.
    """
    from servewright_runtime.cluster_status import print_status

    is_ready = print_status(name, namespace=namespace, context=context, kubeconfig=kubeconfig)
    raise typer.Exit(0 if is_ready else 1)


@app.command()
def info() -> None:
    """Show this machine, the kernels that run on it and the versions of what is installed."""
    from servewright_runtime.inventory import inventory

    rows = inventory()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"servewright {__version__}")


@cache_app.command("list")
def cache_list() -> None:
    """Show the fetched models, the most recently used first."""
    cache = _cache()
    entries = cache.entries()
    for entry in entries:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        marks = " in use" if entry.in_use else ""
        digest = entry.digest or "unfinished"
        size = f"{entry.bytes / 1e6:.1f} MB"
        typer.echo(f"{digest}  {size:>12}  {day}{marks}  {entry.source or 'source unknown'}")
    if not entries:
        typer.echo(f"No models in {cache.root}.")


@cache_app.command("prune")
def cache_prune(
    keep: Annotated[
        str | None, typer.Option(metavar="QUANTITY", help="Keep the latest used up to this: 2Gi.")
    ] = None,
    unused_days: Annotated[
        float | None, typer.Option(min=0, help="Remove only what was not used for so many days.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Remove every model not in use.")
    ] = False,
) -> None:
    """Remove fetched models, the longest unused first; what a running process uses stays."""
    from servewright_api.quantity import parse_bytes

    if everything == (keep is not None or unused_days is not None):
        raise ConfigError("Say what to remove: --keep and --unused-days bound it, or --all alone.")
    try:
        keep_bytes = parse_bytes(keep or "0")
    except ValueError as error:
        raise ConfigError(f"--keep {keep}: {error}.") from error
    unused_for_s = None if unused_days is None else unused_days * 86400
    pruned = _cache().prune(keep_bytes=keep_bytes, unused_for_s=unused_for_s)
    typer.echo(
        f"Freed {pruned.freed_bytes / 1e6:.1f} MB; {pruned.kept_bytes / 1e6:.1f} MB are left, "
        f"{pruned.in_use_bytes / 1e6:.1f} MB of it in use."
    )


@cache_app.command("path")
def cache_path() -> None:
    """Print the folder of the fetched models."""
    typer.echo(_cache().root)


def _cache() -> Cache:
    from servewright_runtime.fetch.cache import Cache

    return Cache.from_environment()


def _configure_logs() -> None:
    from servewright_runtime import logs

    logs.configure()


def _overrides(sets: list[str] | None) -> list[Override]:
    try:
        return [parse_override(text) for text in sets or ()]
    except ValueError as error:
        raise ConfigError(str(error)) from error


def main() -> NoReturn:
    """`app`, with every error told as the module's docstring says."""
    try:
        try:
            app()
        finally:
            _flush()
    except ManifestError as error:
        for problem in error.problems:
            _complain(problem)
        sys.exit(ConfigError.exit_code)
    except ServewrightError as error:
        _complain(error.message)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("servewright"):
            _bug(error)
        _complain(
            f"The Python package {error.name} is not installed; "
            "run: pip install 'servewright[runtime]'"
        )
    except BrokenPipeError:
        pass  # whoever read the output wants no more of it
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _bug(error)
        _complain(f"No space is left to write {error.filename or 'the output'}; make room there.")
    except Exception as error:
        _bug(error)
    sys.exit(1)


def _flush() -> None:
    """Write what is buffered; at the process's own end nobody could be told that it failed."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _complain(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def _bug(error: Exception) -> NoReturn:
    """Say that it is our bug and where the traceback is."""
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="servewright-bug-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.write(f"servewright {__version__}, {' '.join(sys.argv[1:])}\n")
            log.writelines(traceback.format_exception(error))
    except OSError:
        what = f"what {DEBUG_VARIABLE}=1 makes it print"  # no room for a file
    else:
        what = log.name
    _complain(
        f"This is a bug in servewright ({type(error).__name__}); please report it with {what}."
    )
    sys.exit(1)
