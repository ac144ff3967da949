"""`ipet speakers`: the people of a service."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.at_rest import DatabaseUrl, DataDir, settings_of
from service.cli.connection import told

app = typer.Typer(help="The speakers of a service.", no_args_is_help=True, rich_markup_mode=None)
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--voiceprint-key-file",
        envvar="IPET_VOICEPRINT_KEY_FILE",
        help="As for `ipet serve`, which takes IPET_VOICEPRINT_KEYS too.",
    ),
]


@app.command()
def rekey(key_file: KeyFile = None, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Encrypt every stored voiceprint anew under the first key given; servers may run, with both keys, meanwhile."""
    from service.database import database_of
    from service.speakers.store import open_speakers

    with told():
        settings = settings_of(data_dir, database_url, voiceprint_key_file=key_file)
        database_of(settings.data_dir, settings.database_url).require_begun()
        store = open_speakers(settings)
        try:
            count = store.rewrite()
        finally:
            store.close()
    typer.echo(f"{count} voiceprints encrypted anew; older keys are needed for none that is stored")
