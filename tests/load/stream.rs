//! What a simulated worker says on its stream.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use relabel_core::FromWorker;
use relabel_proto::v1;
use tokio::sync::mpsc;
use tonic::Status;

use crate::worker::Crew;

/// The way to the coordinator.
pub struct Stream {
    wire: mpsc::Sender<v1::WorkerMessage>,
    crew: Arc<Crew>,
}

impl Stream {
    pub fn new(wire: mpsc::Sender<v1::WorkerMessage>, crew: Arc<Crew>) -> Self {
        Self { wire, crew }
    }

    /// Puts a message on its way; an error where it can go nowhere.
    pub fn say(&mut self, message: FromWorker) -> Result<(), Status> {
        self.crew.messages.fetch_add(1, Ordering::Relaxed);
        match self.wire.try_send(message.into()) {
            Ok(()) => Ok(()),
            // As good as a heartbeat: what waits there is one.
            Err(mpsc::error::TrySendError::Full(message)) if is_heartbeat(&message) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Status::unavailable("it takes no reports")),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Status::unavailable("the stream broke")),
        }
    }

    /// Notes how late the generator is.
    pub fn late(&self, due: Instant) {
        let lag = self.crew.lag.lock().unwrap_or_else(PoisonError::into_inner);
        lag.note(due.elapsed());
    }
}

fn is_heartbeat(message: &v1::WorkerMessage) -> bool {
    matches!(message.message, Some(v1::worker_message::Message::Heartbeat(_)))
}
