"""What the experiment compares, and its sizes."""

CLASSES = 6
# Square pictures, evaluated whole: a central crop would cut off objects at the sides.
DATA = ["--classes", str(CLASSES), "--size", "96x96"]
SCHEDULE = {
    "data.crop_ratio": 1.0,
    "optim.optimizer": "sgd",
    "optim.lr.decay_type": "cos",
    "optim.warmup.epochs": 1,
    "optim.nesterov": True,
    "optim.momentum": 0.9,
    "optim.wd.base": 1e-4,
    "checkpoint.every_epochs": 0,
    "checkpoint.keep": 1,
    "compute.num_workers": 1,
    "util.print_freq": 20,
    "util.val_batch_size": 200,
}

# What sets the students apart: name, title, options.
RELABEL = {"data.relabel.use": True}
METHODS = [
    ("baseline", "Baseline: the folder's class", {}),
    ("smoothing", "Label smoothing 0.1", {"optim.label_smoothing": 0.1}),
    ("global", "ReLabel, global multi-label", RELABEL | {"data.relabel.mode": "global"}),
    ("localized", "ReLabel, localized multi-label", RELABEL | {"data.relabel.mode": "localized"}),
    (
        "localized-cutmix",
        "ReLabel, localized, with CutMix",
        RELABEL
        | {
            "data.relabel.mode": "localized",
            "data.cutmix.prob": 1.0,
            "data.cutmix.beta": 1.0,
            "data.cutmix.off_epoch": 1,
        },
    ),
]
SEEDS = [1, 2, 3]
WHY_SEEDS = [1]
RESIZE_METHODS = ["baseline", "localized"]
RESIZE_SEEDS = [1, 2, 3, 4, 5, 6]
# How many times the epochs `--why` trains all methods, to see whether their order is one of too short a training.
LONGER = 3
# For the annotator's second part: half of the batches paste a picture of one object into another, so that it
# meets neighbours before it labels pictures of several.
CROWDED = {
    "options": {
        "data.cutmix.prob": 0.5,
        "data.cutmix.beta": 1.0,
        "data.cutmix.off_epoch": 0,
        "optim.warmup.epochs": 0,
    }
}

SIZES = {
    "full": {
        "single": {"train": 6000, "val": 300},
        # Small crops first, which are cheap, then large ones: its map of a large picture is finer.
        "annotator": [
            {"image_size": 64, "rrc_minimum": 0.2, "epochs": 3, "batch_size": 64, "lr": 0.08},
            {"image_size": 112, "rrc_minimum": 0.2, "epochs": 1, "batch_size": 64, "lr": 0.03} | CROWDED,
            {"image_size": 96, "rrc_minimum": 0.2, "epochs": 3, "batch_size": 32, "lr": 0.04} | CROWDED,
        ],
        "label_size": 160,
        "several": {"train": 1200, "val": 100},
        "student": {"image_size": 32, "rrc_minimum": 0.08, "epochs": 14, "batch_size": 64, "lr": 0.08},
        "test": 1000,
    },
    # For working on the experiment itself: everything happens, and nothing is learned.
    "tiny": {
        "single": {"train": 60, "val": 20},
        "annotator": [
            {"image_size": 32, "rrc_minimum": 0.25, "epochs": 1, "batch_size": 20, "lr": 0.05},
            {"image_size": 40, "rrc_minimum": 0.25, "epochs": 1, "batch_size": 20, "lr": 0.02} | CROWDED,
        ],
        "label_size": 64,
        "several": {"train": 60, "val": 20},
        "student": {"image_size": 32, "rrc_minimum": 0.08, "epochs": 2, "batch_size": 20, "lr": 0.05},
        "test": 20,
    },
}

# The full comparison with an annotator that has seen twice as many pictures: what does a better one give?
SIZES["strong-annotator"] = SIZES["full"] | {"single": {"train": 12000, "val": 300}}
