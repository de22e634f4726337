"""Layers whose products are shared by processes that read the same rows (tensor parallelism).

The plan is the architecture's own (``base_model_tp_plan`` of its configuration in transformers): a product
is split by its outputs (``colwise``), and the one after it by its inputs (``rowwise``), so that a block of
attention or a feed-forward block needs one sum over the processes in each direction (arXiv 1909.08053,
section 3). Everything else, embeddings, norms and heads, every process of the group holds and computes.

Weights are stored as DTensors over the mesh of the group, so that FSDP2, optimisers, norms and checkpoints
know what lies where. Products are made of the local pieces, as plain tensors: a module keeps its weights,
its name and its place, and changes its class to a subclass whose ``weight`` is the local piece.
"""

import fnmatch
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.nn.functional import linear

#: The dimension of Lightning's mesh whose processes share each product.
DIMENSION = "tensor_parallel"


class Local(nn.Module):
    """Marks the subclasses that are made here; ``original`` is the class that a module had before."""

    original: ClassVar[type[nn.Module]]


def split(scorer: nn.Module, mesh: DeviceMesh) -> None:
    """Split the products of a scorer's model, in place, and mark all its other weights as held by everybody.

    Args:
        scorer: with its model as ``model``, not sharded yet; of one that ``shares_model`` with another scorer
            only the value head is marked.
        mesh: of the processes that share the products.

    Raises:
        ValueError: the model cannot be split so; said before anything is changed.
    """
    placements: dict[nn.Module, tuple[type[Local], Placement]] = {}
    if not getattr(scorer, "shares_model", False):
        model: Any = scorer.model
        placements = _planned(model, mesh.size())
        roots = [scorer]
    else:
        roots = [child for name, child in scorer.named_children() if name == "value_head"]
    # The old ones are kept meanwhile: by their identity tied weights stay tied.
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for root in roots:
        for module in root.modules():
            names = tuple(name for name, p in module._parameters.items() if p is not None)
            if not names and module not in placements:
                continue
            form, placement = placements.get(module, (_Whole, Replicate()))
            for name in names:
                old: Any = module._parameters[name]
                # A bias is added once, to the sum.
                held = Replicate() if form is _Rows and name == "bias" else placement
                new = made.setdefault(id(old), (old, _distributed(old, mesh, held)))[1]
                module._parameters[name] = new
            kind: Any = type(module)
            chosen: Any = form
            module.__class__ = _local_class(kind, chosen, names)


@torch.no_grad()
def equalise(grads: Iterable[Tensor]) -> None:
    """Average, in place, the gradients of weights that every process of the group holds.

    They are equal but for rounding: where a device adds in another order each time (the rows of an
    embedding), the copies of a weight would drift apart over the steps.

    Args:
        grads: of all weights, after a backward pass; those that are split are left alone.
    """
    for grad in grads:
        if not isinstance(grad, DTensor):
            continue
        mesh, names = grad.device_mesh, grad.device_mesh.mesh_dim_names or ()
        if DIMENSION in names and grad.placements[names.index(DIMENSION)].is_replicate():
            local = grad.to_local()
            torch.distributed.all_reduce(local, group=mesh.get_group(DIMENSION))
            local.div_(mesh[DIMENSION].size())


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before its weights became pieces; its own where they are none."""
    return module.original if isinstance(module, Local) else type(module)


class _Whole(Local):
    """Every process holds the weights, and computes the same with them."""


class _OnPieces(Local):
    """Every process holds the weights, and computes with them on its own heads: gradients are summed."""


class _Block(Local):
    """Layers that are split by outputs and have one input, spread here once for all of them."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """As of the class, whose first argument are the hidden states."""
        group = _group(next(module for module in self.modules() if isinstance(module, _Given)))
        if "hidden_states" in named:
            named["hidden_states"] = _Spread.apply(named["hidden_states"], group)
        else:
            inputs = (_Spread.apply(inputs[0], group), *inputs[1:])
        return super().forward(*inputs, **named)


class _Given(Local):
    """A linear layer of which a process makes some outputs, of an input that is spread already."""


class _Columns(Local):
    """A linear layer of which a process makes some outputs."""

    def forward(self, input: Tensor) -> Tensor:
        """``[*, in]`` to ``[*, out / processes]``."""
        return super().forward(_Spread.apply(input, _group(self)))


class _Rows(Local):
    """A linear layer of which a process has some inputs."""

    weight: Any
    bias: Any

    def forward(self, input: Tensor) -> Tensor:
        """``[*, in / processes]`` to ``[*, out]``."""
        total: Tensor = _Sum.apply(linear(input, self.weight), _group(self))
        return total if self.bias is None else total + self.bias


class _Spread(torch.autograd.Function):
    """One tensor for all processes, whose gradient is the sum of theirs (``f`` in arXiv 1909.08053)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _summed(grad, ctx.group), None


class _Sum(torch.autograd.Function):
    """The sum of what the processes have, each of which gets the whole gradient (``g`` there)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: ProcessGroup) -> Tensor:
        return _summed(value, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


def _summed(value: Tensor, group: ProcessGroup) -> Tensor:
    # A copy, because autograd may have given the same tensor to others.
    total = value.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total, group=group)
    return total


def _group(module: nn.Module) -> ProcessGroup:
    # Gathered by FSDP2 a weight knows the group alone, in pieces the whole mesh.
    mesh: DeviceMesh = module._parameters["weight"].device_mesh  # type: ignore[union-attr]
    return mesh.get_group(DIMENSION)


@cache
def _local_class(kind: Any, form: Any, names: tuple[str, ...]) -> Any:
    def piece(name: str) -> property:
        def own(self: Any) -> Any:
            parameter = self._parameters[name]
            # Before FSDP2 has gathered it, it is what FSDP2 wants to find.
            if parameter.device_mesh.ndim > 1:
                return parameter
            local = parameter.to_local()
            if form is not _OnPieces:
                return local
            return _Spread.apply(local, parameter.device_mesh.get_group(DIMENSION))

        return property(own)

    members: dict[str, Any] = {name: piece(name) for name in names}
    # The same name, by which libraries recognise layers.
    members |= {"__module__": kind.__module__, "original": kind}
    return type(kind.__name__, (form, kind), members)


def _distributed(old: nn.Parameter, mesh: DeviceMesh, placement: Placement) -> nn.Parameter:
    local = old.detach()
    if isinstance(placement, Shard):
        # A copy, so that the whole one can go.
        local = local.chunk(mesh.size(), placement.dim)[mesh.get_local_rank()].clone()
    held = DTensor.from_local(local.contiguous(), mesh, [placement], run_check=False)
    return nn.Parameter(held, requires_grad=old.requires_grad)


def _planned(model: Any, size: int) -> dict[nn.Module, tuple[type[Local], Placement]]:
    """How the modules of a model are split; those that every process holds whole are not in it."""
    inner: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    name, trunk = type(inner).__name__, inner.base_model
    plan: dict[str, str] = getattr(inner.config.get_text_config(), "base_model_tp_plan", None) or {}
    unknown = sorted({style for style in plan.values() if style not in _FORMS})
    if not plan or unknown or inner.config.is_encoder_decoder:
        reason = f"its plan asks for {', '.join(unknown)}" if unknown else "transformers has no plan for it"
        raise ValueError(f"{name} cannot be split by tensor parallelism: {reason}; {_INSTEAD}")
    _check_heads(inner.config.get_text_config(), name, size)
    _check_sparsity(inner.config.get_text_config(), name)
    found: dict[nn.Module, tuple[type[Local], Placement]] = {}
    explained: set[nn.Module] = set()
    parents: dict[str, list[nn.Module]] = {}
    for path, module in trunk.named_modules():
        style = next((s for pattern, s in plan.items() if fnmatch.fnmatchcase(path, pattern)), None)
        if style is not None and path.count(".") == next(iter(plan)).count("."):
            found |= _parts(module, style, f"{name}.{path}", size)
            explained |= set(module.modules())
            if style == "colwise":
                parents.setdefault(path.rpartition(".")[0], []).append(module)
    if not found:
        raise ValueError(f"{name} cannot be split by tensor parallelism: no layer is in its plan; {_INSTEAD}")
    for path, children in parents.items():
        parent = trunk.get_submodule(path)
        weighted = {
            f"{name}.{path}.{own}".rstrip("."): module
            for own, module in parent.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        }
        _check_explained(weighted, explained)
        # Where something else looks at the hidden states too (LoRA's first matrices), each layer sums alone.
        if set(weighted.values()) <= found.keys() and not any(hasattr(child, "lora_A") for child in children):
            found |= dict.fromkeys(children, (_Given, Shard(0))) | {parent: (_Block, Replicate())}
    return found


def _check_heads(config: Any, name: str, size: int) -> None:
    for key in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, key, None)
        if heads is not None and heads % size:
            raise ValueError(
                f"{name} has {key} {heads}, which {size} processes cannot share evenly: choose another "
                "tensor_parallel_size"
            )


def _check_explained(weighted: dict[str, nn.Module], explained: set[nn.Module]) -> None:
    # It may work on a process's own features, and then its gradients, or its weights, are parts too.
    for path, module in weighted.items():
        if module not in explained:
            raise ValueError(
                f"{path} is a {type(module).__name__} with weights between layers that are split, and their "
                f"plan does not say what becomes of it; {_INSTEAD}"
            )


def _check_sparsity(config: Any, name: str) -> None:
    pattern = getattr(config, "activation_sparsity_pattern", None)
    if pattern is not None and any(pattern):
        raise ValueError(
            f"{name} cannot be split by tensor parallelism: activation_sparsity_pattern asks for mean and "
            f"deviation over all features of mlp, of which each process has some; {_INSTEAD}"
        )


def _parts(module: Any, style: str, path: str, size: int) -> dict[nn.Module, tuple[type[Local], Placement]]:
    """The modules that one entry of a plan splits: the layer itself, or the parts of one with LoRA."""
    if style == "replicated_with_grad_allreduce":
        return {module: _FORMS[style]}
    layers = {module: style}
    if hasattr(module, "lora_A"):
        _check_lora(module, path)
        layers = {module.base_layer: style}
        # The narrow states between the two matrices are whole on every process.
        halves = module.lora_B if style == "colwise" else module.lora_A
        layers |= dict.fromkeys(halves.values(), style)
    for layer, kind in layers.items():
        if original_class(layer) is not nn.Linear:
            raise ValueError(f"{path} is a {type(layer).__name__}, which cannot be split; {_INSTEAD}")
        features = layer.out_features if kind == "colwise" else layer.in_features
        if features % size:
            raise ValueError(
                f"{path} has {features} features, which {size} processes cannot share evenly: choose another "
                "tensor_parallel_size"
            )
    return {layer: _FORMS[kind] for layer, kind in layers.items()}


def _check_lora(module: Any, path: str) -> None:
    held = {name for name, child in module.named_children() if next(child.parameters(), None) is not None}
    variants = getattr(module, "lora_variant", None)
    if held - {"base_layer", "lora_A", "lora_B"} or variants:
        raise ValueError(
            f"{path} has a variant of LoRA (DoRA or another) that needs whole weights: leave it out, or set "
            "tensor_parallel_size to 1"
        )


_FORMS: dict[str, tuple[type[Local], Placement]] = {
    "colwise": (_Columns, Shard(0)),
    "rowwise": (_Rows, Shard(1)),
    "replicated_with_grad_allreduce": (_OnPieces, Replicate()),
}
_INSTEAD = "set tensor_parallel_size to 1 and let data_parallel_size spread the weights"
