"""What a row costs: seconds alone say too little where attention grows with the square of the tokens."""

import dataclasses
from typing import Any

import pytest
import torch

from service.engine.cost import Costs
from service.model.backbone import Backbone


class BaseSize:
    """The geometry of the published AST (base, AudioSet) and nothing of its weights."""

    dtype = torch.bfloat16

    def __init__(self, tiny: Backbone) -> None:
        self.spec = dataclasses.replace(tiny.spec, hidden_size=768, num_attention_heads=12, num_hidden_layers=12)

    def token_count(self, window_frames: int) -> int:
        return 2 + 12 * ((window_frames - 16) // 10 + 1)


@pytest.fixture
def costs(tiny_ast: Backbone) -> Costs:
    base: Any = BaseSize(tiny_ast)
    return Costs(base, 2 * 2**30)


def test_a_window_of_300_s_is_refused_by_arithmetic(costs: Costs) -> None:
    assert costs.of(30_000).nbytes > 31e9
    assert "35,990 tokens" in (costs.refusal(30_000) or "")
    assert "at most 2,048 MiB: give shorter windows (`ipet import --window-frames`)" in (costs.refusal(30_000) or "")
    assert costs.refusal(1024) is None
    assert costs.refusal(3000) is None


def test_a_row_that_holds_everybody_up_is_refused(tiny_ast: Backbone) -> None:
    base: Any = BaseSize(tiny_ast)
    bounded = Costs(base, 2**40, 8000)
    assert bounded.refusal(3000) is None
    assert "as a row cannot be interrupted: give shorter windows (`ipet import --window-frames`)" in (
        bounded.refusal(10_000) or ""
    )


def test_work_grows_faster_than_seconds(costs: Costs) -> None:
    assert costs.of(128).frames == pytest.approx(128, rel=0.05)
    assert costs.of(1024).frames == pytest.approx(1.26 * 1024, rel=0.02)
    assert costs.of(30_000).frames > 8 * 30_000


def test_lengths_that_many_adapters_ask_for_are_not_all_remembered(costs: Costs) -> None:
    for frames in range(100, 5000):
        costs.of(frames)
    assert costs.of.cache_info().currsize <= 1024
