"""A real server that asks for keys, and keys for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.access.key_table import KeyTable
from service.access.keys import Grant, Scope
from service.database import open_database
from service.model.spec import TaskType
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True, slots=True)
class Keyed:
    """A running service with stored keys."""

    service: Live
    table: KeyTable
    admin: str

    def ask(self, key: str, method: str, path: str, **more: object) -> httpx.Response:
        return self.service.http.request(method, path, headers=bearer(key), **more)  # type: ignore[arg-type]

    def make(self, *scopes: Scope, **limits: object) -> str:
        """A new key that the service knows already."""
        _, token = self.table.create("", Grant(frozenset(scopes), **limits))  # type: ignore[arg-type]
        self.service.context.keys.refresh()
        return str(token)

    def publish(
        self, directory: Path, name: str, key: str, task: TaskType = TaskType.CLASSIFICATION, seed: int = 0
    ) -> httpx.Response:
        files = random_bundle(directory, self.service.backbone, name, task=task, seed=seed)
        parts = {"config": files.config, "weights": files.weights}
        return self.ask(key, "POST", f"/v1/adapters/{name}/versions", files=parts)


@contextmanager
def with_keys(backbone: Path, directory: Path, **changes: object) -> Iterator[Keyed]:
    """Adapters `acme-one` and `acme-voice` of one tenant, `other-one` and `other-voice` of another."""
    settings = settings_for(backbone, directory / "data", **changes)
    table = KeyTable(open_database(settings.data_dir))
    _, admin = table.create("operator", Grant(frozenset({Scope.ADMIN})))
    with running(settings) as service:
        made = Keyed(service, table, str(admin))
        for tenant in ("acme", "other"):
            assert made.publish(directory, f"{tenant}-one", made.admin).status_code == 201
            assert made.publish(directory, f"{tenant}-voice", made.admin, TaskType.VERIFICATION).status_code == 201
        yield made
