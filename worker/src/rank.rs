//! A worker's life: meet the coordinator, open the data, follow orders, say how it ended.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use relabel_config::Config;
use relabel_core::{FromWorker, Hello, Outcome, Rank, ToWorker};
use relabel_proto::security::Access;
use tch::Device;
use worker::collective::nccl;
use worker::session::{self, Session, SessionError};
use worker::torch;
use worker::train::trainer::{Ended, Setup, TrainError, Trainer};

use crate::cli::TrainArgs;

/// How long a worker whose data cannot be used waits for the coordinator to take note of why.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a worker that the coordinator lets go exits as, like one that was sent this signal.
const SIGTERM: u8 = 15;

/// Runs as a rank until the run is over.
pub fn run(args: TrainArgs) -> Result<ExitCode> {
    let device = match args.gpu {
        Some(gpu) => torch::cuda::open(gpu).with_context(|| format!("--gpu {gpu}"))?,
        None => Device::Cpu,
    };
    let nccl = match device {
        Device::Cuda(_) => nccl::find()
            .inspect_err(|error| {
                tracing::warn!("{error}: peers are summed with over the ring, by way of main memory")
            })
            .ok(),
        _ => None,
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(cores).max(1);
    torch::set_num_threads(threads);

    let access = args.access.to(&args.coordinator)?;
    let (listener, ring_address) = ring_listener(&args, &access)?;
    let host = hostname::get().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned());
    let pid = std::process::id();
    let mut instance = [0; 8];
    getrandom::fill(&mut instance).context("cannot get random numbers from the system")?;
    let hello = Hello {
        rank: args.rank.map(Rank),
        host,
        pid,
        device: args.gpu.map_or_else(|| "cpu".into(), |gpu| format!("cuda:{gpu}")),
        nccl,
        ring_address,
        instance: u64::from_le_bytes(instance),
        standing: None,
    };
    let patience = Duration::from_secs(args.connect_timeout);
    let (session, welcome) = match Session::open(&access, hello, patience) {
        Ok(opened) => opened,
        Err(SessionError::Over) => return Ok(late()),
        Err(error) => return Err(error.into()),
    };
    let config: Config =
        serde_json::from_str(&welcome.config).context("the coordinator's configuration cannot be read")?;
    let span = tracing::info_span!("worker", run_id = %welcome.run_id, rank = welcome.rank.0);
    let _in_span = span.enter();
    if let Some(note) = config.compute.precision_note(device.is_cuda()) {
        tracing::info!("{note}");
    }
    tracing::info!("seated as rank {} of {}", welcome.rank, welcome.world);

    let run_dir = args.run_dir.clone().unwrap_or_else(|| PathBuf::from(&welcome.run_dir));
    let setup = Setup {
        loader_threads: threads.min(config.compute.num_workers as usize).max(1),
        cache_dir: cache_dir(&args),
        rank: welcome.rank,
        device,
        config,
        listener,
        run_dir,
    };
    let trained = Trainer::new(&session, setup);
    let trained = trained.inspect_err(|error| last_words(&session, error)).and_then(|mut trainer| {
        trainer.run().inspect_err(|error| match error {
            TrainError::Session(_) => {}
            _ => trainer.give_up(error),
        })
    });
    match trained {
        Ok(Ended::Run(Outcome::Done)) => Ok(ExitCode::SUCCESS),
        Ok(Ended::Run(Outcome::Interrupted { reason, .. })) => {
            tracing::info!("the run was stopped: {reason}");
            Ok(ExitCode::SUCCESS)
        }
        Ok(Ended::Run(Outcome::Failed { reason })) => bail!("the run has failed: {reason}"),
        Ok(Ended::Released { reason }) => {
            tracing::info!("left the run, which goes on without this worker: {reason}");
            let signal = session.shared().leaving().unwrap_or(SIGTERM);
            Ok(ExitCode::from(128 + signal))
        }
        Err(TrainError::Session(SessionError::Over)) => Ok(late()),
        Err(error) => Err(error.into()),
    }
}

/// A worker that comes, or comes back, once all is done is no failure: whoever started it need not do so again.
fn late() -> ExitCode {
    tracing::info!("the run is over: there is nothing left to do");
    ExitCode::SUCCESS
}

/// Tells the coordinator why this worker cannot go on, and waits until it has taken note.
fn last_words(session: &Session, error: &TrainError) {
    session.reports().send(FromWorker::Fault { reason: error.to_string() });
    let until = Instant::now() + LAST_WORDS;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match session.next_order_within(left) {
            Ok(Some(ToWorker::Finish { .. })) | Ok(None) | Err(_) => return,
            Ok(Some(_)) => {}
        }
    }
}

/// Opens this rank's end of the ring, and says how its peers reach it: by `--advertise`, else by the
/// address that this host uses towards the coordinator.
fn ring_listener(args: &TrainArgs, access: &Access) -> Result<(TcpListener, String)> {
    let patience = Duration::from_secs(args.connect_timeout);
    let local = local_address(session::resolve(access, patience)?);
    let bind = match (&args.advertise, local) {
        // Nobody is told of another of this host's addresses.
        (None, Some(ip)) => ip,
        (_, Some(IpAddr::V6(_))) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let listener =
        TcpListener::bind((bind, 0)).context("cannot open a port for the ring between the workers")?;
    let port = listener.local_addr().context("cannot tell the port of the ring")?.port();
    let address = match (&args.advertise, local) {
        (Some(host), _) => format!("{host}:{port}"),
        (None, Some(ip)) => SocketAddr::new(ip, port).to_string(),
        (None, None) => bail!(
            "cannot tell by which address the other workers reach this host: name it with --advertise HOST, and check \
             --coordinator {}",
            args.coordinator
        ),
    };
    Ok((listener, address))
}

/// The address of this host on the way to the coordinator. Nothing is sent to find out.
fn local_address(coordinator: SocketAddr) -> Option<IpAddr> {
    let any = if coordinator.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(coordinator).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn cache_dir(args: &TrainArgs) -> Option<PathBuf> {
    let from_env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let default = || {
        Some(from_env("XDG_CACHE_HOME").or_else(|| Some(from_env("HOME")?.join(".cache")))?.join("relabel"))
    };
    args.cache_dir.clone().or_else(default)
}
