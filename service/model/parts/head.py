"""Task heads on a clip's embedding: classes as `linear(layer_norm(e))`, speakers as `embedding(e)` (contract, 3)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from service.model.groups import Group
from service.model.parts.part import Holding, Part, Shapes, Source, model_type_of, pad, problem, size_class
from service.model.spec import BackboneSpec, ModelType, TaskType

PLACE = "head"
NORM_EPS = 1e-5  # of the head's layer norm, as in the authors' code


class Head(Part):
    """The head of `task_type`, with as many outputs as there are `labels`, or `embedding_dim`.

    `ipet` classification: `head.norm.weight`, `.bias` `[E]`, `head.linear.weight` `[C, E]`, `.bias` `[C]`;
    verification: `head.embedding.weight` `[embedding_dim, E]`, `.bias`. `pooled-projector`, as Hugging Face's sequence
    classifiers: `head.projector.weight` `[projector_dim, D]`, `.bias`, then `head.linear.*` `[C, projector_dim]`.
    `ast`, as ASTForAudioClassification: as `ipet`, its norm with the backbone's epsilon. FEATURE_EXTRACTION has none.
    """

    since: ClassVar = {"head": 3, "projector_dim": 3}
    counted_as: ClassVar = "head"
    limits: ClassVar = {"projector_dim": 4096}

    head: Literal["ipet", "pooled-projector", "ast"] = "ipet"
    projector_dim: int = Field(default=256, ge=1)
    task_type: TaskType | None = Field(default=None, exclude=True)
    outputs: int = Field(default=0, exclude=True)
    model_type: str = Field(default="", exclude=True)

    @classmethod
    def gather(cls, fields: Mapping[str, Any], version: int) -> dict[str, Any]:
        """What is wrong with task, labels and embedding_dim the manifest itself says."""
        found = super().gather({n: v for n, v in fields.items() if n in ("head", "projector_dim")}, version)
        task, labels, width = fields.get("task_type"), fields.get("labels"), fields.get("embedding_dim")
        found["model_type"] = model_type_of(fields)
        if task in list(TaskType):
            found["task_type"] = TaskType(task)
        if task == TaskType.CLASSIFICATION:
            found["outputs"] = len(labels) if isinstance(labels, list | tuple) else 0
        elif task == TaskType.VERIFICATION:
            found["outputs"] = width if isinstance(width, int) else 0
        return found

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        is_ast = self.model_type == ModelType.AST
        if self.head == "pooled-projector" and is_ast:
            raise problem(f"head: pooled-projector is for backbones with frames, not for {self.model_type}; use ast")
        if self.head == "ast" and not is_ast:
            raise problem(f"head: ast is for {ModelType.AST}, not for {self.model_type}; use pooled-projector")
        if self.head != "ipet" and self.task_type not in (None, TaskType.CLASSIFICATION):
            raise problem(f"head: expected ipet for {self.task_type}, got {self.head}")
        return self

    @property
    def is_held(self) -> bool:
        return self.task_type is not None

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes if self.head == "pooled-projector" else {}

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        e, outputs = backbone.embedding_size, self.outputs
        if self.task_type is TaskType.FEATURES:
            return {}
        if self.task_type is TaskType.VERIFICATION:
            return {"head.embedding.weight": (outputs, e), "head.embedding.bias": (outputs,)}
        read, before = e, Shapes({"head.norm.weight": (e,), "head.norm.bias": (e,)})
        if self.head == "pooled-projector":
            read = self.projector_dim
            before = {"head.projector.weight": (read, backbone.hidden_size), "head.projector.bias": (read,)}
        return before | {"head.linear.weight": (outputs, read), "head.linear.bias": (outputs,)}

    def hold(self, source: Source) -> Iterable[Holding]:
        """Outputs are padded, so that heads of any number of classes are one product.

        A projector is linear and so is the mean over time before it, which embeddings begin with: both maps are one.
        """
        tensors, backbone = source.tensors, source.backbone.spec
        if self.task_type is TaskType.FEATURES:
            e = backbone.embedding_size
            yield Holding(PLACE, Kind(e, norm=False, is_there=False), {"nothing": torch.zeros(1, 1)}, e, exact=True)
            return
        linear = "linear" if "head.linear.weight" in tensors else "embedding"
        weight, bias = tensors[f"head.{linear}.weight"], tensors[f"head.{linear}.bias"]
        if "head.projector.weight" in tensors:
            bias = bias + weight @ tensors["head.projector.bias"]
            weight = pad(weight @ tensors["head.projector.weight"], 1, backbone.embedding_size)
        width, norm = size_class(len(weight)), "head.norm.weight" in tensors
        held = {"weight": weight[None], "bias": bias[None]}
        if norm:
            scale = tensors["head.norm.weight"]
            held |= {"norm_weight": scale[None], "norm_bias": tensors["head.norm.bias"][None]}
            held["norm_eps"] = scale.new_full((1, 1), backbone.norm_eps if self.head == "ast" else NORM_EPS)
        along = {"weight": 1, "bias": 1}
        yield Holding(PLACE, Kind(width, norm), held, len(weight), along, exact=True).padded(width)

    def initialise(self, name: str, parameter: Tensor) -> None:
        if name in ("head.linear.weight", "head.embedding.weight", "head.projector.weight"):
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name == "head.norm.weight":
            nn.init.ones_(parameter)


@dataclass(frozen=True, slots=True)
class Kind:
    width: int  # outputs, padded
    norm: bool
    is_there: bool = True


def read_heads(groups: Sequence[Group], embeddings: Tensor) -> Tensor:
    """Embeddings `[B, E]` -> each row's outputs `[B, widest]`, float32, zeros behind its own and in rows without.

    One product for each padded width, whatever the number of adapters.
    """
    widest = max((size for group in groups for size in group.sizes), default=0)
    out = embeddings.new_zeros((len(embeddings), widest), dtype=torch.float32)
    for group in groups:
        outputs = _outputs(group, group.rows.take(embeddings).float())
        if group.rows.index is None:
            return outputs
        out[:, : outputs.shape[1]].index_copy_(0, group.rows.index, outputs)
    return out


def _outputs(group: Group, embeddings: Tensor) -> Tensor:
    """`[C, E]` -> `[C, widest of the group]`."""
    if not group.kind.is_there:
        return embeddings
    if group.kind.norm:
        variance, mean = torch.var_mean(embeddings, dim=1, keepdim=True, correction=0)
        normed = (embeddings - mean) * (variance + group.take("norm_eps")).rsqrt()
        embeddings = normed * group.take("norm_weight") + group.take("norm_bias")
    weight, bias = group.stacks["weight"][0], group.stacks["bias"][0]
    if embeddings.device.type == "cpu":  # a weight copied for each row costs more than a product for each adapter
        out = embeddings.new_empty(len(embeddings), weight.shape[1])
        for place in dict.fromkeys(group.places):
            mine = [row for row, other in enumerate(group.places) if other == place]
            out[mine] = torch.addmm(bias[place], embeddings[mine], weight[place].T)
        return out
    weights = weight.index_select(0, group.index).transpose(1, 2)
    return torch.baddbmm(bias.index_select(0, group.index)[:, None], embeddings[:, None], weights)[:, 0]
