"""`python -m service` is `ipet`."""

from service.cli.main import app

app()
