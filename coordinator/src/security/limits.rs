//! How much anybody may have: connections, streams, header bytes, messages a second. Sized for 10,000 workers, each
//! with one connection, one stream and some ten messages a second.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::time::Instant;
use tonic::{Status, Streaming};

/// Most connections at a time, unless told otherwise.
pub const CONNECTIONS: u32 = 16_384;

/// Streams that are open at a time on one connection; those beyond wait. A worker opens one.
pub(super) const STREAMS: u32 = 128;

/// Header bytes of one call; a worker sends some hundred.
pub(super) const HEADER_BYTES: u32 = 16 * 1024;

/// How long a connection may take until it has shown a valid token: for TLS, HTTP/2 and its first call together.
pub(super) const ADMISSION: Duration = Duration::from_secs(10);

/// Files that are left for everything but connections.
const OTHER_FILES: u64 = 256;

/// Messages a second that one stream may send on and on, and how many at once before that counts.
const SUSTAINED: f64 = 200.0;
const BURST: f64 = 2000.0;

/// Connections that this process can have: `wanted`, or fewer where it may not open so many files. Raises its limit
/// of open files as far as it may.
pub(super) fn connections(wanted: u32) -> usize {
    let needed = u64::from(wanted) + OTHER_FILES;
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(needed, |(soft, hard)| {
        let raised = needed.clamp(soft, hard.max(soft));
        match raised > soft && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() {
            true => raised,
            false => soft,
        }
    });
    usize::try_from(u64::from(wanted).min(files.saturating_sub(OTHER_FILES).max(1))).unwrap_or(usize::MAX)
}

/// When to ask a connection for a sign of life, and how long to wait for it. The core is the first to know a silent
/// worker for lost, after `dead_after`; the connection that it had goes half of that later, and so does one that has no
/// worker. Bounded to what makes sense of any number.
pub(super) fn pings(dead_after: Duration) -> (Duration, Duration) {
    let wait = dead_after.clamp(Duration::from_millis(100), Duration::from_secs(3600));
    (wait / 2, wait)
}

/// A stream of messages that is read no faster than it may send. Nothing is lost: what is not read fills the window of
/// HTTP/2, and then the sender waits.
pub struct Paced<T> {
    stream: Streaming<T>,
    bucket: Bucket,
}

impl<T> Paced<T> {
    pub fn new(stream: Streaming<T>) -> Self {
        Self { stream, bucket: Bucket::full(Instant::now()) }
    }

    /// The next message, as [`Streaming::message`] has it.
    ///
    /// # Errors
    /// The stream broke, or a message could not be decoded.
    pub async fn message(&mut self) -> Result<Option<T>, Status> {
        let wait = self.bucket.take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        self.stream.message().await
    }
}

/// A token bucket: [`BURST`] permits at most, refilled at [`SUSTAINED`] a second.
#[derive(Debug)]
struct Bucket {
    /// May be negative: then that many are owed.
    permits: f64,
    filled: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { permits: BURST, filled: now }
    }

    /// Takes a permit, and says how long to wait until it is there.
    fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.permits = (self.permits + passed * SUSTAINED).min(BURST) - 1.0;
        self.filled = now;
        Duration::from_secs_f64((-self.permits).max(0.0) / SUSTAINED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time until `messages` have been read by one who waits as he is told, and sends one every `every`.
    fn read(messages: u32, every: Duration) -> Duration {
        let began = Instant::now();
        let (mut bucket, mut now) = (Bucket::full(began), began);
        for _ in 0..messages {
            now += bucket.take(now) + every;
        }
        now - began
    }

    #[test]
    fn a_burst_is_free_and_a_flood_is_slowed_to_the_rate() {
        assert_eq!(read(BURST as u32, Duration::ZERO), Duration::ZERO);
        let flood = read(BURST as u32 + 1000, Duration::ZERO).as_secs_f64();
        assert!((flood - 5.0).abs() < 0.01, "1000 beyond the burst at 200/s took {flood} s");
        let steady = read(10_000, Duration::from_millis(10));
        assert_eq!(steady, Duration::from_secs(100), "100/s are never slowed");
    }

    #[test]
    fn a_pause_refills_no_more_than_a_burst() {
        let began = Instant::now();
        let mut bucket = Bucket::full(began);
        for _ in 0..BURST as u32 {
            assert_eq!(bucket.take(began), Duration::ZERO);
        }
        assert!(bucket.take(began) > Duration::ZERO);
        let later = began + Duration::from_secs(3600);
        for _ in 0..BURST as u32 {
            assert_eq!(bucket.take(later), Duration::ZERO);
        }
        assert!(bucket.take(later) > Duration::ZERO);
    }

    #[test]
    fn more_connections_than_files_are_not_promised() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        assert_eq!(connections(1), 1);
        let most = connections(u32::MAX) as u64;
        assert!(most >= 1 && most <= hard.max(OTHER_FILES + 1), "{most} of {hard}");
    }

    #[test]
    fn pings_stay_within_what_makes_sense() {
        let seconds = Duration::from_secs_f64;
        assert_eq!(pings(seconds(4.0)), (seconds(2.0), seconds(4.0)));
        assert_eq!(pings(Duration::ZERO), (seconds(0.05), seconds(0.1)));
        assert_eq!(pings(Duration::MAX), (seconds(1800.0), seconds(3600.0)));
    }
}
