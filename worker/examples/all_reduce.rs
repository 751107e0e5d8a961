//! Measures the TCP ring's all-reduce on this machine: a process a rank, all over loopback.
//!
//!     cargo run --release -p relabel-worker --example all_reduce -- [RANKS [MEGABYTES [ROUNDS]]]
//!
//! With ALL_REDUCE_FAR set the bytes go round the ring, as between hosts.
//!
//! Prints one line of JSON: the bus bandwidth in GB/s, which is what each rank sends, 2 (n-1)/n of the buffer, over the
//! median of the times: the figure that NCCL and Gloo report.

mod ranks;

use std::time::Instant;

use anyhow::{Context, Result};
use worker::collective::{Collective, Region, buckets};
use worker::torch;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (world, megabytes, rounds) = (number(2)?, number(102)?, number(20)?);
    match ranks::rank()? {
        Some(rank) => run_rank(rank, megabytes, rounds),
        None => ranks::launch(world, Ok),
    }
}

fn run_rank(rank: u32, megabytes: usize, rounds: usize) -> Result<()> {
    let region = Region::new(megabytes * 1_000_000)?;
    let mut tensor = torch::over_region(&region)?;
    // To see what reading each other's memory saves.
    let far = std::env::var_os("ALL_REDUCE_FAR").is_some();
    let mut ring = ranks::connect(rank, (!far).then_some(region))?;

    let gradients = torch::as_f32_mut(&mut tensor)?;
    gradients.fill(1.0);
    let mut times = Vec::new();
    for _ in 0..rounds {
        ring.barrier()?;
        let started = Instant::now();
        for bucket in gradients.chunks_mut(buckets::BUCKET_BYTES / size_of::<f32>()) {
            ring.all_reduce(bucket)?;
        }
        times.push(started.elapsed().as_secs_f64());
        gradients.fill(1.0);
    }
    if rank == 0 {
        let world = f64::from(ring.world());
        let sent = 2.0 * (world - 1.0) / world * megabytes as f64 * 1e-3;
        times.sort_by(f64::total_cmp);
        let median = times.get(rounds / 2).context("no rounds")?;
        println!("{{\"rate\": {}}}", sent / median);
    }
    Ok(())
}
