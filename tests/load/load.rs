//! One run: a coordinator, its workers, and what is done with them.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use relabel_core::{Dataset, Generation, Hello};
use tokio::sync::{OnceCell, Semaphore, mpsc};

use crate::Cli;
use crate::coordinator::{Coordinator, Operator, memory};
use crate::figures::{self, Churn, Crowd, Figures, Stretch, Times};
use crate::ring::Rings;
use crate::worker::{self, Crew, Fate, Worker};

/// Connections that are being opened at once.
const OPENING: usize = 128;

/// Between two probes of the way through the driver's queue.
const PROBE_EVERY: Duration = Duration::from_millis(50);

/// How often the status of all workers is asked for, at most, and for how long.
const STATUSES: u64 = 100;
const ASKING: Duration = Duration::from_secs(10);

/// How long anything may take that is waited for.
const GUARD: Duration = Duration::from_secs(300);

/// How long a worker that left or died stays away.
const AWAY: Duration = Duration::from_secs(2);

/// Multiples of it are scattered over the ring, and the same in every run.
const SCATTER: u32 = 2_654_435_761;

/// One coordinator and its workers.
pub struct Load {
    /// Removed at the end.
    _folder: tempfile::TempDir,
    coordinator: Coordinator,
    crew: Arc<Crew>,
    /// The way to each worker that lives.
    fates: Vec<mpsc::Sender<Fate>>,
    born: u32,
    latency: Arc<Mutex<Arc<Times>>>,
    probe: tokio::task::JoinHandle<()>,
    workers: u32,
}

/// What a stretch of time began with.
struct Mark {
    began: Instant,
    cpu: f64,
    messages: u64,
    latency: Arc<Times>,
    lag: Arc<Times>,
}

impl Load {
    /// Starts the coordinator, without workers yet.
    pub async fn start(cli: &Cli, program: &Path, workers: u32) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let batch = workers.saturating_mul(4);
        let least = (workers / 2).max(1);
        let mut args: Vec<String> = [
            ("workers", workers.to_string()),
            ("min-workers", least.to_string()),
            ("data.data_path", "simulated".into()),
            ("data.relabel.use", "false".into()),
            ("optim.batch_size", batch.to_string()),
            ("optim.epochs", "2".into()),
            ("optim.warmup.epochs", "0".into()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [format!("--{name}"), value])
        .collect();
        args.extend(cli.options.iter().cloned());
        let coordinator = Coordinator::start(program, folder.path(), &args).await?;
        let dataset = Dataset {
            train_samples: u64::from(batch) * cli.steps_per_epoch,
            train_fingerprint: "a".repeat(64),
            val_samples: 50_000,
            val_fingerprint: "b".repeat(64),
            classes: 1000,
        };
        let crew = Arc::new(Crew {
            access: coordinator.access_of_workers()?,
            dataset,
            rings: Rings::new(Duration::from_secs_f64(cli.step), cli.steps_per_epoch),
            opening: Semaphore::new(OPENING),
            run: OnceCell::new(),
            indexed: 0.into(),
            put_out: 0.into(),
            stopping: false.into(),
            messages: 0.into(),
            lag: Mutex::default(),
        });
        let latency = Arc::new(Mutex::new(Arc::new(Times::default())));
        let probe = tokio::spawn(probe(coordinator.operator.clone(), Arc::clone(&latency)));
        Ok(Self { _folder: folder, coordinator, crew, fates: Vec::new(), born: 0, latency, probe, workers })
    }

    /// Brings the workers and does with them all that is measured.
    pub async fn measure(mut self, cli: &Cli) -> Result<Figures> {
        let workers = self.workers;
        let mut figures = Figures { workers, ..Figures::default() };

        let mark = self.mark()?;
        for _ in 0..workers {
            self.bear();
        }
        self.until("all workers are seated", |load| load.crew.indexed.load(Ordering::Relaxed) >= workers)
            .await?;
        figures.join = self.since(&mark)?;
        let mark = self.mark()?;
        self.until_trained(Generation(1), workers).await?;
        let form = self.since(&mark)?;
        (figures.form, figures.form_cpu) = (form.seconds, form.cpu);
        figures.heartbeat = self.crew.run.get().map_or(0.0, |(_, config)| config.cluster.heartbeat);

        // What the beginning has left behind is over.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mark = self.mark()?;
        tokio::time::sleep(Duration::from_secs_f64(cli.steady)).await;
        figures.steady = self.since(&mark)?;
        (figures.resident, _) = memory(&self.coordinator.process())?;
        (figures.generator, _) = memory("self")?;
        let whole = Times::default();
        let mut status = self.coordinator.operator.whole_status().await?;
        let asking = Instant::now();
        while whole.count() < STATUSES && asking.elapsed() < ASKING {
            let began = Instant::now();
            status = self.coordinator.operator.whole_status().await?;
            whole.note(began.elapsed());
        }
        (figures.status_p50, figures.status_p99) = (whole.percentile(0.5), whole.percentile(0.99));
        if status.workers.len() != workers as usize || status.training != workers {
            bail!("{} workers are seated and {} train, of {workers}", status.workers.len(), status.training);
        }

        let mut cpu = Vec::new();
        for loss in 0..cli.losses {
            let before = self.newest();
            let mark = self.mark()?;
            self.doom(loss * workers / cli.losses.max(1), Fate::Die).await;
            self.until_trained(Generation(before.0 + 1), workers - 1).await?;
            let stretch = self.since(&mark)?;
            figures.losses.push(stretch.seconds);
            cpu.push(stretch.cpu);
            self.bear();
            self.until_trained(Generation(before.0 + 2), workers).await?;
            figures.admissions.extend(self.crew.rings.trained().last().map(|t| t.paused.as_secs_f64()));
        }
        figures.loss_cpu = figures::median(&cpu);
        let crowd = workers * cli.crowd / 100;
        if crowd > 0 {
            figures.crowd = Some(self.crowd(crowd).await?);
        }
        if cli.churn > 0.0 {
            figures.churn = Some(self.churn(cli).await?);
        }

        (_, figures.resident_most) = memory(&self.coordinator.process())?;
        figures.put_out = self.crew.put_out.load(Ordering::Relaxed);
        self.crew.stopping.store(true, Ordering::Relaxed);
        self.probe.abort();
        let (stop, status) = self.coordinator.stop(GUARD).await?;
        (figures.stop, figures.exit) = (stop.as_secs_f64(), status.code());
        Ok(figures)
    }

    /// So many die together, and others come in their place.
    async fn crowd(&mut self, lost: u32) -> Result<Crowd> {
        let before = self.newest();
        let mark = self.mark()?;
        for number in 0..lost {
            self.doom(number.wrapping_mul(SCATTER), Fate::Die).await;
        }
        self.until_trained(Generation(before.0 + 1), self.workers - lost).await?;
        let left = self.since(&mark)?;
        let mark = self.mark()?;
        for _ in 0..lost {
            self.bear();
        }
        self.until_trained(Generation(before.0 + 2), self.workers).await?;
        let back = self.since(&mark)?;
        Ok(Crowd { lost, loss: left.seconds, loss_cpu: left.cpu, back: back.seconds })
    }

    /// Workers leave and come: every other one dies, the others leave in good order.
    async fn churn(&mut self, cli: &Cli) -> Result<Churn> {
        let mut churn = Churn::default();
        let every = 60.0 / (f64::from(self.workers) * cli.churn_percent / 100.0);
        let (generations, steps) = (self.crew.rings.trained().len(), self.crew.rings.steps());
        let mark = self.mark()?;
        let mut returns = VecDeque::new();
        let mut turns = tokio::time::interval(Duration::from_secs_f64(every));
        let end = mark.began + Duration::from_secs_f64(cli.churn);
        loop {
            let back = returns.front().copied();
            tokio::select! {
                () = tokio::time::sleep_until(end.into()) => break,
                _ = turns.tick() => {
                    let victim = (churn.died + churn.left).wrapping_mul(SCATTER);
                    let fate = if churn.died > churn.left { Fate::Leave } else { Fate::Die };
                    match fate {
                        Fate::Die => churn.died += 1,
                        Fate::Leave => churn.left += 1,
                    }
                    self.doom(victim, fate).await;
                    returns.push_back(Instant::now() + AWAY);
                }
                () = worker::at(back) => {
                    returns.pop_front();
                    self.bear();
                    churn.came += 1;
                }
            }
        }
        churn.stretch = self.since(&mark)?;
        let formed = &self.crew.rings.trained()[generations..];
        churn.generations = formed.len();
        churn.pause = figures::median(&formed.iter().map(|t| t.paused.as_secs_f64()).collect::<Vec<_>>());
        churn.steps = self.crew.rings.steps() - steps;
        churn.training = (churn.steps as f64 * cli.step / churn.stretch.seconds).min(1.0);
        Ok(churn)
    }

    /// Starts one more worker.
    fn bear(&mut self) {
        let number = self.born;
        self.born += 1;
        let [_, a, b, c] = number.to_be_bytes();
        let hello = Hello {
            rank: None,
            host: format!("node{:05}", number / 8),
            pid: 1000 + number,
            device: format!("cuda:{}", number % 8),
            nccl: None,
            ring_address: format!("10.{a}.{b}.{c}:40000"),
            instance: u64::from(number) + 1,
            standing: None,
        };
        let (sender, fate) = mpsc::channel(1);
        self.fates.push(sender);
        tokio::spawn(Worker::new(Arc::clone(&self.crew), hello, fate).run());
    }

    /// Seals the fate of a worker, of those alive the one that the number stands for.
    async fn doom(&mut self, number: u32, fate: Fate) {
        let place = number as usize % self.fates.len().max(1);
        // One that has just ended by itself has had its fate.
        let _ = self.fates.swap_remove(place).send(fate).await;
    }

    fn newest(&self) -> Generation {
        self.crew.rings.trained().last().map_or(Generation(0), |trained| trained.generation)
    }

    /// Waits until a generation, or a later one, of so many workers trains.
    async fn until_trained(&self, generation: Generation, world: u32) -> Result<()> {
        let mut newest = self.crew.rings.newest();
        let words = format!("generation {generation} of {world} workers trains");
        let trains = async {
            while !self.crew.rings.trained().iter().any(|t| t.generation >= generation && t.world == world) {
                newest.changed().await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        match tokio::time::timeout(GUARD, trains).await {
            Ok(trains) => trains,
            Err(_) => bail!("not within {GUARD:?}: {words}\n{}", self.coordinator.last_lines()),
        }
    }

    async fn until(&self, words: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let began = Instant::now();
        while !done(self) {
            if began.elapsed() > GUARD {
                bail!("not within {GUARD:?}: {words}\n{}", self.coordinator.last_lines());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Begins a stretch of time, with new counts of latencies.
    fn mark(&self) -> Result<Mark> {
        let fresh = |times: &Mutex<Arc<Times>>| {
            let new = Arc::new(Times::default());
            *times.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
            new
        };
        Ok(Mark {
            began: Instant::now(),
            cpu: self.coordinator.cpu()?,
            messages: self.crew.messages.load(Ordering::Relaxed),
            latency: fresh(&self.latency),
            lag: fresh(&self.crew.lag),
        })
    }

    fn since(&self, mark: &Mark) -> Result<Stretch> {
        Ok(Stretch {
            seconds: mark.began.elapsed().as_secs_f64(),
            cpu: self.coordinator.cpu()? - mark.cpu,
            messages: self.crew.messages.load(Ordering::Relaxed) - mark.messages,
            latency_p50: mark.latency.percentile(0.5),
            latency_p99: mark.latency.percentile(0.99),
            probes: mark.latency.count(),
            lag_p99: mark.lag.percentile(0.99),
        })
    }
}

/// Asks for a status without workers again and again, whether or not the last answer has come: it takes the way of a
/// heartbeat, through the server and the driver's queue, and back.
async fn probe(operator: Operator, latency: Arc<Mutex<Arc<Times>>>) {
    let mut every = tokio::time::interval(PROBE_EVERY);
    loop {
        let due = every.tick().await.into_std();
        let (operator, latency) = (operator.clone(), Arc::clone(&latency));
        tokio::spawn(async move {
            let times = Arc::clone(&latency.lock().unwrap_or_else(PoisonError::into_inner));
            if operator.status(0, Some(0)).await.is_ok() {
                times.note(due.elapsed());
            }
        });
    }
}
