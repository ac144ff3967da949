"""`ipet speakers`, as a shell would call it."""

import base64
import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.database import open_database
from service.model.spec import TaskType
from service.speakers.vault import KEY_FILE
from tests.api.desk import ANN, BRIAN, DIGIT, SILENCE, SPEECH, Desk
from tests.api.live import Live
from tests.speakers.world import ACME, KEYS, World


def ipet(data_dir: Path, *words: object, **environment: str) -> Result:
    env = {"IPET_DATA_DIR": str(data_dir), "COLUMNS": "200"} | environment
    return CliRunner().invoke(app, ["speakers", *map(str, words)], env=env)


def test_voiceprints_are_put_under_a_new_key(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "keys"
    world = World(open_database(data))
    world.enrol("ann", 3.0, 1.0)
    old, new = (base64.b64encode(key).decode() for key in KEYS)
    lost = ipet(data, "rekey", IPET_VOICEPRINT_KEYS=new)
    assert lost.exit_code == 1
    assert "--voiceprint-key-file" in lost.stderr
    file.write_text(f"{new}\n{old}\n")
    done = ipet(data, "rekey", "--voiceprint-key-file", file)
    assert (done.exit_code, done.stdout.split()[0]) == (0, "2")
    assert "sealed voiceprints that callers keep open with the key that sealed them only" in done.stdout
    assert ipet(data, "rekey", IPET_VOICEPRINT_KEYS=f"{new},{old}").stdout.split()[0] == "0"
    assert len(world.again(KEYS[1]).export(ACME, "ann")[1]) == 2
    assert not (data / KEY_FILE).exists()


def test_nothing_is_begun_where_there_is_nothing(tmp_path: Path) -> None:
    assert ipet(tmp_path / "data", "rekey").exit_code == 1
    assert not (tmp_path / "data").exists()


# A running server's


def call(service: Live, *words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"IPET_URL": service.url, "COLUMNS": "200"})


def enrolled(service: Live, source: Path, *more: str) -> tuple[int, dict[str, list[str]]]:
    done = call(service, "speakers", "enrol", source, "-a", "voice", *more)
    header, *rows = csv.reader(done.stdout.splitlines())
    assert header == ["speaker", "clips", "result", "speech_seconds", "needed_seconds", "note"]
    return done.exit_code, {speaker: rest for speaker, *rest in rows}


def test_a_folder_is_enrolled_and_again_goes_on(service: Live, desk: Desk, tmp_path: Path) -> None:
    for name, clips in {"bulk-ann": ANN, "bulk-brian": [BRIAN, BRIAN]}.items():
        (tmp_path / name).mkdir()
        for number, clip in enumerate(clips):
            (tmp_path / name / f"{number}.ogg").write_bytes(clip)
    (tmp_path / "bulk-mute.wav").write_bytes(SILENCE)
    (tmp_path / "bulk-bad.wav").write_bytes(b"no audio")
    (tmp_path / "bulk-out.ogg").write_bytes(BRIAN)
    desk.ask("POST", "/bulk-out/opt-out")
    code, rows = enrolled(service, tmp_path)
    assert code == 1  # some could not be
    assert {name: row[:2] for name, row in rows.items()} == {
        "bulk-ann": ["2", "enrolled"],
        "bulk-bad": ["1", "bad_audio"],
        "bulk-brian": ["2", "enrolled"],
        "bulk-mute": ["1", "pending"],
        "bulk-out": ["1", "speaker_opted_out"],
    }
    assert "bulk-bad.wav" in rows["bulk-bad"][-1]
    assert rows["bulk-mute"][-1] == "no_speech"
    desk.ask("DELETE", "/bulk-brian", 204)
    again = enrolled(service, tmp_path)[1]
    assert again["bulk-ann"][1] == "skipped"
    assert again["bulk-brian"][1] == "enrolled"
    assert again["bulk-out"][1] == "speaker_opted_out"
    ids = [one["id"] for one in desk.ask("GET", "/bulk-ann")["adapters"][0]["enrolments"]]
    assert ids == [1, 2]


def test_a_table_is_enrolled_anew_where_that_is_asked(service: Live, desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "a.ogg").write_bytes(ANN[0])
    (tmp_path / "b.opus").write_bytes(ANN[1])
    table = tmp_path / "people.csv"
    table.write_text("speaker,path\ntable-ann,a.ogg\ntable-ann,b.opus\ntable-lost,nowhere.wav\n")
    code, rows = enrolled(service, table)
    assert (code, rows["table-ann"][1], rows["table-lost"][1]) == (1, "enrolled", "unreadable")
    table.write_text("speaker,path\ntable-ann,b.opus\ntable-ann,a.ogg\n")
    for expected in ([3, 4], [5, 6]):
        assert enrolled(service, table, "--overwrite") == (0, {"table-ann": rows["table-ann"]})
        assert [one["id"] for one in desk.ask("GET", "/table-ann")["adapters"][0]["enrolments"]] == expected
    (tmp_path / "c.m4a").write_bytes(DIGIT)
    table.write_text("speaker,path\ntable-short,c.m4a\n")
    first, second = (enrolled(service, table)[1]["table-short"] for _ in range(2))
    assert first == second  # the same clip does not count twice
    assert first[1] == "pending"
    table.write_text("who,path\n")
    assert "speaker and path" in call(service, "speakers", "enrol", table, "-a", "voice").stderr


def table_of(path: Path, *rows: tuple[str, str, bytes]) -> Path:
    """A table of speaker and path, and the clips beside it."""
    for _, name, clip in rows:
        (path.parent / name).write_bytes(clip)
    path.write_text("\n".join(["speaker,path", *(f"{speaker},{name}" for speaker, name, _ in rows)]), "utf-8-sig")
    return path


def ids_of(desk: Desk, speaker: str) -> list[int]:
    return [one["id"] for one in desk.ask("GET", f"/{speaker}")["adapters"][0]["enrolments"]]


@pytest.mark.parametrize(
    ("clip", "result", "note"),
    [
        (SILENCE, "not_enough_speech", "no_speech older enrolments stay"),
        (DIGIT, "not_enough_speech", "older enrolments stay"),
        (b"no audio", "bad_audio", "older enrolments stay"),
    ],
    ids=["silence", "short", "bad"],
)
def test_no_voiceprint_goes_for_clips_that_make_none(
    service: Live, desk: Desk, tmp_path: Path, clip: bytes, result: str, note: str
) -> None:
    desk.enrol("kept-ann", *ANN)
    before = ids_of(desk, "kept-ann")
    code, rows = enrolled(service, table_of(tmp_path / "people.csv", ("kept-ann", "new", clip)), "--overwrite")
    assert (code, rows["kept-ann"][1]) == (1, result)
    assert rows["kept-ann"][-1].endswith(note)
    assert ids_of(desk, "kept-ann") == before
    assert desk.ask("GET", "/kept-ann")["status"] == "enrolled"
    desk.ask("DELETE", "/kept-ann", 204)


def test_all_of_a_name_in_a_folder_is_one_speaker_and_an_empty_one_stops_nobody(
    service: Live, desk: Desk, tmp_path: Path
) -> None:
    for name in ("two-codecs.ogg", "two-codecs.mp3", "two-kinds/1.ogg", "two-kinds.ogg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(BRIAN)
    (tmp_path / "nobody-in-it").mkdir()
    code, rows = enrolled(service, tmp_path)
    assert (code, {name: row[:2] for name, row in rows.items()}) == (
        1,
        {"two-codecs": ["2", "enrolled"], "nobody-in-it": ["0", "no_audio"], "two-kinds": ["2", "enrolled"]},
    )
    assert (len(ids_of(desk, "two-codecs")), len(ids_of(desk, "two-kinds"))) == (2, 2)


def test_a_bad_clip_of_many_is_named_until_it_is_mended(service: Live, desk: Desk, tmp_path: Path) -> None:
    clips = [("many", f"{number:02}.ogg", BRIAN) for number in range(16)]
    table = table_of(tmp_path / "people.csv", *clips, ("many", "16.ogg", b"no audio"))
    for _ in range(2):
        code, rows = enrolled(service, table)
        assert (code, rows["many"][1]) == (1, "bad_audio")
        assert rows["many"][-1].startswith(f"{tmp_path / '16.ogg'}: ")
        assert len(ids_of(desk, "many")) == 16
    (tmp_path / "16.ogg").write_bytes(BRIAN)
    code, rows = enrolled(service, table)
    assert (code, rows["many"][1], len(ids_of(desk, "many"))) == (0, "enrolled", 17)
    assert enrolled(service, table)[1]["many"][1] == "skipped"


def test_what_breaks_off_half_way_leaves_the_older_enrolments_alone(service: Live, desk: Desk, tmp_path: Path) -> None:
    desk.enrol("halved", *ANN)
    clips = [("halved", f"{number:02}.ogg", BRIAN) for number in range(18)]
    table = table_of(tmp_path / "people.csv", *clips)
    (tmp_path / "17.ogg").unlink()  # missed when the first 16 are sent
    code, rows = enrolled(service, table, "--overwrite")
    assert (code, rows["halved"][1]) == (1, "unreadable")
    assert "17.ogg" in rows["halved"][-1]
    assert ids_of(desk, "halved") == [1, 2]
    assert desk.enrol("halved", BRIAN)["enrolments"][0]["id"] == 19  # the 16 were stored, and are gone


@pytest.mark.parametrize("row", ["ann", "ann,", ",clip.ogg"])
def test_a_table_that_lacks_a_cell_names_the_line(service: Live, tmp_path: Path, row: str) -> None:
    table = tmp_path / "people.csv"
    table.write_text(f"speaker,path\n{row}\n")
    done = call(service, "speakers", "enrol", table, "-a", "voice")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "line 2 lacks" in done.stderr


def test_people_are_shown_verified_identified_and_deleted(service: Live, desk: Desk, tmp_path: Path) -> None:
    clip = tmp_path / "clip.ogg"
    clip.write_bytes(ANN[0])
    desk.enrol("shell", *ANN)
    assert "shell\tenrolled" in call(service, "speakers", "list", "--adapter", "voice").stdout
    assert call(service, "speakers", "list", "--status", "stale", "--adapter", "voice").stdout.strip() == ""
    assert json.loads(call(service, "speakers", "show", "shell").stdout)["status"] == "enrolled"
    assert len(json.loads(call(service, "speakers", "export", "shell").stdout)["enrolments"]) == 2
    verified = call(service, "speakers", "verify", "shell", clip, "-a", "voice", "--threshold", "-1")
    assert verified.stdout.startswith("accept (score ")
    assert "not compared" in call(service, "speakers", "verify", "nobody", clip, "-a", "voice").stdout
    found = call(service, "speakers", "identify", clip, "-a", "voice", "--among", "shell")
    assert "for 1 searched" in found.stdout
    assert "shell\t" in found.stdout
    clip.write_bytes(SILENCE)
    for command in (["verify", "shell", clip], ["identify", clip, "--among", "shell"]):
        silent = call(service, "speakers", *command, "-a", "voice")
        assert silent.stdout.startswith("not_enough_speech")
        assert "warning: no_speech" in silent.stderr
    assert call(service, "speakers", "delete", "shell", "--enrolment", 1).exit_code == 0
    assert call(service, "speakers", "delete", "shell").exit_code == 1  # nobody says yes
    assert call(service, "speakers", "delete", "shell", "--yes").exit_code == 0
    gone = call(service, "speakers", "show", "shell")
    assert (gone.exit_code, "unknown_speaker" in gone.stderr) == (1, True)


@pytest.fixture(scope="module")
def normed(service: Live, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that normalises scores; by its cosines nobody would be accepted at `eer`."""
    fields = {"normalisation": {"type": "as-norm", "top": 30}, "thresholds": {"eer": 3.1}}
    service.publish(tmp_path_factory.mktemp("normed"), "shell-normed", task=TaskType.VERIFICATION, **SPEECH | fields)
    return "shell-normed"


def test_the_score_that_was_judged_is_told(service: Live, desk: Desk, normed: str, tmp_path: Path) -> None:
    (tmp_path / "clip.ogg").write_bytes(ANN[1])
    desk.enrol("told", ANN[0], adapter=normed)
    told = desk.verify("told", query=f"adapter={normed}&threshold=eer")
    words = ("speakers", "verify", "told", tmp_path / "clip.ogg", "-a", normed)
    assert (
        f"(normalised score {told['normalised_score']:.3f}, threshold 3.100)"
        in call(service, *words, "--threshold", "eer").stdout
    )
    for more in ((), ("--threshold", "0.5")):
        assert f"(score {told['score']:.3f}, threshold " in call(service, *words, *more).stdout


def test_trials_are_ranked_by_normalised_scores_where_that_is_asked(service: Live, normed: str, tmp_path: Path) -> None:
    for name, clip in (("a1", ANN[0]), ("a2", ANN[1]), ("b1", BRIAN)):
        (tmp_path / name).write_bytes(clip)
    trials, out = tmp_path / "trials.txt", tmp_path / "scores.txt"
    trials.write_text("1 a1 a2\n0 a1 b1\n")
    words = ("score", "--trials", trials, "--data", tmp_path)
    assert "by cosines; --normalised" in call(service, *words, "-a", normed).stdout
    assert "by normalised scores" in call(service, *words, "-a", normed, "--normalised", "--out", out).stdout
    files = [("enrolment", ("a", ANN[0])), ("test", ("b", ANN[1]))]
    scored = service.http.post(f"/v1/score?adapter={normed}", files=files).json()
    assert float(out.read_text().split()[0]) == pytest.approx(scored["normalised_score"], abs=1e-3)
    assert "cosines" not in call(service, *words, "-a", "voice").stdout
    refused = call(service, *words, "-a", "voice", "--normalised")
    assert (refused.exit_code, "normalisation" in refused.stderr) == (1, True)


def test_trials_are_scored(service: Live, tmp_path: Path) -> None:
    for name, clip in (("a1", ANN[0]), ("a2", ANN[1]), ("b1", BRIAN)):
        (tmp_path / name).write_bytes(clip)
    (tmp_path / "bad").write_bytes(b"no audio")
    trials, out = tmp_path / "trials.txt", tmp_path / "scores.txt"
    trials.write_text("1 a1 a2\n0 a1 b1\n0 a2 b1\n1 a1 bad\n")
    done = call(service, "score", "--trials", trials, "--data", tmp_path, "-a", "voice", "--out", out, "--json")
    assert done.exit_code == 1  # a clip could not be heard
    told = json.loads(done.stdout)
    assert (told["trials"], told["left_out"], told["speakers"], told["resampled"]) == (3, 1, 2, "trials")
    assert told["eer_interval"][0] <= told["eer"] <= told["eer_interval"][1]
    lines = [line.split() for line in out.read_text().splitlines()]
    scored = service.http.post(
        "/v1/score?adapter=voice", files=[("enrolment", ("a", ANN[0])), ("test", ("b", ANN[1]))]
    ).json()
    assert float(lines[0][0]) == pytest.approx(scored["score"], abs=1e-5)
    trials.write_text("1 a1 a2\n0 a1 b1\n")
    plain = call(service, "score", "--trials", trials, "--data", tmp_path, "-a", "voice")
    assert (plain.exit_code, plain.stdout.startswith("EER ")) == (0, True)
