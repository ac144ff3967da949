"""What PEFT never saved is refused by name, in bounded time."""

import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from service.errors import InvalidBundle
from service.exchange.bundles import import_bundle
from tests.exchange.test_refusals import CONFIG, WEIGHTS, change, pair, refused

__all__ = ["pair"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(option, "([a-z0-9_.]+)+!") for option in ("target_modules", "exclude_modules")],
        ("modules_to_save", ["([a-z0-9_.]+)+!"]),
        *[(f"{which}_pattern", {"([a-z0-9_.]+)+!": 2}) for which in ("rank", "alpha")],
    ],
)
def test_a_hostile_expression_takes_no_time(option: str, value: object, pair: tuple[Path, Path]) -> None:
    base, saved = pair
    change(saved / CONFIG, **{option: value})
    began = time.monotonic()
    with suppress(InvalidBundle):
        import_bundle(saved, saved.parent / "out", str(base))
    assert time.monotonic() - began < 60  # backtracking takes years


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("target_modules", "x{99999999999}", r"target_modules: 'x\{9+}' is no regular expression"),
        ("target_modules", "q" * 2001, "it has 2,001 characters, over 2,000"),
        ("exclude_modules", "(?!q).*", r"exclude_modules: .* or the modules' names themselves"),
        ("rank_pattern", {r"(q)\1": 1}, r"rank_pattern: .* is no regular expression that is read here"),
        ("alpha_pattern", {"(" * 100 + ")" * 100: 1}, "alpha_pattern: .* over 20 groups in groups"),
        ("alpha_pattern", {f"m{i}": 1 for i in range(1001)}, "alpha_pattern: 1,001 keys, over 1,000"),
        ("target_modules", ["q_proj"] * 1001, "target_modules: 1,001 names, over 1,000"),
        ("modules_to_save", ["classifier"] * 101, "modules_to_save: 101 names, over 100"),
        ("lora_alpha", 10**4000, "lora_alpha: expected a number"),
        ("rank_pattern", {"q_proj": 10**4000}, "rank_pattern: expected an object of numbers"),
    ],
)
def test_options_out_of_bounds(option: str, value: object, said: str, pair: tuple[Path, Path]) -> None:
    base, saved = pair
    change(saved / CONFIG, **{option: value})
    refused(saved, base, said)


def test_a_config_nested_without_end(pair: tuple[Path, Path]) -> None:
    base, saved = pair
    (saved / CONFIG).write_text("[" * 200_000)
    refused(saved, base, "adapter_config.json is not valid JSON")


def test_more_numbers_than_a_base_has_are_not_loaded(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, saved = pair
    save_file({"a.lora_A.weight": torch.zeros(2**25, dtype=torch.int8)}, saved / WEIGHTS)
    monkeypatch.delattr("safetensors.torch.load_file")
    refused(saved, base, "holds 33,554,432 numbers; at most")
