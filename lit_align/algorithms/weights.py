"""The weights of an algorithm: built, spread over processes where the strategy wants that, and named."""

from typing import Any

from lit_align.models.sharding import separate, shard
from lit_align.models.skeleton import FromZero, as_on_zero, skeleton
from lit_align.runtime.fingerprint import frozen_digest
from lit_align.scoring.policy import Scorer
from lit_align.scoring.value_adapter import ValueAdapter


def build_weights(module: Any, description: Any) -> None:
    """Build the policy and what stands beside it, in place.

    Args:
        module: an :class:`~lit_align.algorithms.base.AlignModule` without weights.
        description: of its policy, or a model in memory.
    """
    mesh = module.device_mesh
    # Only process zero builds weights; the others get their pieces of it.
    spread = mesh is not None and module.model_config is not None and module.trainer.world_size > 1
    with skeleton(spread):
        # transformers hands models over in eval mode, and Lightning leaves modes as it finds them.
        module.policy = module.build(description).train(module.training)
        if module.has_tokenizer:
            from lit_align.models.tokenizers import check_tokenizer

            check_tokenizer(module.tokenizer, module.policy.model)
        module.attach()
        module.base_digest = as_on_zero(lambda: _base_digest(module))
    if mesh is None:
        return
    scorers = [part for part in module.modules() if isinstance(part, Scorer | ValueAdapter)]
    separate(scorers)
    weights = FromZero(module, module.trainer.strategy.root_device) if spread else None
    # Last, because what is made from the policy is made from whole weights.
    for scorer in scorers:
        shard(scorer, mesh)
    if weights is not None:
        weights.fill()


def _base_digest(module: Any) -> str | None:
    lora = module.model_config.lora if module.model_config is not None else None
    begins = "" if lora is None else lora.extra.get("init_lora_weights", "")
    # Some ways to begin change the base, to the last bits differently on another machine.
    moved = isinstance(begins, str) and begins not in ("", "gaussian", "orthogonal")
    return None if moved else frozen_digest(module.policy.model)
