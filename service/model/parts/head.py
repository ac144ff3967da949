"""Task heads on a clip's embedding: classes as `linear(layer_norm(e))`, speakers as `embedding(e)` (contract, 3)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from service.model.groups import Group, Groups, RowSubset
from service.model.parts.part import Holding, Part, Shapes, pad, size_class
from service.model.spec import BackboneSpec, TaskType

if TYPE_CHECKING:
    from service.model.adapter import AdapterWeights
    from service.model.backbone import Backbone

PLACE = "head"
NORM_EPS = 1e-5  # of the head's layer norm, as in the authors' code


class Head(Part):
    """The head of `task_type`, with as many outputs as there are `labels`, or `embedding_dim`.

    Classification: `head.norm.weight`, `.bias` `[E]`, `head.linear.weight` `[C, E]`, `.bias` `[C]`; verification:
    `head.embedding.weight` `[embedding_dim, E]`, `.bias` `[embedding_dim]`.
    """

    counted_as: ClassVar = "head"

    task_type: TaskType | None = Field(default=None, exclude=True)
    outputs: int = Field(default=0, exclude=True)

    @classmethod
    def gather(cls, fields: Mapping[str, Any], version: int) -> dict[str, Any]:
        """What is wrong with these fields the manifest itself says."""
        task, labels, width = fields.get("task_type"), fields.get("labels"), fields.get("embedding_dim")
        if task == TaskType.CLASSIFICATION:
            return {"task_type": TaskType(task), "outputs": len(labels) if isinstance(labels, list | tuple) else 0}
        if task == TaskType.VERIFICATION:
            return {"task_type": TaskType(task), "outputs": width if isinstance(width, int) else 0}
        return {}

    @property
    def is_held(self) -> bool:
        return self.task_type is not None

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        e, outputs = backbone.embedding_size, self.outputs
        if self.task_type is TaskType.VERIFICATION:
            return {"head.embedding.weight": (outputs, e), "head.embedding.bias": (outputs,)}
        norm: Shapes = {"head.norm.weight": (e,), "head.norm.bias": (e,)}
        return norm | {"head.linear.weight": (outputs, e), "head.linear.bias": (outputs,)}

    def hold(self, weights: "AdapterWeights", backbone: "Backbone") -> Iterable[Holding]:
        yield hold_head(weights.tensors)

    def initialise(self, name: str, parameter: Tensor) -> None:
        if name in ("head.linear.weight", "head.embedding.weight"):
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name == "head.norm.weight":
            nn.init.ones_(parameter)


@dataclass(frozen=True, slots=True)
class Kind:
    width: int  # outputs, padded
    norm: bool


def hold_head(tensors: Mapping[str, Tensor]) -> Holding:
    """A head as a slot holds it; outputs are padded, so that heads of any number of classes are one product."""
    norm = "head.norm.weight" in tensors
    linear = "linear" if "head.linear.weight" in tensors else "embedding"
    weight, bias = tensors[f"head.{linear}.weight"], tensors[f"head.{linear}.bias"]
    width = size_class(len(weight))
    held = {"weight": pad(weight, 0, width)[None], "bias": pad(bias, 0, width)[None]}
    if norm:
        scale = tensors["head.norm.weight"]
        held |= {"norm_weight": scale[None], "norm_bias": tensors["head.norm.bias"][None]}
        held["norm_eps"] = scale.new_full((1, 1), NORM_EPS)
    return Holding(PLACE, Kind(width, norm), held, size=len(weight), exact=True)


def read_head(held: Holding, embeddings: Tensor) -> Tensor:
    """The outputs `[B, C]` of one head for all of a batch's embeddings `[B, E]`."""
    batch = len(embeddings)
    numbers = torch.zeros(batch, dtype=torch.long, device=embeddings.device)
    group = Group(
        held.kind,
        {name: tensor[:, None] for name, tensor in held.tensors.items()},
        [0] * batch,
        numbers,
        [held.size] * batch,
        numbers,
        RowSubset(range(batch), None),
    )
    return _outputs(group, embeddings.float())


def read_heads(groups: Groups | None, embeddings: Tensor) -> Tensor:
    """Embeddings `[B, E]` -> each row's outputs `[B, widest]`, float32, zeros behind its own and in rows without.

    One product for each padded width, whatever the number of adapters.
    """
    widest = max((max(group.sizes) for group in groups.groups), default=0) if groups else 0
    out = embeddings.new_zeros((len(embeddings), widest), dtype=torch.float32)
    for group in groups.groups if groups else ():
        outputs = _outputs(group, group.rows.take(embeddings).float())
        if group.rows.index is None:
            return outputs
        out[:, : outputs.shape[1]].index_copy_(0, group.rows.index, outputs)
    return out


def _outputs(group: Group, embeddings: Tensor) -> Tensor:
    """`[C, E]` -> `[C, widest of the group]`."""
    if group.kind.norm:
        variance, mean = torch.var_mean(embeddings, dim=1, keepdim=True, correction=0)
        normed = (embeddings - mean) * (variance + group.take("norm_eps", 0)).rsqrt()
        embeddings = normed * group.take("norm_weight", 0) + group.take("norm_bias", 0)
    weight, bias = (group.stacks[name][0, :, : max(group.sizes)] for name in ("weight", "bias"))
    if embeddings.device.type == "cpu":  # a weight copied for each row costs more than a product for each adapter
        out = embeddings.new_empty(len(embeddings), weight.shape[1])
        for place in dict.fromkeys(group.places):
            mine = [row for row, other in enumerate(group.places) if other == place]
            out[mine] = torch.addmm(bias[place], embeddings[mine], weight[place].T)
        return out
    weights = weight.index_select(0, group.index).transpose(1, 2)
    return torch.baddbmm(bias.index_select(0, group.index)[:, None], embeddings[:, None], weights)[:, 0]
