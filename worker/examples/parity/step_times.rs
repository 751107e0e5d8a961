//! How long training steps take, by the learner that a rank trains with, on images that lie in memory:
//! `tests/speed/train_step.py` compares it with PyTorch, in turns.

use std::io::{BufRead, Write};
use std::time::Instant;

use clap::Args;
use relabel_config::{Config, Precision};
use relabel_core::Position;
use tch::Device;
use worker::collective::{AbortHandle, Solo};
use worker::data::loader::Batch;
use worker::train::learner::{Ask, Learner};

use super::ParityError;

/// For each line of standard input, a number of steps, takes so many and prints their seconds on one line.
#[derive(Debug, Args)]
pub(super) struct StepTimesArgs {
    #[arg(long)]
    arch: String,
    #[arg(long, default_value_t = 1000)]
    classes: u32,
    #[arg(long)]
    batch: u32,
    #[arg(long)]
    size: u32,
    #[arg(long)]
    threads: usize,
    #[arg(long, value_enum)]
    precision: Precision,
}

pub(super) fn run(args: &StepTimesArgs) -> Result<(), ParityError> {
    let wrong = |reason: String| ParityError::File { path: "standard input and output".into(), reason };
    worker::torch::set_num_threads(args.threads);
    let mut config = Config::default();
    config.model.arch = args.arch.clone();
    config.data.image_size = args.size;
    config.compute.seed = 1;
    config.compute.precision = args.precision.into();
    let mut learner = Learner::new(&config, args.classes, 1000, Device::Cpu)?;
    let mut ring = Solo::new(AbortHandle::new());
    let (n, classes) = (args.batch as usize, args.classes as usize);
    let batch = Batch {
        step: 0,
        sample_ids: (0..args.batch).collect(),
        images: (0..n * 3 * (args.size * args.size) as usize)
            .map(|i| (i as f32 * 0.37).sin() * 1.5)
            .collect(),
        targets: (0..n * classes)
            .map(|i| f32::from(u8::from(i % classes == (i / classes * 37) % classes)))
            .collect(),
        skipped: Vec::new(),
    };
    for line in std::io::stdin().lock().lines() {
        let steps: u32 = line
            .map_err(|error| wrong(error.to_string()))?
            .trim()
            .parse()
            .map_err(|error: std::num::ParseIntError| wrong(error.to_string()))?;
        let mut seconds = Vec::new();
        for _ in 0..steps {
            let ask = Ask { position: Position::default(), planned: n as u64, leave: false, may_skip: false };
            let began = Instant::now();
            learner.step(&batch, ask, &mut ring)?;
            seconds.push(began.elapsed().as_secs_f64().to_string());
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", seconds.join(" "))
            .and_then(|()| out.flush())
            .map_err(|error| wrong(error.to_string()))?;
    }
    Ok(())
}
