//! A run from its command line to its exit code: folder, journal, server, driver, and what can end it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use relabel_config::{Config, Stragglers};
use relabel_core::{Event, Fact, Outcome, Run, Settings, StragglerAction, StragglerPolicy};
use relabel_store::{Store, StoreError};
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::Routes;

use crate::cli::RunArgs;
use crate::config::Resolved;
use crate::driver::{Driver, Ended, Input, Queue, Terms};
use crate::launch::{self, Local, Task};
use crate::mirror::{self, Mirror};
use crate::progress::Screen;
use crate::report::Report;
use crate::run_dir::{self, RunDir, RunDirError, Start};
use crate::security::{Entrance, Role};
use crate::service;
use crate::traces::Traces;
use crate::{config, dry_run, http};

/// How long workers may take to leave after the run is over.
const FAREWELL: Duration = Duration::from_secs(10);

/// The exit code of a coordinator that has made way for another: EX_TEMPFAIL of sysexits.h, start it again.
const HANDED_OVER: u8 = 75;

/// Runs until the run is over. What can be wrong with a command line is found before anything is written.
pub async fn run(args: RunArgs, overrides: &[(String, String)], screen: Screen) -> Result<ExitCode> {
    if let Some(form) = args.dry_run {
        return dry_run::run(&args, form, overrides, &screen);
    }
    let worker = args.local.then(launch::worker_program).transpose()?;
    let file = args.config.config.as_deref();
    let fresh = match args.resume {
        true => None,
        false => Some(config::load(None, file, config::environment(), overrides)?),
    };
    let entrance = Entrance::open(&args.security, args.listen(), args.local).await?;
    entrance.expect(args.workers);
    let http = http::bind(args.http()).await?;
    let start = fresh.as_ref().map_or(Start::Resumed, |fresh| Start::New { arch: &fresh.config.model.arch });
    let (upload, named) = upload(&args, fresh.as_ref(), overrides)?;
    if let Some(store) = store(&upload)? {
        mirror::catch_up(&store, named.as_deref()).await?;
    }
    let mut folder = RunDir::open(args.run_dir.as_deref(), start)?;
    let mut resolved = match (fresh, &folder.began) {
        (Some(fresh), _) => fresh,
        (None, began) => {
            let began = began.as_ref().map(|began| (folder.path.as_path(), &began.config));
            config::load(began, file, config::environment(), overrides)?
        }
    };
    for note in &resolved.notes {
        tracing::warn!("{note}");
    }
    let config = &mut resolved.config;
    if let (Some(began), false) = (&folder.began, args.resume) {
        began.same(&folder.path, config)?;
    }
    if config.util.test_only && args.resume {
        bail!("util.test_only evaluates once and there is nothing to resume: leave --resume out");
    }
    if let Some(began) = &folder.began {
        for change in began.reconcile(config)? {
            tracing::warn!("{change}");
        }
    }
    let newest = folder.history.newest().map(|written| written.position);
    if folder.history.finished && newest.is_some_and(|position| position.epoch >= config.optim.epochs) {
        screen.line(&format!(
            "all {} epochs of {} are done already",
            config.optim.epochs,
            folder.path.display()
        ));
        if let Some(store) = store(&config.checkpoint.upload)? {
            // Its end may have come while the store was away.
            let (mirror, news) = Mirror::start(store, folder.path.clone());
            drop(news);
            mirror.finish().await;
        }
        return Ok(ExitCode::SUCCESS);
    }

    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("cannot get random numbers from the system")?;
    let run_id = begin(&mut folder, config, &secret)?;
    let settings = settings(&args, &run_id, config, secret);
    let run_dir = std::path::absolute(&folder.path).context("cannot tell where the run directory is")?;

    let yaml = folder.path.join("config.yaml");
    std::fs::write(&yaml, resolved.to_yaml()?).with_context(|| format!("cannot write {}", yaml.display()))?;
    let config = resolved.config;
    let terms = Terms {
        run_id: run_id.clone(),
        run_dir: run_dir.display().to_string(),
        config: serde_json::to_string(&config).context("cannot write the configuration for the workers")?,
    };
    let dead_after = settings.dead_after;
    let core = Run::new(settings, folder.history);
    let store = store(&config.checkpoint.upload)?;
    let report = Report::new(folder.path.clone(), config, screen.clone());
    let (driver, queue) = Driver::new(core, terms, folder.journal, report);
    let (mut mirror, news) = store.map(|store| Mirror::start(store, run_dir.clone())).unzip();
    let driver = driver.mirrored(news);
    let (session, admin) = service::services(&queue, &run_id, &run_dir.display().to_string());
    let (over, until_over) = tokio::sync::oneshot::channel::<()>();
    let routes = Routes::new(entrance.only_for(Role::Worker, session));
    let routes = routes.add_service(entrance.only_for(Role::Admin, admin));
    let (address, invitation) = (entrance.address(), entrance.invitation());
    let home = entrance.for_children().cloned();
    let server = tokio::spawn(entrance.serve(routes, dead_after, async {
        // Dropped or sent, it is over.
        let _ = until_over.await;
    }));

    tracing::info!("run {run_id} in {}, listening on {address}", folder.path.display());
    let http = http.map(|bound| bound.serve(queue.clone(), run_dir.clone()));
    let traces = match &args.otlp {
        Some(collector) => Some(Traces::start(collector, &run_id, queue.board()).await?),
        None => None,
    };
    let mut local = match worker.zip(home) {
        Some((program, home)) => Some(
            Local::start(program, Task::Train, args.workers, args.least(), args.threads, &home, &run_dir)
                .await?,
        ),
        None => {
            tracing::info!("waiting for {} workers: worker {invitation}", args.workers);
            None
        }
    };
    let (ended, signal) = drive(driver, &queue, args.hand_over, local.as_mut(), mirror.as_mut()).await?;
    if let Some(http) = http {
        http.stop().await;
    }
    if let Some(traces) = traces {
        traces.stop().await;
    }

    // The last orders are on their way: the workers leave, then the server has nothing left to serve.
    if let Some(local) = &mut local {
        local.farewell(FAREWELL).await;
    }
    drop(over);
    if let Some(mirror) = mirror {
        mirror.finish().await;
    }
    if tokio::time::timeout(FAREWELL, server).await.is_err() {
        tracing::warn!("some workers have not left; they will find that the run is over");
    }
    Ok(match ended {
        Ended::Run(Outcome::Done) => ExitCode::SUCCESS,
        // As a shell has it: 128 and the signal's number; SIGTERM for those who asked by `coordinator stop`.
        Ended::Run(Outcome::Interrupted { .. }) => ExitCode::from(128 + signal.unwrap_or(15)),
        Ended::Run(Outcome::Failed { .. }) => ExitCode::FAILURE,
        Ended::HandedOver => ExitCode::from(HANDED_OVER),
    })
}

/// Where the run goes to on an object store (empty for nowhere), and its folder here if that has a name: before the folder
/// is opened, which may have to be fetched.
fn upload(
    args: &RunArgs,
    fresh: Option<&Resolved>,
    overrides: &[(String, String)],
) -> Result<(String, Option<PathBuf>)> {
    if let Some(fresh) = fresh {
        return Ok((fresh.config.checkpoint.upload.clone(), args.run_dir.clone()));
    }
    let (folder, began) = match run_dir::look(args.run_dir.as_deref(), Start::Resumed) {
        Ok(told) => (Some(told.path), told.began),
        // On a machine that has not seen the run, the command has to say where it is.
        Err(RunDirError::Nothing(_)) => (args.run_dir.clone(), None),
        Err(error) => return Err(error.into()),
    };
    let began = folder.as_deref().zip(began.as_ref().map(|began| &began.config));
    let merged = config::merge(began, args.config.config.as_deref(), config::environment(), overrides)?;
    Ok((merged.config.checkpoint.upload, folder))
}

fn store(upload: &str) -> Result<Option<Store>, StoreError> {
    Some(upload).filter(|url| !url.is_empty()).map(Store::open).transpose()
}

/// Drives the run, turning signals, dead local workers and the loss of the object store to another coordinator into
/// events. Returns the last signal's number too.
async fn drive(
    driver: Driver,
    queue: &Queue,
    hand_over: bool,
    mut local: Option<&mut Local>,
    mut mirror: Option<&mut Mirror>,
) -> Result<(Ended, Option<u8>)> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut save = signal(SignalKind::user_defined1()).context("cannot listen for SIGUSR1")?;
    let mut signalled = None;
    let driving = driver.drive();
    tokio::pin!(driving);
    loop {
        let event = tokio::select! {
            ended = &mut driving => return Ok((ended, signalled)),
            _ = interrupt.recv() => {
                signalled = Some(2);
                tracing::info!("interrupted: saving a checkpoint first; once more ends the run without waiting");
                Event::Stop { reason: "SIGINT".into() }
            }
            // A batch system may send it to the process and to its group: once is meant.
            _ = terminate.recv(), if signalled.is_none() => {
                signalled = Some(15);
                let reason = "SIGTERM".into();
                if hand_over { Event::HandOver { reason } } else { Event::Stop { reason } }
            }
            _ = save.recv() => Event::Save { reason: "SIGUSR1".into() },
            reason = watch(local.as_deref_mut()) => {
                local = None;
                Event::Broken { reason }
            }
            reason = lost(mirror.as_deref_mut()) => {
                mirror = None;
                Event::Broken { reason }
            }
        };
        // The queue is open for as long as the driver drives, and has room for these few.
        let _ = queue.try_put(Input::Event(event));
    }
}

/// Watches local workers where there are any; see [`Local::watch`].
pub(crate) async fn watch(local: Option<&mut Local>) -> String {
    match local {
        Some(local) => local.watch().await,
        None => std::future::pending().await,
    }
}

/// Waits for the loss of the object store where there is one; see [`Mirror::lost`].
async fn lost(mirror: Option<&mut Mirror>) -> String {
    match mirror {
        Some(mirror) => mirror.lost().await,
        None => std::future::pending().await,
    }
}

/// Gives a new run its name and seed and writes its first fact; a resumed run has them.
fn begin(folder: &mut RunDir, config: &mut Config, secret: &[u8; 32]) -> Result<String> {
    if let Some(began) = &folder.began {
        folder.journal.append(&Fact::Resumed)?;
        folder.history.resumed += 1;
        return Ok(began.run_id.clone());
    }
    let random = blake3::derive_key("relabel run id and seed", secret);
    if config.compute.seed < 0 {
        let [a, b, c, d, ..] = random;
        config.compute.seed = i64::from(u32::from_le_bytes([a, b, c, d]));
        tracing::info!("compute.seed is {} (chosen at random)", config.compute.seed);
    }
    let name =
        folder.path.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
    let run_id = format!("{name}-{:02x}{:02x}{:02x}", random[29], random[30], random[31]);
    folder.journal.append(&Fact::Started {
        run_id: run_id.clone(),
        version: relabel_proto::VERSION.into(),
        seed: config.compute.seed as u64,
        config: serde_json::to_string(config).context("cannot write the configuration")?,
    })?;
    Ok(run_id)
}

fn settings(args: &RunArgs, run_id: &str, config: &Config, secret: [u8; 32]) -> Settings {
    // Validated: not negative, and finite.
    let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX);
    let cluster = &config.cluster;
    Settings {
        run_id: run_id.into(),
        workers: args.workers,
        min_workers: args.least(),
        spares: cluster.spares,
        epochs: config.optim.epochs,
        start_epoch: config.optim.start_epoch,
        test_only: config.util.test_only,
        global_batch: config.optim.batch_size,
        checkpoint_every_steps: config.checkpoint.every_steps,
        checkpoint_every: Some(seconds(60.0 * config.checkpoint.every_minutes))
            .filter(|every| !every.is_zero()),
        checkpoint_every_epochs: config.checkpoint.every_epochs,
        keep_checkpoints: config.checkpoint.keep as usize,
        dead_after: seconds(cluster.dead_after),
        wait_for_workers: seconds(cluster.wait_for_workers),
        gather_for: seconds(cluster.gather_for),
        admit_after: seconds(cluster.admit_after),
        reunite_for: seconds(cluster.reunite_for),
        stragglers: StragglerPolicy {
            factor: cluster.straggler_factor,
            action: match cluster.stragglers {
                Stragglers::Report => StragglerAction::Report,
                Stragglers::Drop => StragglerAction::Drop,
                Stragglers::Replace => StragglerAction::Replace,
            },
        },
        stop_deadline: seconds(cluster.stop_deadline),
        secret,
    }
}
