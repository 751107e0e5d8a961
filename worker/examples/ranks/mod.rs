//! Ranks of a ring as processes on this machine, each started from the program that runs.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use worker::collective::tcp::{Membership, Ring, Timeouts};
use worker::collective::{AbortHandle, Region};

/// Which rank a process is; not set in the first, which starts the others.
const RANK: &str = "EXAMPLE_RANK";

/// The rank that this process is, if it is one.
///
/// # Errors
/// What is no number.
pub fn rank() -> Result<Option<u32>> {
    Ok(std::env::var(RANK).ok().map(|rank| rank.parse()).transpose()?)
}

/// Starts so many ranks with this process's own arguments, tells each where its peers are, and passes on what they
/// print until all have ended. `reach` says where the others reach what listens at an address.
///
/// # Errors
/// A rank that fails or cannot be started.
pub fn launch(ranks: usize, reach: impl Fn(SocketAddr) -> Result<SocketAddr>) -> Result<()> {
    let (mut children, mut peers) = (Vec::new(), Vec::new());
    for rank in 0..ranks {
        let mut child = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(RANK, rank.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let address = lines.next().context("a rank ended early")??.parse()?;
        peers.push(reach(address)?.to_string());
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

/// The ring, as this rank of it; they read what lies in each other's `region`, if they have one.
///
/// # Errors
/// Peers that cannot be reached.
pub fn connect(rank: u32, region: Option<Arc<Region>>) -> Result<Ring> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let peers: Vec<SocketAddr> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let world = peers.len() as u32;
    let neighbour = |rank: u32| peers[(rank % world) as usize];
    let (previous, next) = (neighbour(rank + world - 1), neighbour(rank + 1));
    let membership = Membership { rank, world, previous, next, generation: 0, token: [0; 32], region };
    Ok(Ring::connect(&listener, &membership, Timeouts::default(), AbortHandle::new())?)
}
