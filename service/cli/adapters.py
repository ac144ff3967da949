"""`ipet adapters`: what a running server holds, and changing it."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import at_rest
from service.cli.connection import DEFAULT_URL, AsJson, Key, Url, connected, fail, print_json, print_table, told
from service.cli.exchange import Labels, WindowFrames, read_labels

if TYPE_CHECKING:
    from service.answers import Change

app = typer.Typer(
    help="List, upload, fetch and switch the adapters of a running server; back up, restore and verify a registry.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(help="The adapter's name.")]
Version = Annotated[int | None, typer.Option("--version", "-v", min=1, help="One version.")]


@app.command("list")
def list_adapters(as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show every adapter with its live version and aliases."""
    with connected(url, key) as client:
        adapters = client.adapters()
    rows = [
        [
            adapter["name"],
            adapter["task_type"] or "unreadable",
            str(adapter["live"] or "none"),
            ", ".join(f"{a}={v}" for a, v in adapter["aliases"].items() if a != "live"),
            ", ".join(f"{v['version']} {v['state']}" for v in adapter["versions"]),
        ]
        for adapter in adapters
    ]
    print_table(["name", "task", "live", "aliases", "versions"], rows, adapters if as_json else None)


@app.command()
def push(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Directory of the bundle.")],
    name: Annotated[str | None, typer.Option(help="The bundle's own name unless given.")] = None,
    activate: Annotated[bool, typer.Option(help="Make it live at once.")] = True,
    base: Annotated[str | None, typer.Option(help="Model that another library's adapter was trained on.")] = None,
    labels: Labels = None,
    window_frames: WindowFrames = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Upload a bundle as its adapter's next version; the server goes on serving.

    With --base what PEFT or IPET's authors saved becomes a bundle on the way, as by `ipet import`.
    """
    if base is None and (labels is not None or window_frames is not None):
        fail("--labels and --window-frames are of another library's adapter: give --base too")
    if base is None and (kind := _foreign(bundle)):
        fail(f"{bundle} is no bundle, it holds {kind}: give the model that it was trained on by --base")
    with TemporaryDirectory() as made, connected(url, key) as client:
        if base is not None:
            with told():
                from service.exchange.bundles import import_bundle

                made_of = Path(made) / "bundle"
                given = read_labels(labels)
                import_bundle(bundle, made_of, base, name=name, labels=given, window_frames=window_frames)
            bundle = Path(made) / "bundle"
        answer = client.push(bundle, name, activate)
    state = "live" if answer["live"] else "not live"
    typer.echo(f"{answer['name']}@{answer['version']} {state} {answer['digest']}")


@app.command()
def pull(
    name: Name,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Directory to write.")],
    version: Version = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Download a version's two files, byte for byte; the live version unless told."""
    with connected(url, key) as client:
        chosen = version or client.adapter(name)["live"]
        if chosen is None:
            fail(f"{name} has no live version; choose one with --version")
        files = {
            "adapter_config.json": client.config(name, chosen),
            "adapter_model.safetensors": client.weights(name, chosen),
        }
        out.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (out / file).write_bytes(content)
    typer.echo(f"{name}@{chosen} in {out}")


@app.command()
def activate(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, help="The version to point at.")],
    alias: Annotated[str, typer.Option(help="`live` is what the bare name means.")] = "live",
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Roll an adapter forward or back to a version, at once."""
    with connected(url, key) as client:
        client.activate(name, version, alias)
    typer.echo(f"{name}@{alias} is version {version}")


@app.command()
def inspect(name: Name, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Print one adapter with its versions, as JSON."""
    with connected(url, key) as client:
        print_json(client.adapter(name))


@app.command()
def history(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest changes.")] = 100,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Show who changed an adapter, when and what, newest first; also of a deleted one."""
    with connected(url, key) as client:
        answer = client.history(name, limit)
    rows = [[one["at"], one["actor"], one["action"], _told(one)] for one in answer["history"]]
    print_table(["at", "who", "what", "of"], rows, answer if as_json else None)


@app.command()
def delete(
    name: Name,
    version: Version = None,
    alias: Annotated[str | None, typer.Option(help="One alias.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the whole adapter goes.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Delete a version, an alias, or with neither the whole adapter."""
    if version is not None and alias is not None:
        fail("give --version or --alias, not both")
    if version is None and alias is None and not yes:
        typer.confirm(f"Delete {name} with all its versions?", abort=True)
    with connected(url, key) as client:
        client.delete(name, version, alias)
    typer.echo(f"deleted {name}" + (f"@{version or alias}" if version or alias else ""))


app.command()(at_rest.backup)
app.command()(at_rest.restore)
app.command("export", hidden=True)(at_rest.backup)  # the names of older releases
app.command("import", hidden=True)(at_rest.restore)
app.command()(at_rest.verify)


def _foreign(directory: Path) -> str | None:
    """Whose adapter a directory holds, where it is another library's."""
    try:
        kind = json.loads((directory / "adapter_config.json").read_bytes()).get("peft_type", "IPET")
    except FileNotFoundError:
        states = [path.name for path in directory.iterdir() if path.suffix in (".pt", ".pth", ".bin")]
        return f"the state dict {states[0]}" if len(states) == 1 else None
    except (OSError, ValueError, AttributeError):
        return None  # the server says what is wrong with it
    return None if kind == "IPET" else f"PEFT's {str(kind)[:40]}"


def _told(change: "Change") -> str:
    """The alias or version that a change is about."""
    version = "" if change["version"] is None else f"version {change['version']}"
    if change["alias"] is None:
        return version
    before = "" if change["previous"] is None else f", before {change['previous']}"
    return f"{change['alias']} {'-> ' + version if version else ''}{before}".strip()
