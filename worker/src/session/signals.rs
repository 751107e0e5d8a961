//! The signals that tell a worker to leave.

use relabel_core::FromWorker;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub const SIGINT: u8 = 2;
pub const SIGTERM: u8 = 15;

/// The exit code of a process that left because of a signal, as a shell has it.
pub fn exit_code(signal: u8) -> i32 {
    128 + i32::from(signal)
}

pub fn signal_name(signal: u8) -> &'static str {
    match signal {
        SIGINT => "SIGINT",
        _ => "SIGTERM",
    }
}

/// What the coordinator is told about it.
pub fn leaving(signal: u8) -> FromWorker {
    FromWorker::Leaving { reason: signal_name(signal).into() }
}

pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The number of the next signal to leave.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => SIGTERM,
            _ = self.interrupt.recv() => SIGINT,
        }
    }
}
