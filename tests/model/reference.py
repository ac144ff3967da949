"""The paper's forward, written independently of `service.model`: prompts as tokens, prepended and cut off.

Works on a checkpoint's tensors by their published names and on one adapter at a time, in float32, with nothing folded,
fused or batched over adapters (contract, section 3).
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional


class Reference:
    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.tensors = load_file(directory / "model.safetensors")

    def linear(self, name: str, x: Tensor) -> Tensor:
        """A linear map as the adapter at hand changes it, word for word as the contract's section 5 has it."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        found = re.fullmatch(r"encoder\.layers?\.(\d+)\.(.+)", name)
        if found is None or found[2] not in _TARGETS:
            return functional.linear(x, weight, bias)
        layer, target = found[1], _TARGETS[found[2]]
        vectors, vector = self.fields.get("ia3", {}), self.adapter.get(f"layers.{layer}.ia3.{target}")
        if target in vectors.get("input", ()):
            x = x * vector
        y = x @ weight.T
        name = f"layers.{layer}.lora.{target}"
        if f"{name}.a" in self.adapter:
            a, b = self.adapter[f"{name}.a"], self.adapter[f"{name}.b"]
            section = self.fields["lora"]
            keys = (f"{layer}.{target}", target)
            rank = next((section["rank_pattern"][key] for key in keys if key in section.get("rank_pattern", {})), None)
            rank = rank or section["r"]
            alpha = section["alpha"]
            for key in reversed(keys):
                alpha = section.get("alpha_pattern", {}).get(key, alpha)
            s = alpha / (rank**0.5 if section.get("rslora") else rank)
            y = y + s * (x @ a.T @ b.T)
            if section.get("dora"):
                n = (weight + s * b @ a).norm(dim=1).detach()
                y = self.adapter[f"{name}.magnitude"] / n * y
        y = y + bias + self.adapter.get(f"layers.{layer}.bias.{target}", 0.0)
        return y * vector if target in vectors.get("output", ()) else y

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self.config["layer_norm_eps"])

    def attention(self, q: str, k: str, v: str, out: str, x: Tensor, front: int = 0) -> Tensor:
        """`front` tokens of `x` are a prompt."""
        heads = self.config["num_attention_heads"]
        query, key, value = (self.linear(name, x) for name in (q, k, v))
        before = f"layers.{q.split('.')[2]}.prefix"
        if f"{before}.key" in self.adapter:
            key = torch.cat((self.adapter[f"{before}.key"].expand(len(x), -1, -1), key), dim=1)
            value = torch.cat((self.adapter[f"{before}.value"].expand(len(x), -1, -1), value), dim=1)
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        if self.config["model_type"] == "wavlm":
            tokens = x.shape[1] - front
            scores[:, :, front:, -tokens:] += self.position_bias(q.removesuffix(".q_proj"), x[:, front:])
        weights = torch.softmax(scores, dim=-1)
        return self.linear(out, (weights @ value).transpose(1, 2).flatten(2))

    def position_bias(self, name: str, x: Tensor) -> Tensor:
        """WavLM's, of the tokens alone: `[B, H, T, T]`."""
        config, t, heads = self.config, self.tensors, self.config["num_attention_heads"]
        half, tokens = config["num_buckets"] // 2, x.shape[1]
        buckets = torch.zeros(tokens, tokens, dtype=torch.long)
        for query in range(tokens):
            for key in range(tokens):
                far, exact = abs(key - query), half // 2
                if far >= exact:
                    wide = math.log(far / exact) / math.log(config["max_bucket_distance"] / exact) * (half - exact)
                    far = min(int(exact + wide), half - 1)
                buckets[query, key] = far + half * (key > query)
        shared = t["encoder.layers.0.attention.rel_attn_embed.weight"][buckets].permute(2, 0, 1)
        per_head = x.unflatten(-1, (heads, -1)).transpose(1, 2)
        gates = self.plain_linear(f"{name}.gru_rel_pos_linear", per_head)
        a, b = torch.sigmoid(gates[..., :4].sum(-1)), torch.sigmoid(gates[..., 4:].sum(-1))
        gate = a * (b * t[f"{name}.gru_rel_pos_const"][..., 0] - 1) + 2
        return gate[..., None] * shared

    def plain_linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def embeddings(
        self,
        inputs: Tensor,
        adapter: dict[str, Tensor],
        scale: float = 0.0,
        residual: bool = False,
        fields: Mapping[str, Any] = MappingProxyType({}),
    ) -> Tensor:
        """Inputs `[B, ...]` and one adapter's tensors by the contract's names -> embeddings `[B, E]`.

        Args:
            fields: of the manifest, what version 3 has.
        """
        self.adapter, self.fields = adapter, fields
        is_ast = self.config["model_type"] == "audio-spectrogram-transformer"
        hidden = self.ast_tokens(inputs + frame(adapter, inputs)) if is_ast else self.wav2vec2_states(inputs)
        self.bands = self.ast_rows() if is_ast else 1
        outputs = [hidden]
        for i in range(self.config["num_hidden_layers"]):
            prompt = adapter.get(f"layers.{i}.prompt", hidden.new_zeros(0, hidden.shape[2]))
            sequence = torch.cat((prompt.expand(len(hidden), -1, -1), hidden), dim=1)
            part = {name: adapter.get(f"layers.{i}.adapter.{name}") for name in _BOTTLENECK}
            layer = self.ast_layer if is_ast else partial(self.wav2vec2_layer, front=len(prompt))
            front = len(prompt) + 2 * is_ast
            adapt = partial(
                bottleneck, part=part, scale=scale, residual=residual, front=front, bands=self.bands, fields=fields
            )
            hidden = layer(i, sequence, adapt)[:, len(prompt) :]
            outputs.append(hidden)
        if "head.layers.weight" in adapter:
            shares = torch.softmax(adapter["head.layers.weight"], dim=0)
            hidden = torch.stack([share * output for share, output in zip(shares, outputs, strict=True)]).sum(dim=0)
        if is_ast:
            final = self.norm("layernorm", hidden)
            return (final[:, 0] + final[:, 1]) / 2
        if self.config.get("do_stable_layer_norm"):
            hidden = self.norm("encoder.layer_norm", hidden)
        return torch.cat((hidden.mean(dim=1), hidden.std(dim=1)), dim=1)

    def ast_tokens(self, spectrogram: Tensor) -> Tensor:
        config, t = self.config, self.tensors
        patches = functional.conv2d(
            spectrogram.transpose(1, 2)[:, None],
            t["embeddings.patch_embeddings.projection.weight"],
            t["embeddings.patch_embeddings.projection.bias"],
            (config["frequency_stride"], config["time_stride"]),
        )
        rows, columns = patches.shape[2:]
        positions = t["embeddings.position_embeddings"]
        grid = positions[0, 2:].reshape(rows, -1, positions.shape[2])
        have = grid.shape[1]
        if columns <= have:
            grid = grid[:, have // 2 - columns // 2 : have // 2 - columns // 2 + columns]
        else:
            stretched = functional.interpolate(grid.permute(2, 0, 1)[None], (rows, columns), mode="bilinear")
            grid = stretched[0].permute(1, 2, 0)
        tokens = patches.flatten(2).transpose(1, 2) + grid.flatten(0, 1)
        extra = torch.cat((t["embeddings.cls_token"], t["embeddings.distillation_token"]), dim=1) + positions[:, :2]
        return torch.cat((extra.expand(len(tokens), -1, -1), tokens), dim=1)

    def ast_rows(self) -> int:
        return int((self.config["num_mel_bins"] - self.config["patch_size"]) // self.config["frequency_stride"] + 1)

    def ast_layer(self, i: int, x: Tensor, adapt: Callable[[Tensor], Tensor]) -> Tensor:
        name = f"encoder.layer.{i}"
        names = [f"{name}.attention.attention.{part}" for part in ("query", "key", "value")]
        x = x + self.attention(*names, f"{name}.attention.output.dense", self.norm(f"{name}.layernorm_before", x))
        inner = functional.gelu(self.linear(f"{name}.intermediate.dense", self.norm(f"{name}.layernorm_after", x)))
        fed = self.linear(f"{name}.output.dense", inner)
        return x + fed + adapt(fed if self.fields.get("adapter_place") == "sequential" else x)

    def wav2vec2_states(self, samples: Tensor) -> Tensor:
        config, t = self.config, self.tensors
        x = samples[:, None]
        for i, stride in enumerate(config["conv_stride"]):
            name = f"feature_extractor.conv_layers.{i}"
            x = functional.conv1d(x, t[f"{name}.conv.weight"], t.get(f"{name}.conv.bias"), stride)
            if f"{name}.layer_norm.weight" in t:
                weight, bias = t[f"{name}.layer_norm.weight"], t[f"{name}.layer_norm.bias"]
                if config.get("feat_extract_norm") == "group":
                    x = functional.group_norm(x, x.shape[1], weight, bias)
                else:
                    x = functional.layer_norm(x.transpose(1, 2), weight.shape, weight, bias).transpose(1, 2)
            x = functional.gelu(x)
        x = self.linear("feature_projection.projection", self.norm("feature_projection.layer_norm", x.transpose(1, 2)))
        name = "encoder.pos_conv_embed.conv"
        if config["model_type"] == "data2vec-audio":
            return self.norm("encoder.layer_norm", x + self.deep_positions(x))
        magnitude = t[f"{name}.parametrizations.weight.original0"]
        direction = t[f"{name}.parametrizations.weight.original1"]
        weight = magnitude * direction / direction.norm(dim=(0, 1), keepdim=True)
        kernel, groups = weight.shape[2], config["num_conv_pos_embedding_groups"]
        positions = functional.conv1d(x.transpose(1, 2), weight, t[f"{name}.bias"], padding=kernel // 2, groups=groups)
        positions = positions[:, :, : x.shape[1]]
        x = x + functional.gelu(positions).transpose(1, 2)
        return x if config["do_stable_layer_norm"] else self.norm("encoder.layer_norm", x)

    def deep_positions(self, x: Tensor) -> Tensor:
        kernel, groups = self.config["conv_pos_kernel_size"], self.config["num_conv_pos_embedding_groups"]
        for i in range(self.config["num_conv_pos_embeddings"]):
            name = f"encoder.pos_conv_embed.layers.{i}.conv"
            weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
            x = functional.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=groups).transpose(1, 2)
            x = functional.gelu(functional.layer_norm(x, x.shape[-1:]))
        return x

    def wav2vec2_layer(self, i: int, x: Tensor, adapt: Callable[[Tensor], Tensor], front: int) -> Tensor:
        name = f"encoder.layers.{i}"
        names = [f"{name}.attention.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
        if self.config.get("do_stable_layer_norm"):
            x = x + self.attention(*names, self.norm(f"{name}.layer_norm", x), front=front)
            normed = self.norm(f"{name}.final_layer_norm", x)
            inner = functional.gelu(self.linear(f"{name}.feed_forward.intermediate_dense", normed))
            fed = self.linear(f"{name}.feed_forward.output_dense", inner)
            return x + fed + adapt(fed if self.fields.get("adapter_place") == "sequential" else x)
        x = x + self.attention(*names, x, front=front)
        h = self.norm(f"{name}.layer_norm", x)
        inner = functional.gelu(self.linear(f"{name}.feed_forward.intermediate_dense", h))
        fed = self.linear(f"{name}.feed_forward.output_dense", inner)
        h = h + fed + adapt(fed if self.fields.get("adapter_place") == "sequential" else x)
        return self.norm(f"{name}.final_layer_norm", h)


_BOTTLENECK = (
    *("down.weight", "down.bias", "up.weight", "up.bias", "conv.weight", "conv.bias", "norm.weight", "norm.bias"),
)
_TARGETS = {
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "attention.q_proj": "q",
    "attention.k_proj": "k",
    "attention.v_proj": "v",
    "attention.out_proj": "o",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
}


def bottleneck(
    x: Tensor,
    part: dict[str, Tensor | None],
    scale: float,
    residual: bool,
    front: int,
    bands: int,
    fields: Mapping[str, Any],
) -> Tensor:
    """`front` tokens stand for no time; behind them are so many bands of frames."""
    if part["down.weight"] is None:
        return torch.zeros_like(x)
    read = x
    if part["norm.weight"] is not None:
        read = functional.layer_norm(x, x.shape[-1:], part["norm.weight"], part["norm.bias"])
    hidden = functional.linear(read, part["down.weight"], part["down.bias"])
    if part["conv.weight"] is not None and part["conv.bias"] is not None:
        rows = [
            hidden[:, :front],
            *(convolve(band, part["conv.weight"], part["conv.bias"]) for band in hidden[:, front:].chunk(bands, dim=1)),
        ]
        hidden = torch.cat(rows, dim=1)
    activation = getattr(functional, fields.get("adapter_activation", "relu"))
    out = scale * functional.linear(activation(hidden), part["up.weight"], part["up.bias"])
    return out + x if residual else out


def convolve(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Frames `[B, T, R]`, each channel by its own kernel `[R, K]`: `y[t] = bias + sum_k w[k] x[t + k - K // 2]`."""
    out = bias.expand_as(frames).clone()
    for t in range(frames.shape[1]):
        for k in range(weight.shape[1]):
            neighbour = t + k - weight.shape[1] // 2
            if 0 <= neighbour < frames.shape[1]:
                out[:, t] = out[:, t] + weight[:, k] * frames[:, neighbour]
    return out


def frame(adapter: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """What an input prompt adds to spectrograms `[B, frames, bins]`."""
    picture = torch.zeros_like(inputs[0]).T  # [bins, frames]
    if "input.prompt.up" in adapter:
        up, down, left, right = (adapter[f"input.prompt.{side}"] for side in ("up", "down", "left", "right"))
        width = len(up)
        picture[:width] = up
        picture[-width:] = down
        picture[width:-width, :width] = left
        picture[width:-width, -width:] = right
    return picture.T


def head(tensors: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    if "head.embedding.weight" in tensors:
        return functional.linear(embeddings, tensors["head.embedding.weight"], tensors["head.embedding.bias"])
    weight, bias = tensors["head.norm.weight"], tensors["head.norm.bias"]
    normed = functional.layer_norm(embeddings, weight.shape, weight, bias)
    return functional.linear(normed, tensors["head.linear.weight"], tensors["head.linear.bias"])


def relative_error(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|."""
    return float((a - b).abs().max() / b.abs().max())
