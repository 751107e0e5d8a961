//! Shows how much of the communication of a training step is hidden behind its backward pass: a process a rank on this
//! machine, images that lie in memory, and between the ranks loopback or a link as slow as it is told to be.
//!
//!     cargo run --release -p relabel-worker --example overlap -- --arch resnet50 --delay-ms 5 --gbit 1
//!
//! Prints the timeline of rank 0's median step, and a line of JSON.

mod ranks;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use relabel_config::{Config, Precision, Wire};
use relabel_core::Position;
use tch::Device;
use worker::collective::{Collective, Solo};
use worker::data::loader::Batch;
use worker::train::learner::Learner;
use worker::train::overlap::Timeline;
use worker::train::step::Ask;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value = "resnet50")]
    arch: String,
    #[arg(long, default_value_t = 2)]
    ranks: usize,
    /// Images of each rank.
    #[arg(long, default_value_t = 16)]
    batch: u32,
    #[arg(long, default_value_t = 224)]
    size: u32,
    /// Of each rank.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    precision: Precision,
    /// What gradients are sent in.
    #[arg(long, value_enum, default_value_t = Wire::Fp32)]
    wire: Wire,
    /// Steps that are measured; one goes before.
    #[arg(long, default_value_t = 7)]
    steps: u32,
    /// Between two ranks, one way.
    #[arg(long, default_value_t = 0.0)]
    delay_ms: f64,
    /// Of the link between two ranks, each way; without it there is no limit.
    #[arg(long)]
    gbit: Option<f64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match ranks::rank()? {
        Some(rank) => run_rank(rank, &args),
        None if args.has_link() => ranks::launch(args.ranks, |address| slow_link(address, &args)),
        None => ranks::launch(args.ranks, Ok),
    }
}

impl Args {
    /// Whether what ranks send each other is to go over a link of its own.
    fn has_link(&self) -> bool {
        self.delay_ms > 0.0 || self.gbit.is_some()
    }
}

fn run_rank(rank: u32, args: &Args) -> Result<()> {
    worker::torch::set_num_threads(args.threads);
    let mut config = Config::default();
    config.model.arch = args.arch.clone();
    config.data.image_size = args.size;
    config.compute.precision = args.precision.into();
    config.compute.wire = args.wire;
    let mut learner = Learner::new(&config, 1000, 1000, Device::Cpu)?;
    // What does not go through the connection is not held up by a link.
    let region = learner.region().filter(|_| !args.has_link()).cloned();
    let mut ring = ranks::connect(rank, region)?;
    let world = ring.world();
    let batch = batch(args);
    let planned = u64::from(args.batch * world);
    // All ranks compute at the same time, so that what they take from each other is in both figures.
    ring.barrier()?;
    let alone = steps(&mut learner, &batch, planned, args.steps, &mut Solo::default())?;
    ring.barrier()?;
    let together = steps(&mut learner, &batch, planned, args.steps, &mut ring)?;
    if rank == 0 {
        let (alone, _) = median(alone)?;
        let (step, timeline) = median(together)?;
        report(args, alone, step, &timeline.context("a step with others has a timeline")?);
    }
    Ok(())
}

fn batch(args: &Args) -> Batch {
    let pixels = args.batch as usize * 3 * (args.size * args.size) as usize;
    Batch {
        step: 0,
        sample_ids: (0..args.batch).collect(),
        images: (0..pixels).map(|i| (i as f32 * 0.37).sin()).collect(),
        targets: (0..args.batch as usize * 1000).map(|i| f32::from(u8::from(i % 1001 == 0))).collect(),
        ..Batch::default()
    }
}

type Step = (Duration, Option<Timeline>);

/// What `count` steps took, after one that is not counted.
fn steps(
    learner: &mut Learner,
    batch: &Batch,
    planned: u64,
    count: u32,
    ring: &mut dyn Collective,
) -> Result<Vec<Step>> {
    let ask = Ask { position: Position::default(), planned, leave: false, may_skip: true };
    let mut taken = Vec::new();
    for _ in 0..=count {
        let began = Instant::now();
        learner.step(batch, ask, ring)?;
        taken.push((began.elapsed(), learner.timeline().cloned()));
    }
    taken.remove(0);
    Ok(taken)
}

fn median(mut steps: Vec<Step>) -> Result<Step> {
    steps.sort_by_key(|(taken, _)| *taken);
    let middle = steps.len() / 2;
    steps.into_iter().nth(middle).context("no steps")
}

fn report(args: &Args, alone: Duration, step: Duration, timeline: &Timeline) {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let at = |instant: Instant| ms(instant.saturating_duration_since(timeline.began));
    println!("bucket        MB  ready ms  begun ms   done ms");
    for (number, bucket) in timeline.buckets.iter().enumerate() {
        let megabytes = bucket.bytes as f64 * 1e-6;
        let times = [bucket.ready, bucket.begun, bucket.done].map(at);
        println!("{number:6} {megabytes:9.3} {:9.1} {:9.1} {:9.1}", times[0], times[1], times[2]);
    }
    println!("backward ended at {:.1} ms, the sums at {:.1} ms", at(timeline.computed), at(timeline.ended));
    let (waited, communicated) = (ms(timeline.waited()), ms(timeline.communicated()));
    let hidden = 1.0 - waited / communicated;
    println!(
        "{{\"arch\": \"{}\", \"ranks\": {}, \"wire\": \"{}\", \"delay_ms\": {}, \"gbit\": {}, \"step_ms\": {:.1}, \"alone_ms\": {:.1}, \
         \"communicated_ms\": {communicated:.1}, \"waited_ms\": {waited:.1}, \"hidden\": {hidden:.3}}}",
        args.arch,
        args.ranks,
        args.wire.name(),
        args.delay_ms,
        args.gbit.map_or("null".to_owned(), |gbit| gbit.to_string()),
        ms(step),
        ms(alone),
    );
}

/// Stands before `target`: what is sent to the address that it returns arrives there as over a link of that delay and
/// rate, and so do the answers. It does what `tc netem` would where the kernel has it, at the cost of some processor time.
fn slow_link(target: SocketAddr, args: &Args) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let delay = Duration::from_secs_f64(args.delay_ms * 1e-3);
    let seconds_a_byte = args.gbit.map_or(0.0, |gbit| 8e-9 / gbit);
    std::thread::spawn(move || {
        while let Ok((from, _)) = listener.accept() {
            let Ok(to) = TcpStream::connect(target) else { continue };
            for (from, to) in [(from.try_clone(), to.try_clone()), (Ok(to), Ok(from))] {
                let (Ok(from), Ok(to)) = (from, to) else { continue };
                // Room for 4 MiB that are on their way.
                let (queue, due) = sync_channel(256);
                std::thread::spawn(move || take(from, queue, delay, seconds_a_byte));
                std::thread::spawn(move || deliver(to, due));
            }
        }
    });
    Ok(address)
}

/// Bytes, and when they arrive.
type Piece = (Instant, Vec<u8>);

/// Takes what is sent, as fast as the link does.
fn take(mut from: TcpStream, queue: SyncSender<Piece>, delay: Duration, seconds_a_byte: f64) {
    let mut free = Instant::now();
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        free = free.max(Instant::now()) + Duration::from_secs_f64(read as f64 * seconds_a_byte);
        if queue.send((free + delay, buffer[..read].to_vec())).is_err() {
            return;
        }
    }
}

/// Hands on what is due. A link that is cut ends the connection.
fn deliver(mut to: TcpStream, due: Receiver<Piece>) {
    for (at, bytes) in due {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
    // The other end sees that nothing more comes. It may be gone already.
    let _ = to.shutdown(std::net::Shutdown::Write);
}
