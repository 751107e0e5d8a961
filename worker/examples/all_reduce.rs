//! Measures the TCP ring's all-reduce on this machine: a process a rank, all over loopback.
//!
//!     cargo run --release -p relabel-worker --example all_reduce -- [RANKS [MEGABYTES [ROUNDS]]]
//!
//! With ALL_REDUCE_FAR set the bytes go through the connection, as between two hosts.
//!
//! Prints one line of JSON: the bus bandwidth in GB/s, which is what each rank sends, 2 (n-1)/n of the buffer, over the
//! median of the times: the figure that NCCL and Gloo report.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use worker::collective::tcp::{Membership, Ring, Timeouts};
use worker::collective::{AbortHandle, Collective, buckets};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (ranks, megabytes, rounds) = (number(2)?, number(102)?, number(20)?);
    match std::env::var("ALL_REDUCE_RANK") {
        Ok(rank) => run_rank(rank.parse()?, megabytes, rounds),
        Err(_) => launch(ranks, megabytes, rounds),
    }
}

/// Starts the ranks, tells each where the others listen, and waits for them.
fn launch(ranks: usize, megabytes: usize, rounds: usize) -> Result<()> {
    let mut children = Vec::new();
    let mut peers = Vec::new();
    for rank in 0..ranks {
        let mut child: Child = Command::new(std::env::current_exe()?)
            .args([ranks, megabytes, rounds].map(|n| n.to_string()))
            .env("ALL_REDUCE_RANK", rank.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        peers.push(lines.next().context("a rank ended early")??);
        children.push((child, lines));
    }
    for (child, _) in &mut children {
        writeln!(child.stdin.take().context("stdin")?, "{}", peers.join(" "))?;
    }
    for (child, lines) in &mut children {
        for line in lines {
            println!("{}", line?);
        }
        ensure!(child.wait()?.success(), "a rank failed");
    }
    Ok(())
}

fn run_rank(rank: u32, megabytes: usize, rounds: usize) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let peers: Vec<SocketAddr> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let world = peers.len() as u32;
    let neighbour = |rank: u32| peers[(rank % world) as usize];
    let (previous, next) = (neighbour(rank + world - 1), neighbour(rank + 1));
    // To see what reading each other's memory saves.
    let near = std::env::var_os("ALL_REDUCE_FAR").is_none();
    let membership = Membership { rank, world, previous, next, generation: 0, token: [0; 32], near };
    let mut ring = Ring::connect(&listener, &membership, Timeouts::default(), AbortHandle::new())?;

    let mut gradients = vec![1.0; megabytes * 1_000_000 / size_of::<f32>()];
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
