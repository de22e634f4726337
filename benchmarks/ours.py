"""One workload through Lightning's Trainer in this process, as a user runs it, for benchmarks/compare.py."""

import logging
from importlib.metadata import version
from typing import Any

import workloads as w

w.quiet()
WORKLOADS = ["sft", "dpo", "dpo_cached", "dpo_lora", "reward", "overhead"]


def main() -> None:
    a = w.arguments(__doc__ or "", WORKLOADS).parse_args()
    import torch

    torch.set_num_threads(a.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = w.rows(a.shape, a.steps * a.rows, a.rows if a.grouped else 0)
    meter = w.Meter()
    module = build(a)
    pairs = a.workload not in ("sft", "overhead")
    if a.workload == "dpo_cached":
        module.configure_model()
        with torch.no_grad():
            for i in range(0, len(rows), a.rows):
                module.reference.score(forest(rows[i : i + a.rows], pairs))
    w.warm_up(a.shape)
    trainer = make_trainer(a, meter)
    loader: Any = torch.utils.data.DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=a.rows,
        collate_fn=lambda part: forest(part, pairs),
    )
    meter.begin()
    trainer.fit(module, loader)
    found = meter.end()
    found |= {"tokens": w.useful_tokens(rows, pairs), "floor": w.floor_flops(a.shape, rows, a.workload)}
    w.report(found | {"rate": w.product_rate(), "version": f"lit-align {version('lit-align')}"})


def build(a: Any) -> Any:
    from lit_align import DPO, SFT, RewardModel
    from lit_align.algorithms.optim import OptimConfig
    from lit_align.scoring.references import Cached

    options: dict[str, Any] = {
        "lr": w.LEARNING_RATE,
        "optim": OptimConfig(schedule="constant", micro_batch_tokens=a.micro, sparse_embedding=a.sparse),
    }
    model = (w.classifier if a.workload == "reward" else w.language_model)(a.shape, attention=a.attention)
    if a.workload == "dpo_lora":
        model = w.with_adapters(model)
    if a.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if a.workload == "reward":
        return RewardModel(model, **options)
    if a.workload in ("sft", "overhead"):
        return SFT(model, **options)
    return DPO(model, reference=Cached() if a.workload == "dpo_cached" else None, **options)


def forest(rows: list[dict[str, list[int]]], pairs: bool) -> Any:
    from lit_align import Forest

    completions = [[r["chosen"], r["rejected"]] if pairs else [r["chosen"]] for r in rows]
    return Forest.from_lists([r["prompt"] for r in rows], completions)


def make_trainer(a: Any, meter: w.Meter) -> Any:
    import lightning as L

    class Losses(L.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            meter.step(outputs["loss"])

    return L.Trainer(
        accelerator="gpu" if a.device == "cuda" else "cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=1.0,
        precision="bf16-mixed" if a.bf16 else "32-true",
        log_every_n_steps=10,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Losses()],
    )


if __name__ == "__main__":
    main()
