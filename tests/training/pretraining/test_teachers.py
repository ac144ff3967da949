"""Teachers: the packaged ones where they are installed, and any encoder at the rate that it was trained for."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTModel, Wav2Vec2FeatureExtractor

from service.training.pretraining.recipe import TeacherSection
from service.training.pretraining.teachers import MissingTeacher, load_teacher
from tests.backbones import save_tiny_wav2vec2
from tests.training.miniature import chord

CPU = torch.device("cpu")


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000])
def test_an_encoder_hears_its_own_rate(rate: int, tmp_path: Path) -> None:
    folder = str(save_tiny_wav2vec2(tmp_path, norm="layer"))  # a frame every 160 of its own samples
    Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=False).save_pretrained(folder)
    target = load_teacher(TeacherSection(name=folder), CPU).hear(chord(300, 1.0, 0))
    assert len(target.values) == pytest.approx(rate / 160, abs=2)
    assert target.step == pytest.approx(16_000 / len(target.values))
    assert target.first == pytest.approx(target.step / 2)
    whole = load_teacher(TeacherSection(name=folder, of_clip=True), CPU).hear(chord(300, 1.0, 0))
    assert whole.step == 0
    np.testing.assert_allclose(whole.values[0], target.values.mean(axis=0), atol=1e-5)


def test_what_has_no_rate_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_wav2vec2(tmp_path)
    with pytest.raises(MissingTeacher, match="is no encoder that transformers can read"):
        load_teacher(TeacherSection(name=str(folder)), CPU)
    ASTModel(ASTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "ast")
    with pytest.raises(MissingTeacher, match="is no encoder"):
        load_teacher(TeacherSection(name=str(tmp_path / "ast")), CPU)


@pytest.mark.skipif(find_spec("resemblyzer") is None, reason="needs resemblyzer")
def test_voices_are_embedded_whole() -> None:
    teacher = load_teacher(TeacherSection(name="resemblyzer"), CPU)
    clip = chord(200, 2.0, 0)
    one, quieter, other = (teacher.hear(x).values[0] for x in (clip / 50, clip / 100, chord(900, 0.5, 1)))
    assert teacher.of_clip
    assert one.shape == (256,)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert one @ quieter > 0.999 > one @ other


@pytest.mark.skipif(find_spec("pyopen_wakeword") is None, reason="needs pyopen-wakeword")
def test_words_are_frames_over_the_whole_clip() -> None:
    teacher = load_teacher(TeacherSection(name="pyopen-wakeword"), CPU)
    clip = chord(500, 2.0, 0)
    target = teacher.hear(clip)
    last = target.first + target.step * (len(target.values) - 1)
    assert target.values.shape[1] == 96
    assert target.first < 2_000
    assert last > len(clip) - 4_000
    again = teacher.hear(np.concatenate([clip, np.zeros(16_000, np.float32)]))
    np.testing.assert_allclose(
        again.values[: len(target.values) // 2], target.values[: len(target.values) // 2], atol=1
    )
    assert np.abs(target.values[len(target.values) // 2]).max() > 1
