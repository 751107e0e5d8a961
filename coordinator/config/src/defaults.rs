//! What each option is where nobody says otherwise: the reference's `base.yaml`, and this project's own.

use crate::{
    Axes, BatchNorm, Checkpoint, Cluster, Compute, CutMix, Data, Decay, Ema, FinishOn, LearningRate, Mode,
    Model, NonFinite, OnError, Optim, OptimizerKind, PrecisionChoice, Relabel, Resize, Stragglers, Util,
    Warmup, WeightDecay, Wire,
};

impl Default for Model {
    fn default() -> Self {
        Self { arch: "resnet50".into(), num_classes: None, pretrained: String::new() }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            dataset: "imagenet".into(),
            data_path: "imagenet".into(),
            shuffle_buffer: 0,
            image_size: 224,
            rrc_minimum: 0.08,
            crop_ratio: 0.875,
            color_jitter: 0.4,
            lighting: 0.1,
            on_error: OnError::Fail,
            resize: Resize::Fast,
            finish: FinishOn::Host,
            cutmix: CutMix::default(),
            relabel: Relabel::default(),
        }
    }
}

impl Default for CutMix {
    fn default() -> Self {
        Self { prob: 0.0, beta: 0.0, off_epoch: 5 }
    }
}

impl Default for Relabel {
    fn default() -> Self {
        Self { enabled: false, path: String::new(), axes: Axes::Hw, mode: Mode::Localized }
    }
}

impl Default for Optim {
    fn default() -> Self {
        Self {
            optimizer: OptimizerKind::Sgd,
            epochs: 100,
            start_epoch: 0,
            bn: BatchNorm::default(),
            batch_size: 512,
            lr: LearningRate::default(),
            warmup: Warmup::default(),
            nesterov: true,
            momentum: 0.9,
            wd: WeightDecay::default(),
            label_smoothing: 0.0,
            non_finite: NonFinite::Stop,
            non_finite_steps: 10,
            ema: Ema::default(),
        }
    }
}

impl Default for BatchNorm {
    fn default() -> Self {
        Self { momentum: 0.9, eps: 1e-5, frozen: false, fused: true }
    }
}

impl Default for LearningRate {
    fn default() -> Self {
        Self { init: 0.5, decay_type: Decay::Cos }
    }
}

impl Default for Warmup {
    fn default() -> Self {
        Self { lr: 0.0, epochs: 5 }
    }
}

impl Default for WeightDecay {
    fn default() -> Self {
        Self { base: 1e-5, norm_and_bias: true }
    }
}

impl Default for Ema {
    fn default() -> Self {
        Self { decay: 0.0 }
    }
}

impl Default for Compute {
    fn default() -> Self {
        Self {
            seed: -1,
            gpu: -1,
            opt_level: "O1".into(),
            precision: PrecisionChoice::Auto,
            wire: Wire::Fp32,
            micro_batch: 0,
            deterministic: false,
            num_workers: 32,
        }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_steps: 0, every_minutes: 0.0, every_epochs: 1, keep: 3, upload: String::new() }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            heartbeat: 0.5,
            dead_after: 4.0,
            wait_for_workers: 300.0,
            gather_for: 30.0,
            admit_after: 5.0,
            ring_timeout: 4.0,
            reunite_for: 10.0,
            wait_for_coordinator: 600.0,
            drain_deadline: 20.0,
            stop_deadline: 60.0,
            spares: 0,
            stragglers: Stragglers::Report,
            straggler_factor: 1.5,
        }
    }
}

impl Default for Util {
    fn default() -> Self {
        Self {
            print_freq: 250,
            val_batch_size: 512,
            test_only: false,
            test_weight_file: String::new(),
            record_samples: false,
            tensorboard: true,
            log_images: 0,
        }
    }
}
