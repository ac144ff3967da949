"""Who runs in one cell of the matrix, on the same audio and backbone. Knows no clocks and no tables."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.model.loading import load_backbone
from tests.backbones import random_adapter
from tests.benchmarks.authors import AuthorsForm
from tests.benchmarks.geometry import Cell, audio, hugging_face_module, pool
from tests.benchmarks.peers import PeftMixedBatch, lora_rank
from tests.benchmarks.plan import TASKS, Plan
from tests.benchmarks.timing import check_time

INT8 = "int8"  # weights of the backbone's linear layers, beside the default dtype

AUTHORS = "authors' form"
SWAP_EACH = f"{AUTHORS}, swap a request"
SWAP_SORTED = f"{AUTHORS}, swap sorted"
BARE = "bare backbone"
ENGINE = "ipet-serve"
REQUESTS = f"{ENGINE}, same requests"


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to run the cell.

    Args:
        form: what runs, without its dtype.
        adapters: different adapters in one call.
        clips: clips that one call answers.
        run: the call; embeddings `[clips, E]` in the order of the clips.
    """

    form: str
    dtype: str
    adapters: int
    clips: int
    run: Callable[[], Tensor]

    @property
    def name(self) -> str:
        return f"{self.form}, {self.adapters} adapter{'s' * (self.adapters != 1)}, {self.dtype}"


@dataclass(frozen=True, slots=True)
class Field:
    """What the contestants of a cell share."""

    cell: Cell
    directory: Path
    plan: Plan
    dtype: str  # the default one of the device
    backbones: dict[str, Backbone]  # by dtype, or INT8
    adapters: list[AdapterWeights]
    tasks: list[int]  # of the requests that the swappers answer, one a row

    @classmethod
    def of(cls, cell: Cell, directory: Path, plan: Plan, ends: float = math.inf) -> "Field":
        """Raises OutOfTime where `ends` comes before all backbones are loaded."""

        def load(dtype: str, **options: str) -> Backbone:
            check_time(ends)
            return load_backbone(str(directory), plan.device.type, dtype, for_inference=True, **options)

        backbones, default = {"float32": load("float32")}, load("auto")
        name = str(default.dtype).removeprefix("torch.")
        backbones.setdefault(name, default)
        if plan.device.type == "cpu":
            backbones[INT8] = load("auto", weights="int8")
        adapters = [random_adapter(cell.adapter, default.spec, seed) for seed in range(TASKS)]
        tasks = random.Random(0).choices(range(TASKS), k=plan.batch)
        return cls(cell, directory, plan, name, backbones, adapters, tasks)

    @property
    def dtypes(self) -> list[str]:
        """float32 and the default one."""
        return list(dict.fromkeys(("float32", self.dtype)))

    def inputs(self, rows: int) -> Tensor:
        """The first `rows` clips of the cell, the same for everyone."""
        return audio(self.cell, self.backbones["float32"].spec, rows).to(self.plan.device)

    def module(self, dtype: str) -> torch.nn.Module:
        return hugging_face_module(self.directory, self.cell, self.plan.device, getattr(torch, dtype))

    def counts(self, dtype: str) -> tuple[int, ...]:
        """How many different adapters the engine has in a batch, by turns."""
        return self.plan.counts if self.plan.whole or dtype == self.dtype else (self.plan.batch,)


def contestants(field: Field) -> Iterator[Contestant]:
    """Everyone, the authors' form first; each is made when it is asked for."""
    kinds = [dtype for dtype in (*field.dtypes, INT8) if dtype in field.backbones]
    rows = range(field.plan.batch)
    yield from authors(field)
    for dtype in field.dtypes:
        yield bare(field, dtype)
    yield peft(field)
    yield engine(field, field.dtype, [None for _ in rows])
    for dtype in kinds:
        for count in field.counts(dtype):
            yield engine(field, dtype, [row % count for row in range(max(count, len(rows)))])
    yield engine(field, field.dtype, field.tasks, REQUESTS)


def authors(field: Field) -> list[Contestant]:
    """The authors' form: one adapter in a batch; swapped for each request; requests sorted by adapter first.

    The tasks' weights wait in the device's memory.
    """
    device = field.plan.device
    form = AuthorsForm(field.module("float32"), field.cell.model_type, field.cell.adapter).to(device)
    states = [{k: v.to(device) for k, v in weights.to_tensors().items()} for weights in field.adapters]
    clips, tasks = field.inputs(field.plan.batch), field.tasks

    def one_adapter() -> Tensor:
        form.swap(states[0])
        return form(clips)

    def swap_each() -> Tensor:
        answers = []
        for clip, task in zip(clips, tasks, strict=True):
            form.swap(states[task])
            answers.append(form(clip[None]))
        return torch.cat(answers)

    def swap_sorted() -> Tensor:
        answers: dict[int, Tensor] = {}
        for task in sorted(set(tasks)):
            mine = [i for i, other in enumerate(tasks) if other == task]
            form.swap(states[task])
            answers.update(zip(mine, form(clips[mine]), strict=True))
        return torch.stack([answers[i] for i in range(len(tasks))])

    distinct = len(set(tasks))
    return [
        Contestant(AUTHORS, "float32", 1, len(clips), one_adapter),
        Contestant(SWAP_EACH, "float32", distinct, len(clips), swap_each),
        Contestant(SWAP_SORTED, "float32", distinct, len(clips), swap_sorted),
    ]


def bare(field: Field, dtype: str) -> Contestant:
    """The Hugging Face forward without any adapter."""
    module, clips = field.module(dtype), field.inputs(field.plan.batch).to(getattr(torch, dtype))
    kind = field.cell.model_type
    return Contestant(BARE, dtype, 0, len(clips), lambda: pool(kind, module(clips).last_hidden_state))


def peft(field: Field) -> Contestant:
    """PEFT's LoRA with a different adapter in each row."""
    count, spec = field.plan.batch, field.backbones["float32"].spec
    mixed = PeftMixedBatch(field.module(field.dtype), field.cell, lora_rank(field.cell, spec), count)
    clips = field.inputs(count).to(getattr(torch, field.dtype))
    return Contestant("PEFT LoRA mixed", field.dtype, count, count, lambda: mixed(clips, list(range(count))))


def engine(field: Field, dtype: str, tasks: list[int] | list[None], form: str = ENGINE) -> Contestant:
    """This repository's forward: row b runs the adapter of `tasks[b]`, None being the bare backbone."""
    backbone = field.backbones[dtype]
    used = sorted({task for task in tasks if task is not None})
    bank = Bank(backbone, max(len(used), field.plan.slots))
    for slot, task in enumerate(used, start=1):
        bank.write(slot, fold(field.adapters[task], backbone))
    slots = [0 if task is None else 1 + used.index(task) for task in tasks]
    clips = field.inputs(len(slots))
    return Contestant(form, dtype, len(used), len(slots), lambda: backbone.forward(clips, bank, slots))
