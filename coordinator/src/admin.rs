//! The operator's side of a running coordinator: the way to it, `coordinator stop` and `coordinator checkpoint`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use relabel_proto::security::{Access, Unreached};
use relabel_proto::v1::admin_client::AdminClient;
use relabel_proto::v1::{SaveRequest, StatusReply, StatusRequest, StopRequest};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cli::{CheckpointArgs, StopArgs, Target};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The operator's end of a connection.
pub(crate) struct Operator {
    access: Access,
    client: AdminClient<Channel>,
}

impl Operator {
    /// Reaches the coordinator that was named.
    pub(crate) async fn connect(target: &Target) -> Result<Self> {
        let access = target.access.to(&target.coordinator)?;
        let channel = access.connect(PATIENCE, Some(PATIENCE)).await.map_err(|error| match error {
            Unreached::Mistrust(words) => anyhow::anyhow!(words),
            Unreached::Absent(_) => anyhow::anyhow!(
                "no coordinator answers at {}: name it with --coordinator, or start one",
                access.url()
            ),
        })?;
        Ok(Self { access, client: AdminClient::new(channel) })
    }

    /// How the run is doing, with all its workers.
    pub(crate) async fn status(&mut self) -> Result<StatusReply> {
        relabel_proto::whole_status(async |first| {
            let request = self.access.request(StatusRequest { first, most: None });
            let reply = self.client.status(request).await.map_err(|status| self.failed(status))?;
            Ok(reply.into_inner())
        })
        .await
    }

    /// A refusal in the coordinator's words, or what the connection broke of.
    fn failed(&self, status: Status) -> anyhow::Error {
        let words = self.access.mistrust(&status);
        let words = words.unwrap_or_else(|| relabel_proto::sentence(status.message()));
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition => {
                anyhow::anyhow!("the coordinator refused this: {words}")
            }
            _ => anyhow::anyhow!(words),
        }
    }
}

/// Asks for the run to end after a checkpoint.
pub async fn stop(args: StopArgs) -> Result<ExitCode> {
    let mut operator = Operator::connect(&args.target).await?;
    let request = operator.access.request(StopRequest { reason: args.reason });
    operator.client.stop(request).await.map_err(|status| operator.failed(status))?;
    println!("the run will stop after a checkpoint");
    Ok(ExitCode::SUCCESS)
}

/// Asks for a checkpoint.
pub async fn checkpoint(args: CheckpointArgs) -> Result<ExitCode> {
    let mut operator = Operator::connect(&args.target).await?;
    let request = operator.access.request(SaveRequest { reason: args.reason });
    operator.client.save(request).await.map_err(|status| operator.failed(status))?;
    println!("a checkpoint will be written at the next step");
    Ok(ExitCode::SUCCESS)
}
