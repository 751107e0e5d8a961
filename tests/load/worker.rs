//! One simulated worker: its stream, and what it says and does on it, as `worker/src/session` and
//! `worker/src/train/trainer.rs` do. It has no data, no network and no ring but the one in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use relabel_config::Config;
use relabel_core::validation::Part;
use relabel_core::{
    Dataset, DutyId, Formation, FromWorker, Hello, Pace, Position, Rank, Standing, StepReport, ToWorker,
    Written,
};
use relabel_proto::security::{Access, Unreached};
use relabel_proto::v1::session_client::SessionClient;
use relabel_proto::{MAX_MESSAGE, Told, v1};
use tokio::sync::{OnceCell, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::figures::Times;
use crate::ring::{Ring, Rings, Stage};
use crate::stream::Stream;

/// As a real worker reports: the first rank, and the others.
const REPORT_EVERY: Duration = Duration::from_millis(50);
const OTHERS_REPORT_EVERY: Duration = Duration::from_secs(1);

/// Reports that may wait for the network; a real worker has more room, and needs it as little.
const OUTBOX: usize = 64;

/// Pause before a worker whose stream broke comes back; a real one begins with 0.1 or 1 s.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a coordinator may not answer before its connection counts as dead, as with a real worker.
const DEAD_AFTER: Duration = Duration::from_secs(4);

/// What all workers share.
pub struct Crew {
    pub access: Access,
    pub dataset: Dataset,
    pub rings: Arc<Rings>,
    /// So many open a stream at once.
    pub opening: Semaphore,
    /// The run's name and options, read once by the first to be welcomed.
    pub run: OnceCell<(String, Config)>,
    pub indexed: AtomicU32,
    /// Streams that ended although the worker was well.
    pub put_out: AtomicU64,
    /// The run is being ended, and with it every stream.
    pub stopping: AtomicBool,
    pub messages: AtomicU64,
    pub lag: std::sync::Mutex<Arc<Times>>,
}

/// What happens to a worker.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    /// Its connection breaks off, as a killed process's does.
    Die,
    /// It is told to leave, as by SIGTERM.
    Leave,
}

/// How a stream ended.
enum End {
    /// The run is over, or goes on without this worker.
    Over,
    Died,
    Broken(String),
}

pub struct Worker {
    pub crew: Arc<Crew>,
    pub hello: Hello,
    pub fate: mpsc::Receiver<Fate>,
    held: Option<Position>,
    place: Option<Place>,
    leaving: bool,
    duties: Vec<(DutyId, Position)>,
}

/// Its place in a ring.
struct Place {
    ring: Arc<Ring>,
    rank: Rank,
    stage: watch::Receiver<Stage>,
    /// It is a part of it still.
    in_ring: bool,
    /// What the formation's state is the state of.
    position: Position,
    /// When to report progress next.
    report_at: Option<Instant>,
    /// The first step that has not been reported.
    unreported: Position,
}

impl Worker {
    pub fn new(crew: Arc<Crew>, hello: Hello, fate: mpsc::Receiver<Fate>) -> Self {
        Self { crew, hello, fate, held: None, place: None, leaving: false, duties: Vec::new() }
    }

    /// Lives until the run is over or its fate comes.
    pub async fn run(mut self) {
        loop {
            match self.session().await {
                Ok(End::Over | End::Died) => break,
                _ if self.crew.stopping.load(Ordering::Relaxed) => break,
                Ok(End::Broken(reason)) => self.put_out(&reason),
                Err(status) => self.put_out(status.message()),
            }
            // A real one would train on; but its peers are told at once that it was put out.
            if let Some(place) = self.place.as_ref().filter(|place| place.in_ring) {
                place.ring.breaks(Some(place.rank));
            }
            tokio::time::sleep(PAUSE).await;
        }
        if let Some(place) = self.place.as_ref().filter(|place| place.in_ring) {
            place.ring.breaks(Some(place.rank));
        }
    }

    fn put_out(&self, reason: &str) {
        if self.crew.put_out.fetch_add(1, Ordering::Relaxed) < 5 {
            eprintln!("a stream broke although its worker was well: {reason}");
        }
    }

    /// One stream, from its Hello to its end.
    async fn session(&mut self) -> Result<End, Status> {
        let crew = Arc::clone(&self.crew);
        let opening = crew.opening.acquire().await.map_err(|_| Status::internal("closed"))?;
        let unavailable = |error: Unreached| Status::unavailable(error.to_string());
        let channel = self.crew.access.connect(DEAD_AFTER, None).await.map_err(unavailable)?;
        let mut client = SessionClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let (wire, outgoing) = mpsc::channel(OUTBOX);
        let hello = Hello { standing: self.standing(), ..self.hello.clone() };
        let _ = wire.try_send(hello.into());
        let mut inbound =
            client.join(self.crew.access.request(ReceiverStream::new(outgoing))).await?.into_inner();
        let heartbeat = self.welcomed(&mut inbound).await?;
        drop(opening);
        let mut stream = Stream::new(wire, Arc::clone(&self.crew));
        stream.say(FromWorker::Indexed(self.crew.dataset.clone()))?;
        self.crew.indexed.fetch_add(1, Ordering::Relaxed);
        self.follow(&mut inbound, &mut stream, heartbeat).await
    }

    /// Takes its seat, and the time between two heartbeats. What it was welcomed with is not kept.
    async fn welcomed(
        &mut self,
        inbound: &mut Streaming<v1::CoordinatorMessage>,
    ) -> Result<Duration, Status> {
        let first = inbound.message().await?.ok_or_else(|| Status::unavailable("it ended the stream"))?;
        let Ok(Told::Welcome(welcome)) = relabel_proto::to_worker(first) else {
            return Err(Status::internal("the first message was no welcome"));
        };
        self.hello.rank = Some(welcome.rank);
        let read = || async {
            let config = serde_json::from_str::<Config>(&welcome.config)
                .map_err(|error| Status::internal(format!("its options make no sense: {error}")))?;
            Ok::<_, Status>((welcome.run_id.clone(), config))
        };
        let (_, config) = self.crew.run.get_or_try_init(read).await?;
        Ok(Duration::from_secs_f64(config.cluster.heartbeat))
    }

    fn standing(&self) -> Option<Standing> {
        let place = self.place.as_ref()?;
        Some(Standing {
            run_id: self.crew.run.get()?.0.clone(),
            generation: place.ring.generation,
            rank: place.rank,
            world: place.ring.world,
            in_ring: false,
            held: self.held,
        })
    }

    /// Follows orders, and says what there is to be said, until the stream ends.
    async fn follow(
        &mut self,
        inbound: &mut Streaming<v1::CoordinatorMessage>,
        stream: &mut Stream,
        heartbeat: Duration,
    ) -> Result<End, Status> {
        let mut beat = tokio::time::interval(heartbeat);
        loop {
            let report_at = self.place.as_ref().and_then(|place| place.report_at);
            tokio::select! {
                message = inbound.message() => {
                    let Some(message) = message? else { return Ok(End::Broken("it closed the stream".into())) };
                    self.crew.messages.fetch_add(1, Ordering::Relaxed);
                    let Ok(Told::Order(order)) = relabel_proto::to_worker(message) else {
                        return Err(Status::internal("an order that makes no sense"));
                    };
                    if self.obey(order, stream)? {
                        return Ok(End::Over);
                    }
                }
                due = beat.tick() => {
                    stream.late(due.into_std());
                    stream.say(FromWorker::Heartbeat)?;
                }
                () = at(report_at) => {
                    report_at.inspect(|due| stream.late(*due));
                    self.report(stream)?;
                }
                stage = changed(&mut self.place) => self.turned(stage, stream)?,
                fate = self.fate.recv() => match fate {
                    Some(Fate::Leave) => {
                        self.leaving = true;
                        stream.say(FromWorker::Leaving { reason: "SIGTERM".into() })?;
                        // The next step ends the generation, whether or not the coordinator has said so yet.
                        if let Some(place) = &self.place {
                            place.ring.end();
                        }
                    }
                    Some(Fate::Die) | None => return Ok(End::Died),
                },
            }
        }
    }

    /// Does as it is told; whether it is to exit.
    fn obey(&mut self, order: ToWorker, stream: &mut Stream) -> Result<bool, Status> {
        match order {
            ToWorker::Form(formation) => self.form(&formation),
            ToWorker::Train { generation, epoch, first_step } => {
                let first = Position { epoch, step: first_step };
                if let Some(place) = self.place_in(generation) {
                    place.unreported = first;
                    place.ring.train(first);
                }
            }
            ToWorker::Validate { generation, epoch, range } => {
                let part = Part { epoch, top1: 0, top5: range.end - range.start, loss_sum: 1.0, range };
                stream.say(FromWorker::Validated { generation, part })?;
            }
            ToWorker::Checkpoint { duty, at, .. } => {
                self.duties.push((duty, at));
                self.do_duties(stream)?;
            }
            ToWorker::Dissolve { generation, reason } => {
                if let Some(place) = self.place.as_ref().filter(|place| place.ring.generation <= generation) {
                    place.ring.breaks(None);
                    self.leave(&reason, None, stream)?;
                }
            }
            ToWorker::Drain { generation, reason } => {
                let Some(place) = self.place_in(generation) else { return Ok(false) };
                place.ring.end();
                if !matches!(place.ring.stage(), Stage::Training { .. } | Stage::Ending { .. }) {
                    self.leave(&reason, None, stream)?;
                }
            }
            ToWorker::NcclId { .. } | ToWorker::Remove { .. } => {}
            ToWorker::Release { .. } | ToWorker::Finish { .. } => return Ok(true),
        }
        Ok(false)
    }

    fn place_in(&mut self, generation: relabel_core::Generation) -> Option<&mut Place> {
        self.place.as_mut().filter(|place| place.ring.generation == generation)
    }

    fn form(&mut self, formation: &Formation) {
        let ring = self.crew.rings.of(formation.generation, formation.world);
        let (rank, position) = (formation.rank, formation.position);
        let stage = ring.watch();
        ring.come();
        let mut place =
            Place { ring, rank, stage, in_ring: true, position, report_at: None, unreported: position };
        // It may stand already.
        place.stage.mark_changed();
        self.place = Some(place);
    }

    /// The ring has come to another stage.
    fn turned(&mut self, stage: Stage, stream: &mut Stream) -> Result<(), Status> {
        let Some(place) = self.place.as_mut().filter(|place| place.in_ring) else { return Ok(()) };
        match stage {
            Stage::Forming => {}
            Stage::Standing => {
                let (generation, held) = (place.ring.generation, place.position);
                self.held = Some(held);
                stream.say(FromWorker::Ready { generation, held, epoch_loss: Some(2.0) })?;
            }
            Stage::Training { since, .. } => {
                place.report_at = Some(since + place.report_every(&self.crew.rings))
            }
            Stage::Ending { at, .. } => place.report_at = Some(at),
            Stage::Broken { lost } => {
                // Its neighbours notice at once; the others are told by the coordinator.
                let world = place.ring.world;
                let beside = |lost: Rank| {
                    lost != place.rank
                        && [(lost.0 + 1) % world, (lost.0 + world - 1) % world].contains(&place.rank.0)
                };
                place.report_at = None;
                if let Some(lost) = lost.filter(|lost| beside(*lost)) {
                    self.leave(&format!("rank {lost} closed its connection"), Some(lost), stream)?;
                }
            }
        }
        Ok(())
    }

    /// Says how far it is; at the end of a ring, that it has left it.
    fn report(&mut self, stream: &mut Stream) -> Result<(), Status> {
        let Some(place) = self.place.as_mut().filter(|place| place.in_ring) else { return Ok(()) };
        if let Stage::Ending { at, .. } = place.ring.stage() {
            if at > Instant::now() {
                place.report_at = Some(at);
                return Ok(());
            }
            return self.leave("the generation ends in good order", None, stream);
        }
        let Some(position) = place.ring.position() else { return Ok(()) };
        self.held = Some(position);
        let rings = &self.crew.rings;
        let done = position.step - place.unreported.step.min(position.step);
        let steps = match place.rank.0 {
            0 => (0..done)
                .map(|step| step_report(place.ring.after(place.unreported, step), rings.step))
                .collect(),
            _ => Vec::new(),
        };
        place.unreported = position;
        // Nothing is told apart more finely than by rank.
        let own = rings.step.mul_f64(0.6 + 0.05 * f64::from(place.rank.0 % 3));
        let taken = u32::try_from(done).unwrap_or(u32::MAX);
        let pace = Pace {
            steps: taken,
            compute: own * taken,
            data: Duration::ZERO,
            peers: rings.step.saturating_sub(own) * taken,
        };
        let every = place.report_every(rings);
        let last = position.step == rings.steps_per_epoch;
        place.report_at = place.report_at.map(|at| at + every).filter(|_| !last);
        let generation = place.ring.generation;
        stream.say(FromWorker::Progress { generation, position, steps, pace })?;
        self.do_duties(stream)
    }

    /// Leaves the ring and says what it holds.
    fn leave(&mut self, reason: &str, blamed: Option<Rank>, stream: &mut Stream) -> Result<(), Status> {
        let Some(place) = &mut self.place else { return Ok(()) };
        (place.in_ring, place.report_at) = (false, None);
        self.held = place.ring.position().or(self.held);
        let (generation, held, steps, reason) = (place.ring.generation, self.held, Vec::new(), reason.into());
        stream.say(FromWorker::Held { generation, held, steps, reason, blamed })?;
        self.do_duties(stream)
    }

    /// Says that the checkpoints that are due are written; there is nothing to write.
    fn do_duties(&mut self, stream: &mut Stream) -> Result<(), Status> {
        let Some(held) = self.held else { return Ok(()) };
        let end = self.crew.rings.steps_per_epoch;
        let turns = |at: Position| held.step == end && at == Position { epoch: held.epoch + 1, step: 0 };
        for (duty, at) in self.duties.extract_if(.., |(_, at)| held >= *at || turns(*at)) {
            let position = if held >= at { held } else { at };
            let file = format!("load-e{}-s{}.safetensors", position.epoch, position.step);
            let written = Written { file, bytes: 0, blake3: "0".repeat(64), position };
            stream.say(FromWorker::CheckpointWritten { duty, written })?;
        }
        Ok(())
    }
}

impl Place {
    /// Reports come between two steps.
    fn report_every(&self, rings: &Rings) -> Duration {
        let least = if self.rank.0 == 0 { REPORT_EVERY } else { OTHERS_REPORT_EVERY };
        let steps = (least.as_secs_f64() / rings.step.as_secs_f64()).ceil().max(1.0);
        rings.step.mul_f64(steps)
    }
}

fn step_report(position: Position, duration: Duration) -> StepReport {
    let done = position.step + 1;
    StepReport {
        position,
        loss: 2.0,
        learning_rate: 0.1,
        samples: 512,
        skipped: 0,
        duration,
        data_wait: Duration::ZERO,
        epoch_loss_sum: 1024.0 * done as f64,
        epoch_samples: 512 * done,
        loss_scale: None,
    }
}

pub async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn changed(place: &mut Option<Place>) -> Stage {
    if let Some(place) = place
        && place.in_ring
        && place.stage.changed().await.is_ok()
    {
        return *place.stage.borrow_and_update();
    }
    std::future::pending().await
}
