//! One stream to the coordinator: how it is opened, and why it breaks.

use std::time::Duration;

use relabel_core::{FromWorker, Hello};
use relabel_proto::security::{Access, Unreached};
use relabel_proto::v1::session_client::SessionClient;
use relabel_proto::{MAX_MESSAGE, Told, Welcome, sentence, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{OUTBOX, SessionError};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// An open stream.
pub struct Stream {
    pub inbound: Streaming<v1::CoordinatorMessage>,
    pub(super) wire: mpsc::Sender<v1::WorkerMessage>,
}

/// Why a stream is no more.
#[derive(Debug)]
pub enum Broken {
    ForGood(SessionError),
    /// Another may be opened; `outside` where the coordinator has put this worker out.
    Away {
        reason: String,
        outside: bool,
    },
}

impl Stream {
    /// Puts a message on the wire, without waiting.
    ///
    /// # Errors
    /// If the stream is broken, or takes so little that [`OUTBOX`] messages wait already: then it is to be given up.
    pub fn put(&self, message: FromWorker) -> Result<(), Broken> {
        self.wire.try_send(message.into()).map_err(|unsent| {
            Broken::away(match unsent {
                mpsc::error::TrySendError::Full(_) => "it takes no reports",
                mpsc::error::TrySendError::Closed(_) => "the stream broke",
            })
        })
    }
}

impl Broken {
    pub fn away(reason: &str) -> Self {
        Self::Away { reason: reason.to_owned(), outside: false }
    }

    /// What the status means that a stream ended with, or could not be opened with.
    pub fn by(status: &Status) -> Self {
        let reason = sentence(status.message());
        match status.code() {
            // The coordinator's own word for those that may come back.
            Code::Aborted => Self::Away { reason, outside: true },
            Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Internal
            | Code::DeadlineExceeded
            | Code::AlreadyExists
            // Another token than before, which may be mended too.
            | Code::Unauthenticated
            | Code::ResourceExhausted => Self::Away { reason, outside: false },
            Code::NotFound => Self::ForGood(SessionError::Over),
            _ => Self::ForGood(SessionError::Refused(reason)),
        }
    }
}

/// Finds the coordinator again, and opens another stream to it.
pub async fn attempt(access: &Access, silence: Duration, hello: Hello) -> Result<(Welcome, Stream), Broken> {
    match tokio::time::timeout(ATTEMPT, reach(access, silence, hello)).await {
        Ok(opened) => opened,
        Err(_) => Err(Broken::away("no answer")),
    }
}

async fn reach(access: &Access, silence: Duration, hello: Hello) -> Result<(Welcome, Stream), Broken> {
    let channel = access.connect(silence, None).await.map_err(|error| match error {
        // It was trusted before: whoever starts it again may yet mend that, and what is held is worth the wait.
        Unreached::Mistrust(reason) | Unreached::Absent(reason) => Broken::away(&reason),
    })?;
    match open(access, channel, hello).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(status)) => Err(Broken::by(&status)),
        Err(error @ SessionError::Nonsense(_)) => Err(Broken::ForGood(error)),
        Err(error) => Err(Broken::away(&error.to_string())),
    }
}

/// Opens a stream and is welcomed, or refused with a status.
pub async fn open(
    access: &Access,
    channel: tonic::transport::Channel,
    hello: Hello,
) -> Result<Result<(Welcome, Stream), Status>, SessionError> {
    let mut client = SessionClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let (wire, outgoing) = mpsc::channel(OUTBOX);
    // The channel is empty: this cannot fail, and the Hello is the first message.
    let _ = wire.try_send(hello.into());
    let mut inbound = match client.join(access.request(ReceiverStream::new(outgoing))).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let first = match inbound.message().await {
        Ok(first) => first.ok_or_else(|| SessionError::Lost("it ended the stream at once".into()))?,
        Err(status) => return Ok(Err(status)),
    };
    match relabel_proto::to_worker(first)? {
        Told::Welcome(welcome) => Ok(Ok((welcome, Stream { inbound, wire }))),
        Told::Order(_) => Err(relabel_proto::Invalid::Unexpected("an order before the welcome").into()),
    }
}
