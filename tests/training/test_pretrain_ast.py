"""Pre-training of an AST in miniature: it learns from labels and a teacher, it resumes, and the trainer takes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import ASTFeatureExtractor, ASTModel

from service.audio.features import FILTER_BANK, InputSpec
from service.model.bank import Bank
from service.model.loading import load_backbone
from service.training.export import planned_manifest
from service.training.norm_stats import with_backbone_norm
from service.training.pretrain import CHECKPOINT, run
from service.training.pretraining.ast_student import ASTStudent, Teacher, make_ast, standardised
from service.training.pretraining.corpus import Corpus
from service.training.pretraining.recipe import ASTGeometry, PretrainRecipe, read_recipe
from service.training.pretraining.sampling import Classes
from service.training.recipe import Input
from service.training.recipe import read_recipe as read_training_recipe
from service.training.shipped import find_recipe, shipped_recipes
from tests.backbones import save_tiny_wav2vec2
from tests.training.chords import Journal, make_corpus

ROOT = Path(__file__).parent.parent.parent
GEOMETRY: dict[str, Any] = {
    "width": 24,
    "layers": 2,
    "heads": 2,
    "feed_forward": 32,
    "frequency_stride": 16,
    "time_stride": 8,
    "max_length": 64,
    "mean": -8.0,
    "std": 4.0,
}
CLASSES = Classes(words=3, events=3, sounds=3, speakers=3)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> PretrainRecipe:
    teacher = save_tiny_wav2vec2(tmp_path_factory.mktemp("teacher"), norm="layer")
    return PretrainRecipe.model_validate(
        {
            "architecture": "ast",
            "teacher": str(teacher),
            "threads": 1,
            "checkpoint_steps": 10,
            "ast_geometry": GEOMETRY,
            "tasks": {
                "steps": 30,
                "warm_up": 5,
                "learning_rate": 3e-3,
                "matrix_rate": 0.02,
                "sizes": {
                    "words": 8,
                    "word_window": 6000,
                    "speakers": 4,
                    "events": 3,
                    "sounds": 1,
                    "long_window": 8000,
                },
            },
        }
    )


@pytest.fixture(scope="module")
def finished(
    recipe: PretrainRecipe, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ASTStudent, Journal]:
    out, journal = tmp_path_factory.mktemp("run"), Journal()
    student = run(recipe, corpus, out, resume=True, report=journal)
    assert isinstance(student, ASTStudent)
    return out, student, journal


def test_tasks_and_the_teacher_are_learnt(finished: tuple[Path, ASTStudent, Journal]) -> None:
    journal = finished[2]
    assert journal.losses["filter bank"] == []
    assert np.mean(journal.losses["tasks"][-10:]) < 0.9 * np.mean(journal.losses["tasks"][:5])
    assert np.mean(journal.parts["imitation"][-10:]) < 0.9 * np.mean(journal.parts["imitation"][:5])


def test_resumed_run_equals_uninterrupted(
    finished: tuple[Path, ASTStudent, Journal], recipe: PretrainRecipe, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recipe, corpus, tmp_path, resume=True, report=Journal(("tasks", 14)))
    run(recipe, corpus, tmp_path, resume=True)
    for name in (CHECKPOINT, "model.safetensors"):
        resumed, whole = load_file(tmp_path / name), load_file(finished[0] / name)
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_service_and_library_load_what_is_written(finished: tuple[Path, ASTStudent, Journal]) -> None:
    out = finished[0]
    extractor = ASTFeatureExtractor.from_pretrained(out)
    assert (extractor.mean, extractor.std, extractor.max_length) == (-8.0, 4.0, 64)
    clip = torch.randn(64 * 160 + 240) / 10
    spec = InputSpec(64, mean=extractor.mean, std=extractor.std)
    inputs = FILTER_BANK.windows(clip, spec).inputs
    library = ASTModel.from_pretrained(out, dtype=torch.float32).eval()
    backbone = load_backbone(str(out), "cpu", "float32")
    with torch.no_grad():
        expected = library(**extractor(clip.numpy(), sampling_rate=16_000, return_tensors="pt")).pooler_output
    served = backbone.forward(inputs, Bank.of(backbone, []), [0])
    torch.testing.assert_close(served, expected, atol=1e-4, rtol=0)


def test_a_recipe_without_mean_and_std_takes_the_backbones(finished: tuple[Path, ASTStudent, Journal]) -> None:
    backbone = load_backbone(str(finished[0]), "cpu", "float32").spec
    own = read_training_recipe(find_recipe("esc50-ast"))
    recipe = own.model_copy(update={"input": Input(window_frames=64)})
    completed = with_backbone_norm(recipe, backbone)
    planned_manifest(completed, backbone, ("dog", "rain"))  # refuses a recipe without them
    assert (completed.input.mean, completed.input.std) == (-8.0, 4.0)
    assert with_backbone_norm(own, backbone) is own


def test_student_sees_windows_as_the_service_does(finished: tuple[Path, ASTStudent, Journal]) -> None:
    student = finished[1]
    clip = torch.cat((torch.randn(4000) / 10, torch.zeros(4000)))
    spec = InputSpec(40, mean=-8.0, std=4.0)
    served = FILTER_BANK.windows(clip[:4000], spec).inputs[0]
    torch.manual_seed(0)
    seen = student.features(clip.expand(20, -1))
    assert seen.shape == (20, 48, 128)
    torch.testing.assert_close(seen[:, :20], served[:20].expand(20, -1, -1), atol=0.02, rtol=0)
    behind = seen[:, 30:].flatten(1)
    zeros = (behind == 1.0).all(dim=1)  # (0 - mean) / (2 std)
    assert 4 < int(zeros.sum()) < 16
    assert (behind[~zeros] < -0.9).all()


def test_positions_start_all_different() -> None:
    positions = make_ast(ASTGeometry.model_validate(GEOMETRY)).embeddings.position_embeddings[0, 2:]
    distances = torch.cdist(positions, positions) + torch.eye(len(positions))
    assert len(positions) == 8 * 7
    assert distances.min() > 0.05


def test_imitation_compares_frames_of_the_same_moment(recipe: PretrainRecipe) -> None:
    assert recipe.teacher is not None
    student = ASTStudent(recipe.ast_geometry, CLASSES, recipe.teacher)
    teacher = Teacher(recipe.teacher).model
    nearest = student.nearest_frames(columns=4, frames=45)
    silence = torch.zeros(1, 45 * 160 + 82)
    for column, frame in enumerate(nearest.tolist()):
        click = silence.clone()
        click[0, 1400 + 1280 * column] = 1.0  # the middle of 16 frames of 400 samples every 160, and every 8th such
        moved = (teacher(click).extract_features - teacher(silence).extract_features).abs().sum(dim=2)[0]
        assert moved.shape == (45,)
        assert moved.argmax() == frame


def test_layers_climb_the_teacher_from_its_convolutions_to_its_last_layer(recipe: PretrainRecipe) -> None:
    assert recipe.teacher is not None
    levels = Teacher(recipe.teacher).levels(torch.randn(2, 8000) / 10)
    heights = {}
    for layers in (1, 2, 4):
        student = ASTStudent(recipe.ast_geometry.model_copy(update={"layers": layers}), CLASSES, recipe.teacher)
        heights[layers] = student.heights
        assert torch.isfinite(student.imitation_loss(student(torch.randn(2, 8000) / 10), torch.randn(2, 8000) / 10))
    assert len(levels) == 1 + 3
    assert heights == {1: [], 2: [0], 4: [0, 2, 3]}


def test_standardised_over_rows_and_frames() -> None:
    target = standardised(torch.randn(4, 5, 3) * torch.tensor([1.0, 10.0, 100.0]) + 7)
    assert target.mean(dim=(0, 1)).abs().max() < 1e-5
    torch.testing.assert_close(target.flatten(0, 1).std(dim=0), torch.ones(3), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("tables", "unused"),
    [
        ({"architecture": "ast", "geometry": {"width": 32}}, "geometry"),
        ({"architecture": "ast", "filter_bank": {"steps": 3}}, "filter_bank"),
        ({"ast_geometry": {"width": 32}, "teacher": "embedded"}, "ast_geometry and teacher"),
    ],
)
def test_sections_of_the_other_architecture_are_refused(tables: dict[str, Any], unused: str) -> None:
    with pytest.raises(ValidationError, match=f"{unused}: not for architecture"):
        PretrainRecipe.model_validate(tables)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"width": 32, "heads": 3}, "heads: 3 do not divide a width of 32"),
        ({"max_length": 200}, "long_window: 248 frames; ast_geometry wants 16 to 200"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(geometry: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PretrainRecipe.model_validate({"architecture": "ast", "ast_geometry": geometry})


def test_a_teacher_has_to_be_a_wav2vec2(finished: tuple[Path, ASTStudent, Journal]) -> None:
    with pytest.raises(ValueError, match="it has to be a wav2vec2"):
        Teacher(str(finished[0]))


def test_committed_recipe_fits_the_tasks_windows() -> None:
    recipe = read_recipe(ROOT / "adapters" / "recipes" / "pretrain-small-ast.toml")
    recipes = map(read_training_recipe, shipped_recipes().values())
    windows = [each.input.window_frames for each in recipes if each.backbone == "embedded"]
    assert recipe.architecture == "ast"
    assert recipe.ast_geometry.max_length >= max(windows)
