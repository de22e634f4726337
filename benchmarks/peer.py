"""One workload of TRL in this process, for benchmarks/compare.py. Runs in TRL's own environment."""

import tempfile
from typing import Any

import workloads as w

w.quiet()
WORKLOADS = ["sft", "dpo", "dpo_cached", "dpo_lora", "reward", "overhead"]


def main() -> None:
    a = w.arguments(__doc__ or "", WORKLOADS).parse_args()
    import torch
    import trl

    torch.set_num_threads(a.threads)
    rows = w.rows(a.shape, a.steps * a.rows, a.rows if a.grouped else 0)
    meter = w.Meter()
    trainer = build(a, rows)
    original = trainer.training_step

    def step(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        meter.step(loss)
        return loss

    trainer.training_step = step
    w.warm_up(a.shape)
    meter.begin()
    trainer.train()
    pairs = a.workload not in ("sft", "overhead")
    found = meter.end() | {"tokens": w.useful_tokens(rows, pairs), "version": f"trl {trl.__version__}"}
    w.report(found | {"floor": w.floor_flops(a.shape, rows, a.workload)})


def build(a: Any, rows: list[dict[str, list[int]]]) -> Any:
    shared = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": a.rows,
        "num_train_epochs": 1,
        "learning_rate": w.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "bf16": a.bf16,
        "fp16": False,
        "gradient_checkpointing": a.checkpointing,
        "train_sampling_strategy": "sequential",
        "max_length": 512,
        "use_cpu": a.device == "cpu",
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
    }
    tokenizer = w.tokenizer(a.shape)
    if a.workload in ("sft", "overhead"):
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer(
            model=w.language_model(a.shape, a.attention),
            args=SFTConfig(**shared),
            train_dataset=dataset(rows, "supervised"),
            processing_class=tokenizer,
        )
    if a.workload == "reward":
        from trl import RewardConfig, RewardTrainer

        return RewardTrainer(
            model=w.classifier(a.shape, attention=a.attention),
            args=RewardConfig(**shared),
            train_dataset=dataset(rows, "ids"),
            processing_class=tokenizer,
        )
    from trl import DPOConfig, DPOTrainer

    model, reference = (w.language_model(a.shape, a.attention) for _ in range(2))
    if a.workload == "dpo_lora":
        model, reference = w.with_adapters(model), None
    return DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(**shared, precompute_ref_log_probs=a.workload == "dpo_cached"),
        train_dataset=dataset(rows, "pairs"),
        processing_class=tokenizer,
    )


def dataset(rows: list[dict[str, list[int]]], kind: str) -> Any:
    from datasets import Dataset

    def text(ids: list[int]) -> str:
        # The end of a text is the trainer's to add.
        return " ".join(f"t{i}" for i in ids if i >= w.FIRST_WORD)

    if kind == "ids":
        return Dataset.from_list(
            [
                {"chosen_ids": r["prompt"] + r["chosen"], "rejected_ids": r["prompt"] + r["rejected"]}
                for r in rows
            ]
        )
    if kind == "supervised":
        return Dataset.from_list(
            [{"prompt": text(r["prompt"]) + " ", "completion": text(r["chosen"])} for r in rows]
        )
    return Dataset.from_list(
        [
            {"prompt": text(r["prompt"]) + " ", "chosen": text(r["chosen"]), "rejected": text(r["rejected"])}
            for r in rows
        ]
    )


if __name__ == "__main__":
    main()
