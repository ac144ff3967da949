"""`ipet import` and `ipet export`: what other libraries saved becomes a bundle, and back."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli.connection import told

Labels = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="Labels, one a line; the base's unless given.")
]
WindowFrames = Annotated[
    int | None, typer.Option(min=3, help="Length of windows, 10 ms each; whole clips unless given.")
]


def read_labels(path: Path | None) -> list[str] | None:
    """A file's lines, with or without a byte order mark."""
    return None if path is None else path.read_text(encoding="utf-8-sig").splitlines()


def import_(
    directory: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="What PEFT saved, or one file of IPET's authors.")
    ],
    base: Annotated[str, typer.Option(help="Model that it was trained on: a directory or Hub id.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Directory to write; made if need be.")],
    name: Annotated[str | None, typer.Option(help="Of the adapter; the directory's unless given.")] = None,
    labels: Labels = None,
    window_frames: WindowFrames = None,
) -> None:
    """Make a bundle of a LoRA, DoRA or IA3 directory that PEFT saved, or of a state dict of IPET's authors."""
    with told():
        from service.exchange.bundles import import_bundle

        given = read_labels(labels)
        manifest = import_bundle(directory, out, base, name=name, labels=given, window_frames=window_frames)
    typer.echo(f"{out}: {manifest.name}, {manifest.task_type.value}, {len(manifest.labels or ())} labels")


def export(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A bundle.")],
    base: Annotated[str, typer.Option(help="Model that it is for: a directory or Hub id of a classifier.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Directory to write; made if need be.")],
    format: Annotated[Literal["peft"], typer.Option(help="Whose files to write.")] = "peft",
) -> None:
    """Write a bundle of LoRA, DoRA or IA3 as PEFT saves them, and print how PEFT loads it.

    Refuses parts that PEFT has no place for, and warns of what else would make other answers there.
    """
    with told():
        from service.exchange.to_peft import export_peft

        modules = export_peft(bundle, out, base)
    typer.echo(f"{out}: {format}, {len(modules)} modules")
    if (out / "config.json").exists():
        typer.echo(
            "PeftModel.from_pretrained(AutoModelForAudioClassification.from_pretrained("
            f"{base!r}, config=AutoConfig.from_pretrained({str(out)!r}), ignore_mismatched_sizes=True), {str(out)!r})"
        )
