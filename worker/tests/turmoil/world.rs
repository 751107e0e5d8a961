//! What all hosts of one simulation share, and the hosts themselves.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use coordinator::driver::{Driver, Ended, Terms};
use coordinator::journal::Journal;
use coordinator::progress::Screen;
use coordinator::report::Report;
use coordinator::security::{Entrance, Role, SecurityArgs};
use coordinator::service::services;
use relabel_config::Config;
use relabel_core::{
    Fact, Generation, Hello, History, Outcome, Run, Settings, StragglerAction, StragglerPolicy,
};
use relabel_proto::security::{Access, AccessToken, TlsArgs};
use relabel_proto::{DEFAULT_PORT, v1};
use tokio::time::{sleep, timeout};
use tonic::service::Routes;
use worker::session::{Session, SessionError};

use super::checks::Checks;
use super::net::{Network, SimulatedPort};
use super::ring::Ring;
use super::state::{BATCH, EPOCHS};
use super::trainer::Trainer;

pub const WORKERS: u32 = 3;
pub const DEAD_AFTER: Duration = Duration::from_secs(2);
pub const COORDINATOR: &str = "coordinator";
const RUN: &str = "run";
const JOIN_TOKEN: &str = "the-token-of-workers";
const ADMIN_TOKEN: &str = "the-token-of-the-operator";

/// How long a worker looks for the coordinator at its start, and one that lost it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the coordinator waits for its workers to leave.
const FAREWELL: Duration = Duration::from_secs(10);

pub type Shared = Rc<RefCell<World>>;

pub struct World {
    random: u64,
    folder: PathBuf,
    pub rings: BTreeMap<Generation, Ring>,
    /// Processes whose host is gone without a word.
    pub gone: BTreeSet<u64>,
    /// The process that runs on each worker's host, and how many there have been.
    pub processes: BTreeMap<String, u64>,
    last: u64,
    pub checks: Checks,
    /// How the run ended, and how many of the hosts are through.
    pub outcome: Option<Outcome>,
    pub through: BTreeSet<String>,
    pub trace: Vec<String>,
}

impl World {
    pub fn new(seed: u64, folder: PathBuf) -> Self {
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            folder,
            rings: BTreeMap::new(),
            gone: BTreeSet::new(),
            processes: BTreeMap::new(),
            last: 0,
            checks: Checks::default(),
            outcome: None,
            through: BTreeSet::new(),
            trace: Vec::new(),
        }
    }

    /// A number below `bound`, from the seed (splitmix64).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// A number of `least..most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least)
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    pub fn note(&mut self, words: String) {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        self.trace.push(format!("{:>7.3} {words}", now.as_secs_f64()));
    }
}

/// The run's options: times are short, as a disturbance is to be over before the run is.
fn config() -> Config {
    let mut config = Config::default();
    config.optim.epochs = EPOCHS;
    config.optim.batch_size = BATCH;
    config.util.print_freq = 1;
    config.cluster.dead_after = DEAD_AFTER.as_secs_f64();
    config.cluster.ring_timeout = super::ring::PEER.as_secs_f64();
    config.cluster.wait_for_coordinator = PATIENCE.as_secs_f64();
    config
}

fn settings() -> Settings {
    Settings {
        run_id: RUN.into(),
        workers: WORKERS,
        min_workers: 2,
        spares: 0,
        epochs: EPOCHS,
        start_epoch: 0,
        test_only: false,
        global_batch: BATCH,
        checkpoint_every_steps: 5,
        checkpoint_every_epochs: 1,
        checkpoint_every: None,
        keep_checkpoints: 2,
        dead_after: DEAD_AFTER,
        wait_for_workers: Duration::from_secs(60),
        gather_for: Duration::from_secs(2),
        admit_after: Duration::from_millis(500),
        reunite_for: Duration::from_secs(3),
        stragglers: StragglerPolicy { factor: 1.5, action: StragglerAction::Report },
        stop_deadline: Duration::from_secs(20),
        secret: [7; 32],
    }
}

/// The coordinator's host: what `coordinator/src/run.rs` does, from the journal that the host has kept.
pub async fn coordinator(shared: Shared) -> turmoil::Result {
    let folder = shared.borrow().folder.clone();
    let (mut journal, facts) = Journal::open(&folder)?;
    let mut history = History::replay(&facts);
    if facts.is_empty() {
        let (version, config) = (relabel_proto::VERSION.into(), serde_json::to_string(&config())?);
        journal.append(&Fact::Started { run_id: RUN.into(), version, seed: 0, config })?;
    } else {
        journal.append(&Fact::Resumed)?;
        history.resumed += 1;
    }
    shared.borrow_mut().note(format!("the coordinator starts, life {}", history.resumed));

    let token = |name: &str, token: &str| {
        let file = folder.join(name);
        std::fs::write(&file, token).map(|()| Some(file))
    };
    let args = SecurityArgs {
        join_token_file: token("join-token", JOIN_TOKEN)?,
        admin_token_file: token("admin-token", ADMIN_TOKEN)?,
        ..SecurityArgs::default()
    };
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT));
    let listener = turmoil::net::TcpListener::bind(address).await?;
    let entrance = Entrance::by(SimulatedPort(listener), address, &args)?;

    let run_dir = folder.display().to_string();
    let terms =
        Terms { run_id: RUN.into(), run_dir: run_dir.clone(), config: serde_json::to_string(&config())? };
    let report = Report::new(folder.clone(), config(), Screen::new(std::io::sink(), None));
    let (driver, queue) = Driver::new(Run::new(settings(), history), terms, journal, report);
    let (session, admin) = services(&queue, RUN, &run_dir);
    let routes = Routes::new(entrance.only_for(Role::Worker, session));
    let routes = routes.add_service(entrance.only_for(Role::Admin, admin));
    let (over, until_over) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(entrance.serve(routes, DEAD_AFTER, async {
        let _ = until_over.await;
    }));
    let ended = driver.drive().await;
    let outcome = match ended {
        Ended::Run(outcome) => outcome,
        Ended::HandedOver => unreachable!("nobody has asked for it"),
    };
    shared.borrow_mut().note(format!("the run is over: {outcome:?}"));
    shared.borrow_mut().outcome = Some(outcome);
    drop(over);
    let _ = timeout(FAREWELL, server).await;
    shared.borrow_mut().through.insert(COORDINATOR.into());
    Ok(())
}

fn access(token: &str) -> Access {
    let token = AccessToken::new(token, String::new).expect("a token");
    let url = format!("http://{COORDINATOR}:{DEFAULT_PORT}");
    Access::new(&url, &TlsArgs::default(), Some(token)).expect("an address").over(Arc::new(Network))
}

/// A worker's host: a process, and another where that one has ended before the run has.
pub async fn worker(shared: Shared, name: String) -> turmoil::Result {
    while shared.borrow().outcome.is_none() {
        let ended = process(&shared, &name).await;
        let words = match &ended {
            Ok(()) => "it was told to end".to_owned(),
            Err(error) => error.to_string(),
        };
        shared.borrow_mut().note(format!("{name} ends: {words}"));
        if ended.is_ok() {
            break;
        }
        sleep(Duration::from_millis(300)).await;
    }
    shared.borrow_mut().through.insert(name);
    Ok(())
}

async fn process(shared: &Shared, name: &str) -> Result<(), SessionError> {
    let instance = {
        let mut world = shared.borrow_mut();
        world.last += 1;
        let instance = world.last;
        world.processes.insert(name.to_owned(), instance);
        world.note(format!("{name} starts as process {instance}"));
        instance
    };
    let hello = Hello {
        rank: None,
        host: name.to_owned(),
        pid: instance as u32,
        device: "cpu".into(),
        nccl: None,
        ring_address: format!("{name}:1"),
        instance,
        standing: None,
    };
    let (session, link) = Session::with_link(&access(JOIN_TOKEN), hello);
    let (welcomed, welcome) = std_mpsc::channel();
    let linked = async move {
        link.keep_open(PATIENCE, &welcomed).await;
        // What there is to say about its end is in the session.
        std::future::pending::<()>().await;
    };
    let training = async {
        loop {
            match welcome.try_recv() {
                Ok(Ok(_)) => break Trainer::new(shared.clone(), instance, session).run().await,
                Ok(Err(error)) => break Err(error),
                Err(_) => sleep(Duration::from_millis(3)).await,
            }
        }
    };
    tokio::select! {
        biased;
        ended = training => ended,
        () = linked => unreachable!("it waits for ever"),
    }
}

/// The operator's host: asks how it is going until it is over.
pub async fn operator(shared: Shared) -> turmoil::Result {
    let (access, limit) = (access(ADMIN_TOKEN), Duration::from_secs(1));
    while shared.borrow().outcome.is_none() {
        sleep(Duration::from_millis(200)).await;
        let Ok(channel) = access.connect(DEAD_AFTER, Some(limit)).await else { continue };
        let mut client = v1::admin_client::AdminClient::new(channel);
        while let Ok(reply) = client.status(access.request(v1::StatusRequest { first: 0, most: None })).await
        {
            shared.borrow_mut().checks.status(&reply.into_inner());
            if shared.borrow().outcome.is_some() {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    shared.borrow_mut().through.insert("operator".into());
    Ok(())
}
