//! The real program, as a child: started, asked, watched through `/proc`, stopped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use relabel_proto::v1::admin_client::AdminClient;
use relabel_proto::v1::{StatusReply, StatusRequest, StopRequest};
use tonic::transport::{Channel, Endpoint};

/// How long it may take to listen.
const START: Duration = Duration::from_secs(60);

/// Ticks of a second in `/proc/PID/stat`, on every Linux that this is built for.
const TICKS: f64 = 100.0;

pub struct Coordinator {
    child: Child,
    log: PathBuf,
    pub url: String,
    pub admin: AdminClient<Channel>,
}

impl Coordinator {
    /// Starts `program` with these arguments in `folder`, and waits until it listens.
    pub async fn start(program: &Path, folder: &Path, args: &[String]) -> Result<Self> {
        let log = folder.join("coordinator.log");
        let stderr =
            std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut child = Command::new(program)
            .arg("--run-dir")
            .arg(folder.join("run"))
            .args(["--listen", "127.0.0.1:0"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let began = Instant::now();
        let url = loop {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let address = text.split("listening on ").nth(1).and_then(|rest| rest.split_whitespace().next());
            if let Some(address) = address {
                break format!("http://{address}");
            }
            if let Some(status) = child.try_wait()? {
                bail!("the coordinator ended ({status}): {}", text.trim());
            }
            if began.elapsed() > START {
                let _ = child.kill();
                bail!("the coordinator does not listen after {START:?}: {}", text.trim());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let endpoint = Endpoint::from_shared(url.clone())?.tcp_nodelay(true);
        let admin = AdminClient::new(endpoint.connect().await.context("cannot reach the coordinator")?);
        Ok(Self { child, log, url, admin })
    }

    /// CPU seconds that it has used.
    pub fn cpu(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // The program's name, in parentheses, may hold anything.
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        Ok(ticks.iter().sum::<f64>() / TICKS)
    }

    /// Bytes of memory that it has now, and the most that it has had.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        Ok((1024 * field("VmRSS:").unwrap_or(0), 1024 * field("VmHWM:").unwrap_or(0)))
    }

    /// Time that the status of all workers takes, page by page as `coordinator status` asks for it.
    pub async fn whole_status(&self) -> Result<(Duration, StatusReply)> {
        let began = Instant::now();
        let mut admin = self.admin.clone();
        let mut status = admin.status(StatusRequest { first: 0, most: None }).await?.into_inner();
        while let Some(last) = status.workers.last().map(|w| w.rank)
            && status.workers.len() < status.seated as usize
        {
            let next =
                admin.status(StatusRequest { first: last + 1, most: None }).await?.into_inner().workers;
            if next.is_empty() {
                break;
            }
            status.workers.extend(next);
        }
        Ok((began.elapsed(), status))
    }

    /// Asks for the end, and waits for it.
    pub async fn stop(mut self, patience: Duration) -> Result<(Duration, ExitStatus)> {
        let began = Instant::now();
        self.admin.stop(StopRequest { reason: "the load has been measured".into() }).await?;
        loop {
            if let Some(status) = self.child.try_wait()? {
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

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It has ended already unless something failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
