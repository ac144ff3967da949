"""The shapes of answers describe themselves, for the OpenAPI document."""

import typing

import pytest
from pydantic import TypeAdapter
from typing_extensions import is_typeddict

from service import answers

SHAPES = [shape for shape in vars(answers).values() if is_typeddict(shape)]


def test_docstrings_of_fields_are_their_descriptions() -> None:
    fields = TypeAdapter(answers.Classification).json_schema()["properties"]
    assert fields["labels"]["description"] == "Best first."
    assert fields["clip"]["description"] == "Index of the clip in the request."
    assert "reject_below" in fields["unknown"]["description"]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.__name__))
def test_every_shape_can_be_described(shape: type) -> None:
    described = TypeAdapter(shape).json_schema()
    assert described["properties"].keys() == typing.get_type_hints(shape).keys()
