"""One workload that samples, through Lightning's Trainer in this process, for benchmarks/compare.py."""

import logging
import time
from importlib.metadata import version
from typing import Any

import ours
import workloads as w

w.quiet()


def main() -> None:
    a = w.sampling_arguments(__doc__ or "").parse_args()
    import torch
    from torch.utils.data import DataLoader

    from lit_align import Forest

    torch.set_num_threads(a.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    meter = w.Meter()
    module = build(a)
    sampled = Sampled(module)
    prompts = [row["prompt"] for row in w.rows(a.shape, a.steps * a.rows // a.group)]
    batches = [
        Forest.from_lists(part, [[] for _ in part], rows=range(i, i + len(part)))
        for i in range(0, len(prompts), a.rows // a.group)
        for part in [prompts[i : i + a.rows // a.group]] * module.steps_per_rollout
    ]
    w.warm_up(a.shape)
    trainer = ours.make_trainer(a, meter)
    meter.begin()
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    found = meter.end() | {"tokens": sampled.tokens, "generating": sampled.seconds}
    w.report(found | {"rate": w.product_rate(), "version": f"lit-align {version('lit-align')}"})


class Sampled:
    """Counts what a module samples, and the wall seconds that takes."""

    def __init__(self, module: Any) -> None:
        self.tokens, self.seconds = 0, 0.0
        self.generate = module.generator.generate
        module.generator.generate = self

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        forest = self.generate(*arguments, **options)
        self.seconds += time.perf_counter() - start
        self.tokens += len(forest.completion_ids)
        return forest


def build(a: Any) -> Any:
    from lit_align import GRPO, PPO, RLOO
    from lit_align.algorithms.optim import OptimConfig
    from lit_align.rollouts.sampling import Sampling

    policy = w.ending_model(a.shape)
    options: dict[str, Any] = {
        "policy": policy,
        "tokenizer": w.tokenizer(a.shape),
        "rewards": w.even_ids,
        "sampling": Sampling(max_new_tokens=w.LONGEST_COMPLETION),
        "completions": a.group,
        "lr": w.LEARNING_RATE,
        "optim": OptimConfig(schedule="constant", micro_batch_tokens=a.micro),
    }
    if a.workload == "grpo":
        return GRPO(**options)
    if a.workload == "rloo":
        return RLOO(**options)
    critic = "shared" if a.workload == "ppo_shared" else w.classifier(a.shape, seed=3)
    return PPO(**options | {"rewards": judge(w.classifier(a.shape, seed=2))}, critic=critic)


def judge(classifier: Any) -> Any:
    """A reward function of a reward model, which reads prompt and completion."""
    import torch

    from lit_align import Forest
    from lit_align.scoring.policy import RewardScorer

    class Judge(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scorer = RewardScorer(classifier)

        def forward(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> list[float]:
            batch = Forest.from_lists(prompt_ids, [[ids] for ids in completion_ids])
            return self.scorer(batch).tolist()  # type: ignore[no-any-return]

    return Judge()


if __name__ == "__main__":
    main()
