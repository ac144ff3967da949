"""PEFT's mixed batches: one LoRA a row by `adapter_names`, of as many parameters as the IPET adapter has."""

import re
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from service.model.adapter import parameter_counts
from service.model.spec import BackboneSpec
from tests.benchmarks.geometry import Cell, pool

_TARGETS = ["q_proj", "v_proj"]  # LoRA's own choice


def lora_rank(cell: Cell, backbone: BackboneSpec) -> int:
    """The rank whose parameter count is nearest to the IPET adapter's without its head."""
    counts = parameter_counts(cell.adapter, backbone)
    each = backbone.num_hidden_layers * len(_TARGETS) * 2 * backbone.hidden_size
    return max(1, round((counts["prompt"] + counts["adapter"]) / each))


class PeftMixedBatch:
    """A Hugging Face backbone with `adapters` LoRAs, a different one for each row; alpha is their rank."""

    def __init__(self, module: nn.Module, cell: Cell, rank: int, adapters: int) -> None:
        self._model_type = cell.model_type
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=_TARGETS, init_lora_weights=False)
        torch.manual_seed(0)
        dtype = next(module.parameters()).dtype
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of what PEFT reads
            self._model = get_peft_model(module, config, "task0")  # type: ignore[arg-type]
        for i in range(1, adapters):
            self._model.add_adapter(f"task{i}", config)
        self._model.to(dtype).eval()

    def __call__(self, inputs: Tensor, tasks: list[int]) -> Tensor:
        """Windows `[B, ...]`, row b for `tasks[b]` -> embeddings `[B, E]`."""
        hidden = self._model(inputs, adapter_names=[f"task{task}" for task in tasks]).last_hidden_state
        return pool(self._model_type, hidden)

    def tensors(self, task: int) -> dict[str, Tensor]:
        """The matrices of one of the LoRAs by the contract's names."""
        own = re.compile(rf".*layers\.(\d+)\.attention\.([qv])_proj\.lora_([AB])\.task{task}\.weight")
        found = [(own.fullmatch(name), tensor) for name, tensor in self._model.state_dict().items()]
        return {f"layers.{name[1]}.lora.{name[2]}.{name[3].lower()}": tensor.cpu() for name, tensor in found if name}
