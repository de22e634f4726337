"""One workload of TRL that samples, in this process, for benchmarks/compare.py.

PPO left TRL after 1.12: its environment needs that version, the others 1.16.
"""

import tempfile
from typing import Any

import workloads as w

w.quiet()


def main() -> None:
    a = w.sampling_arguments(__doc__ or "").parse_args()
    import torch
    import trl

    torch.set_num_threads(a.threads)
    meter = w.Meter()
    rows = w.rows(a.shape, a.steps * a.rows // a.group)
    shared = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": a.rows,
        "learning_rate": w.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "bf16": a.bf16,
        "fp16": False,
        "gradient_checkpointing": a.checkpointing,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
    }
    build = ppo if a.workload.startswith("ppo") else groups
    trainer, counted = build(a, rows, shared)
    w.warm_up(a.shape)
    meter.begin()
    trainer.train()
    w.report(meter.end() | {"tokens": counted[0], "version": f"trl {trl.__version__}"})


def groups(a: Any, rows: list[dict[str, list[int]]], shared: dict[str, Any]) -> tuple[Any, list[int]]:
    """GRPO and RLOO, with their completions counted."""
    import importlib

    from datasets import Dataset

    name = a.workload.upper()
    module = importlib.import_module(f"trl.trainer.{a.workload}_trainer")
    config = importlib.import_module(f"trl.trainer.{a.workload}_config")
    # The trainer loads its reference from the Hub by the policy's name; this policy is nowhere but here.
    module.create_model_from_path = lambda *_, **__: w.ending_model(a.shape)
    options = {
        "num_generations": a.group,
        "max_completion_length": w.LONGEST_COMPLETION,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_train_epochs": 1,
        "shuffle_dataset": False,
    }
    trainer = getattr(module, f"{name}Trainer")(
        model=w.ending_model(a.shape),
        args=getattr(config, f"{name}Config")(**shared, **options),
        reward_funcs=w.even_ids,
        train_dataset=Dataset.from_list([{"prompt": " ".join(f"t{i}" for i in r["prompt"])} for r in rows]),
        processing_class=w.tokenizer(a.shape),
    )
    counted, generate = [0], trainer._generate_single_turn

    def count(*arguments: Any, **more: Any) -> Any:
        found = generate(*arguments, **more)
        ids = found[0] if isinstance(found, tuple) else found
        counted[0] += sum(len(completion) for completion in ids)
        return found

    trainer._generate_single_turn = count
    return trainer, counted


def ppo(a: Any, rows: list[dict[str, list[int]]], shared: dict[str, Any]) -> tuple[Any, list[int]]:
    """PPO with a reward model and a critic of their own, which is the only kind that TRL has."""
    import torch
    import trl.experimental.ppo.ppo_trainer as module
    from datasets import Dataset
    from transformers import DataCollatorWithPadding
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = w.tokenizer(a.shape)
    tokenizer.padding_side = "left"
    data = Dataset.from_list([{"input_ids": r["prompt"]} for r in rows])
    options = {
        "num_mini_batches": 1,
        "num_ppo_epochs": 4,
        "total_episodes": len(rows),
        "response_length": w.LONGEST_COMPLETION,
        "stop_token": "eos",
        "temperature": 1.0,
        "num_sample_generations": 0,
        "local_rollout_forward_batch_size": a.rows,
        "gradient_accumulation_steps": 1,
    }
    trainer = PPOTrainer(
        args=PPOConfig(**shared, **options),
        processing_class=tokenizer,
        model=w.ending_model(a.shape),
        ref_model=w.ending_model(a.shape),
        reward_model=w.classifier(a.shape, seed=2),
        value_model=w.classifier(a.shape, seed=3),
        train_dataset=data,
        eval_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    counted, generate = [0], module.batch_generation

    def count(model: Any, queries: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        found = generate(model, queries, *arguments, **more)
        ended = found[0][:, queries.shape[1] :] == w.END
        length = torch.where(ended.any(1), ended.int().argmax(1) + 1, ended.shape[1])
        counted[0] += int(length.sum())
        return found

    module.batch_generation = count
    return trainer, counted


if __name__ == "__main__":
    main()
