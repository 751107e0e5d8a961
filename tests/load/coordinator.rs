//! The real program, as a child: started, asked, watched through `/proc`, stopped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use relabel_proto::security::{ADMIN_TOKEN, Access, AccessToken, JOIN_TOKEN, TlsArgs};
use relabel_proto::v1::admin_client::AdminClient;
use relabel_proto::v1::{StatusReply, StatusRequest, StopRequest};
use tonic::transport::Channel;

/// How long it may take to listen.
const START: Duration = Duration::from_secs(60);

/// Ticks of a second in `/proc/PID/stat`, on every Linux that this is built for.
const TICKS: f64 = 100.0;

/// How long it may not answer before its connection counts as dead.
const DEAD_AFTER: Duration = Duration::from_secs(60);

/// The process, and what lets others in at it.
pub struct Coordinator {
    child: Running,
    log: PathBuf,
    url: String,
    join_token: AccessToken,
    pub operator: Operator,
}

impl Coordinator {
    /// Starts `program` with these arguments and with tokens in `folder`, and waits until it listens.
    pub async fn start(program: &Path, folder: &Path, args: &[String]) -> Result<Self> {
        let log = folder.join("coordinator.log");
        let stderr =
            std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let (join_token, admin_token) = (AccessToken::random()?, AccessToken::random()?);
        let child = Command::new(program)
            .arg("--run-dir")
            .arg(folder.join("run"))
            .args(["--listen", "127.0.0.1:0"])
            .args(args)
            .env(JOIN_TOKEN.variable, join_token.reveal())
            .env(ADMIN_TOKEN.variable, admin_token.reveal())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut child = Running(child);
        let began = Instant::now();
        let url = loop {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let address = text.split("listening on ").nth(1).and_then(|rest| rest.split_once('\n'));
            if let Some((address, _)) = address {
                break format!("http://{address}");
            }
            if let Some(status) = child.0.try_wait()? {
                bail!("the coordinator ended ({status}): {}", text.trim());
            }
            if began.elapsed() > START {
                bail!("the coordinator does not listen after {START:?}: {}", text.trim());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let access = Access::new(&url, &TlsArgs::default(), Some(admin_token))?;
        let channel = access.connect(DEAD_AFTER, None).await.context("cannot reach the coordinator")?;
        let operator = Operator { access, client: AdminClient::new(channel) };
        Ok(Self { child, log, url, join_token, operator })
    }

    /// What lets a worker in.
    pub fn access_of_workers(&self) -> Result<Access> {
        Ok(Access::new(&self.url, &TlsArgs::default(), Some(self.join_token.clone()))?)
    }

    /// Its name under `/proc`.
    pub fn process(&self) -> String {
        self.child.0.id().to_string()
    }

    /// CPU seconds that it has used.
    pub fn cpu(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.process());
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // The program's name, in parentheses, may hold anything.
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        Ok(ticks.iter().sum::<f64>() / TICKS)
    }

    /// Asks for the end, and waits for it.
    pub async fn stop(mut self, patience: Duration) -> Result<(Duration, ExitStatus)> {
        let began = Instant::now();
        self.operator.stop("the load has been measured").await?;
        loop {
            if let Some(status) = self.child.0.try_wait()? {
                return Ok((began.elapsed(), status));
            }
            if began.elapsed() > patience {
                bail!(
                    "the coordinator has not ended {patience:?} after it was told to:\n{}",
                    self.last_lines()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The end of its log.
    pub fn last_lines(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

/// A child that does not outlive this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already unless something failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of memory that a process, named as under `/proc`, has now, and the most that it has had.
pub fn memory(process: &str) -> Result<(u64, u64)> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Ok((1024 * field("VmRSS:").unwrap_or(0), 1024 * field("VmHWM:").unwrap_or(0)))
}

/// The operator's end of a connection.
#[derive(Clone)]
pub struct Operator {
    access: Access,
    client: AdminClient<Channel>,
}

impl Operator {
    /// The status, with at most `most` workers from rank `first` on.
    pub async fn status(&self, first: u32, most: Option<u32>) -> Result<StatusReply> {
        let request = self.access.request(StatusRequest { first, most });
        Ok(self.client.clone().status(request).await?.into_inner())
    }

    /// The status with all workers, as `coordinator status` asks for it.
    pub async fn whole_status(&self) -> Result<StatusReply> {
        relabel_proto::whole_status(async |first| self.status(first, None).await).await
    }

    async fn stop(&mut self, reason: &str) -> Result<()> {
        let request = self.access.request(StopRequest { reason: reason.into() });
        self.client.stop(request).await?;
        Ok(())
    }
}
