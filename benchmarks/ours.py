"""Run one workload through Lightning's Trainer and print one RESULT line, for the pairing with TRL.

Takes the arguments of the peer's runner; ``BENCH_COMMON`` names the folder of the module ``common`` that both
sides share (model shapes, rows, meters).
"""

import argparse
import os
import sys
import time
import warnings
from typing import Any

sys.path.insert(0, os.environ.get("BENCH_COMMON", os.path.dirname(os.path.abspath(__file__))))
import common as C

warnings.filterwarnings("ignore")
WORKLOADS = ["sft", "sft_lm", "dpo", "dpo_precomputed", "dpo_lora", "reward", "overhead"]


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("workload", choices=WORKLOADS)
    ap.add_argument("--shape", default="small", choices=list(C.SHAPES))
    ap.add_argument("--steps", type=int, default=6)
    ap.add_argument("--bs", type=int, default=8)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--gc", action="store_true")
    ap.add_argument("--bf16", action="store_true")
    ap.add_argument("--lr", type=float, default=1e-5)
    ap.add_argument("--profile")
    a = ap.parse_args()

    import torch

    torch.set_num_threads(a.threads)
    meter = C.Meter()
    rows = C.rows(a.shape, a.steps * a.bs)
    t0 = time.perf_counter()
    module, kind = build(a, C.causal_lm(a.shape))
    if a.workload == "dpo_precomputed":
        module.configure_model()
        with torch.no_grad():
            for i in range(0, len(rows), a.bs):
                module.reference.score(collate(rows[i : i + a.bs], kind))
        meter.add("construct_incl_precompute", time.perf_counter() - t0)
    warm(torch, a.shape)

    profiler: Any = None
    if a.profile:
        profiler = torch.profiler.profile()
        profiler.__enter__()
    trainer = make_trainer(a, meter)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=a.bs, collate_fn=lambda part: collate(part, kind), shuffle=False
    )
    meter.begin()
    trainer.fit(module, loader)
    result = meter.end(tokens=C.count(rows, kind))
    if profiler is not None:
        profiler.__exit__(None, None, None)
        with open(a.profile, "w") as file:
            file.write(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40))
    result["outside_step_s"] = result["wall_s"] - sum(meter.steps)
    about = {
        "workload": a.workload,
        "shape": a.shape,
        "threads": a.threads,
        "bf16": a.bf16,
        "gc": a.gc,
        "bs": a.bs,
    }
    C.emit({"peer": "lit-align", **about, **result})


def build(a: argparse.Namespace, model: Any) -> tuple[Any, str]:
    """The module of a workload, as a user would write it, and the kind of its rows."""
    from lit_align import DPO, SFT, RewardModel
    from lit_align.algorithms.optim import OptimConfig
    from lit_align.scoring.references import Cached

    optim = OptimConfig(schedule="constant")
    if a.gc:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if a.workload == "reward":
        return RewardModel(C.sequence_model(a.shape), lr=a.lr, optim=optim), "reward"
    if a.workload == "dpo_lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    if a.workload.startswith("dpo"):
        reference = Cached() if a.workload == "dpo_precomputed" else None
        return DPO(model, reference=reference, lr=a.lr, optim=optim), "pref"
    return SFT(model, lr=a.lr, optim=optim), "sft" if a.workload == "sft" else "lm"


def collate(part: list[dict[str, Any]], kind: str) -> Any:
    """Rows as a forest."""
    from lit_align import Forest

    if kind == "sft":
        return Forest.from_lists([r["prompt"] for r in part], [[r["chosen"]] for r in part])
    if kind == "lm":
        return Forest.from_lists([[] for _ in part], [[r["prompt"] + r["chosen"]] for r in part])
    return Forest.from_lists([r["prompt"] for r in part], [[r["chosen"], r["rejected"]] for r in part])


def make_trainer(a: argparse.Namespace, meter: Any) -> Any:
    import lightning as L

    class Steps(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.began = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            meter.step(time.perf_counter() - self.began, outputs["loss"])

    return L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        precision="bf16-mixed" if a.bf16 else "32-true",
        log_every_n_steps=10,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Steps()],
    )


def warm(torch: Any, shape: str) -> None:
    """Touch every kernel once on throw-away tensors, as the peer's runner does."""
    model = C.causal_lm(shape)
    ids = torch.randint(3, 100, (2, 16))
    model(input_ids=ids, labels=ids).loss.backward()


if __name__ == "__main__":
    main()
