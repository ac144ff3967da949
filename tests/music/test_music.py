"""The set of musical styles: what is drawn tells no class, no work is on two sides, one seed makes one set."""

import importlib.util
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.audio.decode import decode
from service.training.datasets.load import load_dataset
from service.training.recipe import read_recipe
from tests.music import rendering, scores
from tests.music.making import choose, make_set, split
from tests.music.notation import Note, part_notes, tune_notes
from tests.music.rendering import FASTEST, SECONDS, SOUND_FONT, Draw, Excerpt, draw, excerpt, midi, play
from tests.music.scores import COLLECTIONS, LABELS, MusicSetError, Score, generator
from tests.music.works import united

RECIPE = Path(__file__).parents[2] / "adapters/recipes/music-style.toml"
CLAIM = re.compile(
    rb"(?i)by permission|rights to all|reserved|non-?commercial|general public license|orpheus|copyright \W*\d{4}"
)
CLIPS = {"train": 2, "selection": 1, "report": 1}
can_read = pytest.mark.skipif(importlib.util.find_spec("music21") is None, reason="music21 is not installed")
can_play = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUND_FONT.is_file(), reason="no fluidsynth, or no sound font"
)


def tune(label: str, collection: str, number: int, notes: int = 120, title: str = "") -> Score:
    """A random melody of eighths over a slow second part."""
    rng = np.random.default_rng(number)
    upper = tuple(Note(at / 2, 0.5, int(pitch)) for at, pitch in enumerate(rng.integers(60, 85, notes)))
    lower = tuple(Note(at * 4.0, 4.0, int(pitch)) for at, pitch in enumerate(rng.integers(40, 60, notes // 8)))
    name = f"{collection}/{number}.abc"
    return Score(label, collection, name, name, title or f"tune {number}", (upper, lower))


def invented(per_collection: int = 12) -> list[Score]:
    """Scores of every class and collection."""
    pairs = [(each.label, each.name) for each in COLLECTIONS]
    return [tune(*pair, 1000 * at + number) for at, pair in enumerate(pairs) for number in range(per_collection)]


def test_a_clip_sounds_alike_in_every_class() -> None:
    """Of each part, the draws of one class are those of any other, one by one: no draw can tell a class."""
    clips = choose(invented(), {"train": 9, "selection": 4, "report": 5}, seed=1)
    assert {clip.score.label for clip in clips} == {*LABELS}
    for part, count in (("train", 9), ("selection", 4), ("report", 5)):
        drawn = {label: [c.drawn for c in clips if (c.score.label, c.split) == (label, part)] for label in LABELS}
        assert all(each == drawn["dance"] and len(each) == count for each in drawn.values())
    assert len({clip.drawn for clip in clips}) == 9 + 4 + 5


def test_draws_cover_what_they_are_drawn_from() -> None:
    drawn = [draw(generator(1, number)) for number in range(400)]
    assert {each.instrument for each in drawn} == {*rendering.PROGRAMS}
    assert min(each.onsets for each in drawn) == rendering.SLOWEST
    assert max(each.onsets for each in drawn) == FASTEST
    assert np.ptp([each.pitch for each in drawn]) > 11  # an octave: every key


@pytest.mark.parametrize("seed", range(5))
def test_no_work_is_on_two_sides_and_no_collection_of_several(seed: int) -> None:
    parts = split(invented(), seed)
    sides: dict[tuple[str, str], set[str]] = {}
    for (label, part), works in parts.items():
        for work, found in works.items():
            assert not any(work in other for key, other in parts.items() if key != (label, part))
            for score in found:
                sides.setdefault((label, score.collection), set()).add("report" if part == "report" else "learnt")
    single = {label for label in LABELS if len({of for name, of in sides if name == label}) == 1}
    assert single == {"air", "madrigal"}
    assert all(len(found) == (2 if label in single else 1) for (label, _), found in sides.items())
    assert all(works for works in parts.values())


def test_a_tune_of_two_books_is_one_work_and_learnt_only() -> None:
    """The same melody a fourth higher, and the same title, are known again; two classes' claim drops both."""
    oneill, ryan = scores.ONEILL, scores.RYAN
    first = tune("dance", oneill, 1, title="The Red Fox (jig)")
    moved = tuple(tuple(Note(note.onset, note.length, note.pitch + 5) for note in part) for part in first.parts)
    again = replace(tune("dance", ryan, 2, title="Another name"), parts=moved)
    named = tune("dance", ryan, 3, title="RED FOX -- JIG")
    both = tune("dance", oneill, 4), tune("air", oneill, 4, title="tune 4")
    filling = [tune("dance", ryan, number) for number in range(5, 9)]
    found = united([first, again, named, *both, *filling])
    assert len({score.work for score in found[:3]}) == 1
    assert len({score.work for score in found}) == 1 + 1 + 4
    parts = split(found, seed=1)
    assert {score.source for works in parts.values() for each in works.values() for score in each} == {
        score.source for score in (first, *filling)
    }


@pytest.mark.parametrize("number", range(4))
def test_an_excerpt_has_the_speed_and_the_height_drawn(number: int) -> None:
    score, drawn = tune("dance", scores.RYAN, number), draw(generator(number))
    found = excerpt(score, drawn, np.random.default_rng(number))
    heard = sorted({round(note.onset, 6) for note in found.notes})
    assert len(heard) == drawn.onsets
    assert heard[0] == 0.0
    assert max(note.onset + note.length for note in found.notes) <= SECONDS
    weights = [note.length for note in found.notes]
    assert np.average([note.pitch for note in found.notes], weights=weights) == pytest.approx(drawn.pitch, abs=0.5)


def test_midi_is_what_the_file_format_says() -> None:
    """By hand: piano, C4 for half a second from 0.25 s on; 960 ticks a second."""
    clip = (Excerpt(0.0, (Note(0.25, 0.5, 60),)), Draw("piano", 1, 60.0, -20.0, 100))
    track = bytes.fromhex("00ff510307a12000c0008170903c648360803c009e00ff2f00")
    assert midi([clip]) == b"MThd" + bytes.fromhex("000000060000000101e0") + b"MTrk\0\0\0" + bytes([len(track)]) + track


@can_play
def test_what_is_played_has_the_pitch_the_time_and_the_level() -> None:
    """An organ's A below middle C in a clip's first half, two octaves higher in the other; then a shorter clip."""
    notes = (Note(0.0, 4.0, 57), Note(4.0, 3.9, 81))
    drawn = Draw("organ", 2, 69.0, -30.0, 90)
    played = play([(Excerpt(0.0, notes), drawn), (Excerpt(0.0, notes[:1]), replace(drawn, level=-25.0))], SOUND_FONT)
    assert [len(each) for each in played] == [round(16_000 * SECONDS)] * 2
    for samples, level in zip(played, (-30.0, -25.0), strict=True):
        assert 10 * np.log10(np.mean(np.square(samples, dtype=float))) == pytest.approx(level, abs=0.01)
    for begin, hertz in ((1.0, 220.0), (5.0, 880.0)):
        piece = played[0][round(16_000 * begin) :][:32_000] * np.hanning(32_000)
        power = np.abs(np.fft.rfft(piece)) ** 2
        near = np.abs(np.arange(len(power)) / 2 - hertz) < 8
        lower = np.arange(len(power)) / 2 < hertz * 0.9
        assert power[near].sum() > 20 * power[lower & ~near].sum()
    quiet, loud = played[1][round(16_000 * 6.5) :], played[1][: 16_000 * 4]
    assert np.square(quiet).mean() < 1e-3 * np.square(loud).mean()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature by the command itself."""
    out = tmp_path_factory.mktemp("music") / "set"
    asked = ["--classes", "air,dance", "--tunes", "5", "--clips", "2,1,1", "--seed", "3"]
    command = [sys.executable, "-m", "tests.music", str(out), *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 clips of 8 works (report 2, selection 2, train 4): ")
    return out


@can_read
@can_play
def test_the_set_is_what_the_recipe_reads(made: Path) -> None:
    dataset = load_dataset(made, read_recipe(RECIPE).data)
    assert dataset.labels == ("air", "dance")
    report = dataset.report().clips
    assert (len(dataset.train), len(dataset.selection), len(report)) == (4, 2, 2)
    assert dataset.grouped_by == "work"
    assert len({clip.group for clip in (*dataset.train, *dataset.selection, *report)}) == 8
    for clip in report:
        waveform = decode(clip.span.path.read_bytes())
        assert waveform.samples.shape == (round(16_000 * SECONDS),)
        assert waveform.samples.std() > 0.005
    assert "Ryan's Mammoth Collection (1883) | public domain" in (made / "README.md").read_text()


@can_read
@can_play
def test_one_seed_makes_one_set(made: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "again", 3, ("air", "dance"), CLIPS, tunes=5)
    files = {path.relative_to(made) for path in made.rglob("*.*")}
    assert files == {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*")}
    assert [file for file in files if (made / file).read_bytes() != (tmp_path / "again" / file).read_bytes()] == []


def test_another_seed_makes_another_set_and_a_class_is_its_own() -> None:
    given, rest = invented(), [score for score in invented() if score.label != "air"]
    one, other = ([clip.row() for clip in choose(given, CLIPS, seed)] for seed in (1, 2))
    assert not set(one) & set(other)
    assert [row for row in one if row[1] != "air"] == [clip.row() for clip in choose(rest, CLIPS, 1)]


@can_read
def test_a_tune_is_read_as_it_stands() -> None:
    """A tie is one note, a grace note none, a chord several, a triplet two eighths' time; the repeat is not played."""
    text = "X:1\nT:Proof\nM:4/4\nL:1/4\nK:D\n|: {g}F2 [Ad] c- | c2 z (3A/=c/A/ :|\n"
    third = 1 / 3
    expected = [(0, 2, 66), (2, 1, 69), (2, 1, 74), (3, 3, 73), (7, third, 69), (7 + third, third, 72)]
    expected += [(7 + 2 * third, third, 69)]
    found = [(note.onset, note.length, note.pitch) for note in tune_notes(text)]
    assert np.allclose(found, expected, atol=1e-3)


def test_parts_are_read_side_by_side(tmp_path: Path) -> None:
    """By hand, in quarters: a chord of which one note is tied over the bar; a second voice; rests beyond the bar."""

    def note(step: str, length: int, *extra: str) -> str:
        what = f"<pitch><step>{step}</step><octave>4</octave></pitch>" if step else "<rest/>"
        return f"<note>{''.join(extra)}{what}<duration>{length}</duration></note>"

    bar = "<attributes><divisions>2</divisions><time><beats>2</beats><beat-type>4</beat-type></time></attributes>"
    start, stop = "<tie type='start'/>", "<tie type='stop'/>"
    back = "<backup><duration>4</duration></backup>"
    chord = note("G", 4) + note("B", 4, "<chord/>", start)
    first = [bar + chord, note("B", 2, stop) + note("A", 2) + back + note("C", 4)]
    second = [bar + note("", 4) + note("", 4), note("D", 2, "<grace/>") + note("E", 4)]
    parts = ("".join(f"<measure>{each}</measure>" for each in part) for part in (first, second))
    path = tmp_path / "score.xml"
    path.write_text("<score-partwise>" + "".join(f"<part>{part}</part>" for part in parts) + "</score-partwise>")
    assert part_notes(path) == [
        (Note(0.0, 2.0, 67), Note(0.0, 3.0, 71), Note(2.0, 2.0, 60), Note(3.0, 1.0, 69)),
        (Note(2.0, 2.0, 64),),
    ]


@can_read
@pytest.mark.parametrize("name", ["monteverdi/madrigal.3.1.mxl", "trecento/PMFC_12_1-Kyrie Rondello.xml"])
def test_notes_are_those_of_music21s_own_streams(name: str) -> None:
    from music21 import converter

    path = scores.corpus() / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = converter.parse(path, forceSource=True, storePickle=False).stripTies().parts
    heard = ([each for each in part.flatten().notes if each.quarterLength] for part in parts)
    theirs = [sorted((float(each.offset), pitch.midi) for each in part for pitch in each.pitches) for part in heard]
    ours = [[(note.onset, note.pitch) for note in part] for part in part_notes(path)]
    assert [len(part) for part in ours] == [len(part) for part in theirs]
    assert all(np.allclose(mine, other, atol=1e-3) for mine, other in zip(ours, theirs, strict=True))


@can_read
def test_terms_are_those_of_the_files() -> None:
    """No file that is read bears a notice; those left out for theirs do."""
    root = scores.corpus()

    def claimed(path: Path) -> bool:
        """Whether a score says that it may not be used, or whose it is. A template's empty "Copyright ©" does not."""
        if path.suffix == ".mxl":
            with zipfile.ZipFile(path) as packed:
                text = max((packed.read(name) for name in packed.namelist()), key=len)
        else:
            text = path.read_bytes()
        return CLAIM.search(text.partition(b"<part ")[0].replace(b"\0", b"")) is not None

    read = {path for each in COLLECTIONS for path in root.glob(each.files)}
    assert len(read) > 1200
    assert [path.name for path in read if claimed(path)] == []
    for left_out in (
        "bach/bwv101.7.mxl",
        "palestrina/Agnus.krn",
        "essenFolksong/license.txt",
        "monteverdi/madrigal.5.2.mxl",
    ):
        assert claimed(root / left_out)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MusicSetError, match="no class 'polka'; there are air, "):
        make_set(tmp_path, labels=("polka",))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(MusicSetError, match=r"no sound font at .*none\.sf2: apt install fluid-soundfont-gm"):
        make_set(tmp_path, sound_font=tmp_path / "none.sf2")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MusicSetError, match="apt install fluidsynth"):
        make_set(tmp_path)
    monkeypatch.setitem(sys.modules, "music21", None)
    with pytest.raises(MusicSetError, match="pip install 'music21"):
        scores.corpus()
    (tmp_path / "a-file").touch()
    with pytest.raises(MusicSetError, match="name a new folder"):
        make_set(tmp_path)


def test_too_few_scores_are_told() -> None:
    with pytest.raises(MusicSetError, match="no score of dance is left for the selection part"):
        choose([tune("dance", scores.ONEILL, 1), tune("dance", scores.RYAN, 2)], CLIPS, seed=1)
