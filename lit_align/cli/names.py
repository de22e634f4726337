"""TRL's names for things, and ours: the answer when someone brings a command from there."""

_OPTIM = "model.optim"
_TRAINER = "trainer"
_CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"

#: An argument of TRL or of transformers' Trainer, and what to write here instead.
OURS: dict[str, str] = {
    # the model
    "model_name_or_path": "--model.policy NAME",
    "model": "--model.policy NAME",
    "model_revision": "--model.policy.revision",
    "torch_dtype": "--model.policy.dtype",
    "dtype": "--model.policy.dtype",
    "attn_implementation": "--model.policy.attn_implementation",
    "trust_remote_code": "--model.policy.trust_remote_code",
    "gradient_checkpointing": "--model.policy.gradient_checkpointing",
    "use_peft": "--model.policy.lora.r 16 (any field of lora switches it on)",
    "peft_config": "--model.policy.lora.r, .alpha, .dropout, .targets",
    "lora_r": "--model.policy.lora.r",
    "lora_alpha": "--model.policy.lora.alpha",
    "lora_dropout": "--model.policy.lora.dropout",
    "lora_target_modules": "--model.policy.lora.targets",
    "lora_modules_to_save": "--model.policy.lora.modules_to_save",
    "use_rslora": "--model.policy.lora.rslora",
    "use_dora": "--model.policy.lora.dora",
    "load_in_4bit": "--model.policy.quantization.kind nf4",
    "load_in_8bit": "--model.policy.quantization.kind int8",
    "bnb_4bit_quant_type": "--model.policy.quantization.kind nf4",
    "use_bnb_nested_quant": "--model.policy.quantization.double_quant",
    "bnb_4bit_compute_dtype": "--model.policy.quantization.compute_dtype",
    "tokenizer_name_or_path": "--model.tokenizer",
    "processing_class": "--model.tokenizer",
    # the reference
    "ref_model": "--model.reference FromPath --model.reference.path NAME",
    "ref_model_name_or_path": "--model.reference FromPath --model.reference.path NAME",
    "sync_ref_model": "--model.reference EMA",
    "ref_model_mixup_alpha": "--model.reference EMA --model.reference.alpha",
    "ref_model_sync_steps": "--model.reference EMA --model.reference.interval",
    "precompute_ref_log_probs": "--model.reference Cached",
    "reference_free": "--model.reference NoReference",
    # the loss
    "loss_type": "--model.loss",
    "loss_weights": "--model.loss '{sigmoid: 0.8, sft: 1.0}'",
    "label_smoothing_factor": "--model.label_smoothing",
    "rpo_alpha": "--model.loss '{sigmoid: 1.0, sft: ALPHA}'",
    "ld_alpha": "--model.ld_alpha",
    "use_weighting": "--model.wpo",
    "f_divergence_type": "--model.f_divergence",
    "neftune_noise_alpha": "--model.neftune_alpha",
    "router_aux_loss_coef": "--model.router_loss_weight",
    "center_rewards_coefficient": "--model.center_rewards_coefficient",
    # the optimiser
    "learning_rate": "--model.lr",
    "optim": "--model.optim.name torch.optim.AdamW",
    "weight_decay": f"--{_OPTIM}.weight_decay",
    "lr_scheduler_type": f"--{_OPTIM}.schedule",
    "warmup_ratio": f"--{_OPTIM}.warmup 0.1 (a share below 1, steps from 1 on)",
    "warmup_steps": f"--{_OPTIM}.warmup 100 (a share below 1, steps from 1 on)",
    "adam_beta1": f"--{_OPTIM}.extra '{{betas: [0.9, 0.999]}}'",
    "adam_beta2": f"--{_OPTIM}.extra '{{betas: [0.9, 0.999]}}'",
    "adam_epsilon": f"--{_OPTIM}.extra '{{eps: 1.0e-8}}'",
    # the data
    "dataset_name": "--data.train NAME",
    "train_dataset": "--data.train NAME",
    "eval_dataset": "--data.val NAME",
    "dataset_train_split": "--data.train NAME:SPLIT",
    "dataset_test_split": "--data.val NAME:SPLIT",
    "dataset_text_field": "--data.columns '{text: NAME}'",
    "dataset_num_proc": "nothing: rows are tokenised once and cached",
    "streaming": "--data.streaming",
    "per_device_train_batch_size": "--data.batch_size",
    "per_device_eval_batch_size": "--data.eval_batch_size",
    "train_batch_size": "--data.batch_size",
    "auto_find_batch_size": "--data.batch_tokens N (a budget of tokens instead of rows)",
    "max_seq_length": "--data.max_length",
    "max_length": "--data.max_length",
    "max_prompt_length": "--data.max_prompt_length",
    "max_completion_length": "--data.max_length and --data.max_prompt_length",
    "truncation_mode": "--data.truncation",
    "dataloader_num_workers": "--data.num_workers",
    "group_by_length": "--data.length_bucketing",
    "completion_only_loss": "prompt and completion columns: completions alone are learned",
    "assistant_only_loss": "a messages column: assistant turns alone are learned",
    # the trainer
    "output_dir": f"--{_TRAINER}.default_root_dir",
    "run_name": "the name of the configuration file: a run is written to runs/NAME/N",
    "num_train_epochs": f"--{_TRAINER}.max_epochs",
    "max_steps": f"--{_TRAINER}.max_steps",
    "gradient_accumulation_steps": f"--{_TRAINER}.accumulate_grad_batches",
    "max_grad_norm": f"--{_TRAINER}.gradient_clip_val",
    "bf16": f"--{_TRAINER}.precision bf16-mixed",
    "fp16": f"--{_TRAINER}.precision 16-mixed",
    "tf32": "torch.set_float32_matmul_precision('high') in Python",
    "logging_steps": f"--{_TRAINER}.log_every_n_steps",
    "eval_steps": f"--{_TRAINER}.val_check_interval",
    "eval_strategy": f"--{_TRAINER}.val_check_interval or --{_TRAINER}.check_val_every_n_epoch",
    "evaluation_strategy": f"--{_TRAINER}.val_check_interval or --{_TRAINER}.check_val_every_n_epoch",
    "do_eval": "the command: lit-align fit validates too; lit-align validate only does that",
    "do_train": "the command: lit-align fit",
    "save_steps": f"a {_CHECKPOINT} under {_TRAINER}.callbacks (every_n_train_steps)",
    "save_strategy": f"a {_CHECKPOINT} under {_TRAINER}.callbacks",
    "save_total_limit": f"a {_CHECKPOINT} under {_TRAINER}.callbacks (save_top_k)",
    "load_best_model_at_end": f"a {_CHECKPOINT} that monitors val/loss, and --ckpt_path FILE",
    "resume_from_checkpoint": "--ckpt_path last, or a file",
    "report_to": f"--{_TRAINER}.logger (CSV and TensorBoard are on by default)",
    "seed": "--seed_everything",
    "data_seed": "--data.seed",
    "fsdp": f"--{_TRAINER}.strategy fsdp",
    "deepspeed": f"--{_TRAINER}.strategy deepspeed",
    "ddp_find_unused_parameters": f"--{_TRAINER}.strategy ddp_find_unused_parameters_true",
    "torch_compile": "torch.compile in Python",
    "push_to_hub": "lit-align export, then hf upload",
    "hub_model_id": "lit-align export, then hf upload",
}


def translate(name: str) -> str | None:
    """What to write for an argument of TRL, or ``None`` for a name it does not have.

    >>> translate("learning_rate")
    '--model.lr'
    """
    return OURS.get(name.lstrip("-").replace("-", "_"))
