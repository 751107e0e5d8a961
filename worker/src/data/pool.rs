//! Ordered batches from threads that share the work sample by sample: the bottleneck is never one
//! slow batch, and memory is bounded by the number of batches that are open.
//!
//! A thread takes the next sample of the newest open batch, or opens the next batch if fewer than
//! `prefetch` are open; whoever finishes the last sample of a batch assembles it. The consumer takes
//! batches in their order, which makes room for the next. Knows nothing of images.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::DataError;

/// Ends a loader, which another thread may be waiting for, where this is dropped.
pub struct Closer(Box<dyn Fn() + Send>);

impl Drop for Closer {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// What a pool makes. Shared by all threads; a batch's and a sample's numbers count from 0.
pub(super) trait Work: Send + Sync + 'static {
    /// Buffers of one thread.
    type Scratch;
    type Sample: Send;
    type Batch: Send;

    fn batches(&self) -> u64;
    /// Samples in a batch, perhaps none.
    fn samples(&self, batch: u64) -> usize;
    fn scratch(&self) -> Self::Scratch;
    fn sample(
        &self,
        batch: u64,
        index: usize,
        scratch: &mut Self::Scratch,
    ) -> Result<Self::Sample, DataError>;
    /// Makes a batch of all its samples, in order, in the buffers of `spare` if there is one.
    fn assemble(&self, batch: u64, samples: Vec<Self::Sample>, spare: Option<Self::Batch>) -> Self::Batch;
    /// A name of the sample for a message.
    fn describe(&self, batch: u64, index: usize) -> String;
}

/// The threads and the consumer's end. Dropping it stops the threads, each after the sample in hand.
pub(super) struct Pool<W: Work> {
    shared: Arc<Shared<W>>,
    threads: Vec<JoinHandle<()>>,
    waited: Duration,
}

struct Shared<W: Work> {
    work: W,
    prefetch: usize,
    state: Mutex<State<W>>,
    /// There may be something to do, or nothing ever again.
    job: Condvar,
    /// A batch may have been finished.
    ready: Condvar,
}

struct State<W: Work> {
    /// Batches that are opened and not yet taken, the consumer's next one first.
    open: VecDeque<Open<W>>,
    /// Number of the first open batch.
    front: u64,
    spare: Vec<W::Batch>,
    /// The consumer is gone or has been given an error.
    closed: bool,
    /// A thread died outside of the work, which is caught: nothing may be waited for.
    broken: bool,
}

/// A batch in the making.
struct Open<W: Work> {
    /// Samples that have been given to a thread.
    begun: usize,
    /// Samples that are not finished.
    missing: usize,
    samples: Vec<Option<Result<W::Sample, DataError>>>,
    done: Option<Result<W::Batch, DataError>>,
}

enum Job {
    Sample(u64, usize),
    /// A batch without samples.
    Assemble(u64),
    Wait,
    Finished,
}

impl<W: Work> State<W> {
    fn next_job(&mut self, work: &W, prefetch: usize) -> Job {
        // A batch is opened when all before it have been given out, so only the newest has samples left.
        let newest = self.front + self.open.len() as u64;
        if let Some(open) = self.open.back_mut()
            && open.begun < open.samples.len()
        {
            open.begun += 1;
            return Job::Sample(newest - 1, open.begun - 1);
        }
        if newest == work.batches() {
            return Job::Finished;
        }
        if self.open.len() >= prefetch {
            return Job::Wait;
        }
        let samples = work.samples(newest);
        let waiting = (0..samples).map(|_| None).collect();
        self.open.push_back(Open { begun: samples.min(1), missing: samples, samples: waiting, done: None });
        if samples == 0 { Job::Assemble(newest) } else { Job::Sample(newest, 0) }
    }

    fn batch(&mut self, batch: u64) -> &mut Open<W> {
        // An open batch stays until it is done, and only the thread that makes it done asks for it.
        &mut self.open[(batch - self.front) as usize]
    }
}

impl<W: Work> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, State<W>> {
        // A thread that panics with the lock marks the state as broken, so poison tells nothing more.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut scratch = self.work.scratch();
        let mut state = self.lock();
        while !state.closed {
            match state.next_job(&self.work, self.prefetch) {
                Job::Finished => return,
                Job::Wait => state = self.job.wait(state).unwrap_or_else(PoisonError::into_inner),
                Job::Assemble(batch) => {
                    drop(state);
                    self.finish(batch, Vec::new());
                    state = self.lock();
                }
                Job::Sample(batch, index) => {
                    drop(state);
                    let sample = self.catch(
                        || self.work.describe(batch, index),
                        || self.work.sample(batch, index, &mut scratch),
                    );
                    if matches!(sample, Err(DataError::Panic { .. })) {
                        scratch = self.work.scratch();
                    }
                    state = self.lock();
                    let open = state.batch(batch);
                    open.samples[index] = Some(sample);
                    open.missing -= 1;
                    if open.missing == 0 {
                        let samples = std::mem::take(&mut open.samples);
                        drop(state);
                        self.finish(batch, samples);
                        state = self.lock();
                    }
                }
            }
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.job.notify_all();
        self.ready.notify_all();
    }

    /// Assembles a batch or, if samples of it failed, keeps the error of the first.
    fn finish(&self, batch: u64, samples: Vec<Option<Result<W::Sample, DataError>>>) {
        let spare = self.lock().spare.pop();
        let done = samples.into_iter().flatten().collect::<Result<Vec<_>, _>>().and_then(|samples| {
            self.catch(|| format!("batch {batch}"), || Ok(self.work.assemble(batch, samples, spare)))
        });
        self.lock().batch(batch).done = Some(done);
        self.ready.notify_all();
    }

    fn catch<T>(
        &self,
        what: impl Fn() -> String,
        work: impl FnOnce() -> Result<T, DataError>,
    ) -> Result<T, DataError> {
        // What a panic may leave half done is thrown away: the scratch is made anew, the run ends.
        panic::catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|panic| Err(DataError::Panic { what: what(), message: message(&*panic) }))
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_owned()).replace('\n', " ")
}

/// Tells the consumer if the thread that owns it dies.
struct Watch<W: Work>(Arc<Shared<W>>);

impl<W: Work> Drop for Watch<W> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.lock().broken = true;
            self.0.ready.notify_all();
        }
    }
}

impl<W: Work> Pool<W> {
    /// Starts `threads` threads on `work`, at most `prefetch` batches ahead of the consumer; both are
    /// taken as at least 1.
    pub(super) fn start(work: W, threads: usize, prefetch: usize) -> Result<Self, DataError> {
        let state =
            State { open: VecDeque::new(), front: 0, spare: Vec::new(), closed: false, broken: false };
        let shared = Arc::new(Shared {
            work,
            prefetch: prefetch.max(1),
            state: Mutex::new(state),
            job: Condvar::new(),
            ready: Condvar::new(),
        });
        let mut pool = Self { shared, threads: Vec::new(), waited: Duration::ZERO };
        for number in 0..threads.max(1) {
            let watch = Watch(Arc::clone(&pool.shared));
            let thread = thread::Builder::new()
                .name(format!("loader-{number}"))
                .spawn(move || watch.0.run())
                .map_err(|source| DataError::Thread { source })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// The next batch in order; none after the last one or an error.
    pub(super) fn next(&mut self) -> Option<Result<W::Batch, DataError>> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        if state.closed || state.front == shared.work.batches() {
            return None;
        }
        let asked = Instant::now();
        let done = loop {
            if state.closed {
                return None;
            }
            if let Some(done) = state.open.front_mut().and_then(|open| open.done.take()) {
                break done;
            }
            if state.broken {
                break Err(DataError::Panic { what: "a batch".into(), message: "a thread died".into() });
            }
            state = shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        self.waited += asked.elapsed();
        state.open.pop_front();
        state.front += 1;
        state.closed = done.is_err();
        drop(state);
        shared.job.notify_all();
        Some(done)
    }

    /// What closes the pool where it is dropped: `next` then has no more to give, also where it waits.
    pub(super) fn closer(&self) -> Closer {
        let shared = Arc::clone(&self.shared);
        Closer(Box::new(move || shared.close()))
    }

    /// Gives a batch's buffers back to be used again.
    pub(super) fn recycle(&self, batch: W::Batch) {
        let mut state = self.shared.lock();
        // More than are ever in use at once would only hold memory.
        if state.spare.len() < self.shared.prefetch {
            state.spare.push(batch);
        }
    }

    /// How long `next` has waited in all.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }
}

impl<W: Work> Drop for Pool<W> {
    fn drop(&mut self) {
        self.shared.close();
        for thread in self.threads.drain(..) {
            // A panic has been told by `next` as far as anyone asked.
            let _ = thread.join();
        }
    }
}
