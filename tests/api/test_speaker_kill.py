"""kill -9 at random moments under enrolments, deletions and opt-outs of people.

What was answered is there after a restart, what was deleted does not come back, and what was under way is there wholly
or not at all.
"""

import os
import random
import signal
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from service.model.backbone import Backbone
from service.model.spec import TaskType
from tests.api.desk import ANN, SPEECH
from tests.api.test_kill import LONGEST_ROUND, nursery
from tests.bundles import random_bundle

PEOPLE = ("ann", "bea", "cleo", "dora")


@dataclass(frozen=True)
class State:
    """What is stored of a person; `last` is the number of their newest enrolment, also of one that is gone."""

    exists: bool = False
    last: int = 0
    ids: frozenset[int] = frozenset()
    is_out: bool = False

    def after(self, action: str) -> "State":
        match action:
            case "enrol" if not self.is_out:
                return replace(self, exists=True, last=self.last + 1, ids=self.ids | {self.last + 1})
            case "delete":
                return State(is_out=self.is_out)
            case "delete_enrolment":
                return replace(self, ids=self.ids - {min(self.ids, default=0)})
            case "opt_out":
                return replace(self, ids=frozenset(), is_out=True)
            case "opt_in":
                return replace(self, is_out=False)
        return self


@dataclass
class Person:
    """One person, whom one client changes."""

    name: str
    chance: random.Random
    state: State = State()
    under_way: str | None = None  # a change whose answer has not come
    answered: list[str] = field(default_factory=list)

    def change(self, http: httpx.Client) -> None:
        weights = {
            "enrol": 9,
            "delete": 2,
            "delete_enrolment": 2,
            "opt_out": 1,
            "opt_in": 3 if self.state.is_out else 0,
        }
        action = self.chance.choices(list(weights), list(weights.values()))[0]
        if (action == "delete_enrolment" and not self.state.ids) or len(self.state.ids) > 50:
            action = "delete"
        before, self.under_way = self.state, action
        url = f"/v1/speakers/{self.name}"
        if action == "enrol":
            done, expected = http.post(f"{url}/enrolments?adapter=voice", content=ANN[0]), 409 if before.is_out else 201
        elif action.startswith("opt"):
            done, expected = http.post(f"{url}/{action.replace('_', '-')}"), 200
        else:
            path = f"{url}/enrolments/{min(before.ids)}" if action == "delete_enrolment" else url
            done, expected = http.delete(path), 204 if before.exists or before.is_out else 404
        assert done.status_code == expected, f"{action} of {before}: {done.status_code} {done.text}"
        self.state, self.under_way = before.after(action), None
        self.answered.append(action)

    def check(self, http: httpx.Client) -> None:
        """The server has what it answered, and what was under way wholly or not at all."""
        told = http.get(f"/v1/speakers/{self.name}")
        possible = [self.state] if self.under_way is None else [self.state, self.state.after(self.under_way)]
        found = [one for one in possible if self.shows(told, one)]
        assert found, f"{self.name}: {told.text} is none of {possible}"
        self.state, self.under_way = found[0], None
        answer = http.post(f"/v1/speakers/{self.name}/verify?adapter=voice", content=ANN[0]).json()
        if self.state.ids:
            assert answer["score"] == pytest.approx(1.0, abs=1e-4), answer
        else:
            assert answer["decision"] == ("speaker_opted_out" if self.state.is_out else "speaker_not_enrolled")

    def shows(self, told: httpx.Response, state: State) -> bool:
        if told.status_code == 404:
            return not (state.exists or state.is_out)
        body = told.json()
        ids = {one["id"] for standing in body["adapters"] for one in standing["enrolments"]}
        return (body["created"] is not None, ids, body["opted_out"] is not None) == (
            state.exists,
            state.ids,
            state.is_out,
        )


def live_through(people: list[Person], clients: list[httpx.Client], pid: int, seconds: float, patient: bool) -> None:
    """Lets everybody's client loose on a server and kills it, where `patient` not before it has answered a change."""
    killed, faults = threading.Event(), list[str]()
    before = sum(len(person.answered) for person in people)

    def repeat(person: Person, http: httpx.Client) -> None:
        try:
            while not killed.is_set():
                person.change(http)
        except httpx.HTTPError:
            if not killed.is_set():
                faults.append(f"{person.name}: the server broke off by itself")
        except AssertionError as error:
            faults.append(f"{person.name}: {error}")

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(people, clients, strict=True)]
    for thread in threads:
        thread.start()
    while patient and sum(len(person.answered) for person in people) == before and not faults:
        killed.wait(0.01)
    killed.wait(seconds)
    killed.set()
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert not faults, faults[0]


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_kill_at_any_moment(rounds: int, tiny_ast: Backbone, tiny_ast_dir: Path, tmp_path: Path) -> None:
    chance = random.Random(rounds)
    people = [Person(name, random.Random(f"{name} {rounds}")) for name in PEOPLE]
    files = random_bundle(tmp_path, tiny_ast.spec, "voice", task=TaskType.VERIFICATION, **SPEECH)
    with ExitStack() as opened:
        start = opened.enter_context(nursery(tiny_ast_dir, tmp_path / "data"))
        clients = [opened.enter_context(httpx.Client(timeout=60, verify=False)) for _ in PEOPLE]
        for i in range(rounds + 1):
            url, pid, wait_for_death = start()
            for client in clients:
                client.base_url = httpx.URL(url)
            if not i:
                parts = {"config": files.config, "weights": files.weights}
                assert clients[0].post("/v1/adapters/voice/versions", files=parts).status_code == 201
            for person, client in zip(people, clients, strict=True):
                person.check(client)
            live_through(people, clients, pid, chance.uniform(0.0, LONGEST_ROUND), patient=i % 2 == 0)
            wait_for_death()
    answered = [action for person in people for action in person.answered]
    counts = ", ".join(f"{answered.count(action)} {action}" for action in sorted(set(answered)))
    print(f"\n{rounds + 1} kills, changes answered: {counts}")
    assert len(answered) > rounds // 2
