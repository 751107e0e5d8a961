//! The operator's side of a running coordinator: the way to it, `coordinator stop` and `coordinator checkpoint`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use relabel_proto::v1::admin_client::AdminClient;
use relabel_proto::v1::{SaveRequest, StopRequest};
use tonic::transport::{Channel, Endpoint};

use crate::cli::{CheckpointArgs, StopArgs, Target};

/// Reaches the coordinator that was named.
pub(crate) async fn connect(target: &Target) -> Result<AdminClient<Channel>> {
    let url = &target.coordinator;
    let endpoint = Endpoint::from_shared(url.clone())
        .with_context(|| format!("`{url}` is not an address: it should look like http://host:4747"))?
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(10));
    let channel = endpoint.connect().await.map_err(|_| {
        anyhow::anyhow!("no coordinator answers at {url}: name it with --coordinator, or start one")
    })?;
    Ok(AdminClient::new(channel))
}

/// Asks for the run to end after a checkpoint.
pub async fn stop(args: StopArgs) -> Result<ExitCode> {
    let request = StopRequest { reason: args.reason };
    let mut client = connect(&args.target).await?;
    client.stop(request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    println!("the run will stop after a checkpoint");
    Ok(ExitCode::SUCCESS)
}

/// Asks for a checkpoint.
pub async fn checkpoint(args: CheckpointArgs) -> Result<ExitCode> {
    let request = SaveRequest { reason: args.reason };
    let mut client = connect(&args.target).await?;
    client.save(request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    println!("a checkpoint will be written at the next step");
    Ok(ExitCode::SUCCESS)
}
