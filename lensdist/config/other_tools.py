"""What other tools call our settings, so that an error can name the right key."""

OURS = {
    **dict.fromkeys(("batch", "batch_size", "bs"), "train.global_batch"),
    **dict.fromkeys(("per_device_train_batch_size", "micro_batch_size"), "train.micro_batch"),
    **dict.fromkeys(("learning_rate", "max_lr", "base_lr"), "optim.lr"),
    **dict.fromkeys(("wd", "l2"), "optim.weight_decay"),
    **dict.fromkeys(("opt", "optimizer"), "optim.name"),
    **dict.fromkeys(("scheduler", "sched", "lr_scheduler"), "optim.schedule.kind"),
    **dict.fromkeys(("warmup", "warmup_epochs"), "optim.schedule.warmup_steps"),
    **dict.fromkeys(("grad_clip", "max_norm", "max_grad_norm", "clip_grad"), "optim.clip_norm"),
    **dict.fromkeys(("max_epochs", "n_epochs", "num_epochs", "num_train_epochs"), "train.epochs"),
    **dict.fromkeys(("steps", "iterations", "num_steps"), "train.max_steps"),
    **dict.fromkeys(("dataset", "data_dir", "data_path", "root", "train_dir"), "data.path"),
    **dict.fromkeys(("out", "out_dir", "output", "output_dir", "save_dir", "log_dir"), "run.dir"),
    **dict.fromkeys(("amp", "bf16", "dtype", "fp16", "mixed_precision"), "precision"),
    **dict.fromkeys(("checkpoint", "pretrained", "init_from"), "encoder"),
    **dict.fromkeys(("manual_seed", "random_seed"), "seed"),
    **dict.fromkeys(("backend", "strategy"), "engine"),
}
"""The keys of other tools (transformers, timm, Lightning, MMEngine), and ours."""
PROCESSES = ("devices", "gpu", "gpus", "n_gpus", "ngpus", "num_gpus", "num_processes", "world_size")
"""Keys that set the number of processes, which is not a setting of a run."""
