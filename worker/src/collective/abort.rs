//! Ending a collective from another thread: the session does it when the coordinator ends the generation.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::CollectiveError;

/// What a collective wants done at the moment it is aborted, to wake whatever blocks in it.
type Hook = Box<dyn FnOnce() + Send>;

/// Aborts one collective, the forming of it included. Made before the collective, so that a generation
/// can be given up while its ranks are still looking for each other; clones abort the same one.
#[derive(Clone, Default)]
pub struct AbortHandle(Arc<Inner>);

#[derive(Default)]
struct Inner {
    reason: OnceLock<String>,
    hooks: Mutex<Vec<Hook>>,
}

impl AbortHandle {
    /// A handle that nothing listens to yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every blocked and every later call return [`CollectiveError::Aborted`] with `reason`, a few
    /// words for the log. Does not block. The first reason stays; later calls do nothing.
    pub fn abort(&self, reason: impl Into<String>) {
        if self.0.reason.set(reason.into()).is_err() {
            return;
        }
        // Taken out first: a hook runs without the lock.
        let hooks = std::mem::take(&mut *self.hooks());
        for hook in hooks {
            hook();
        }
    }

    /// Why it was aborted, or none.
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.get().map(String::as_str)
    }

    /// The error of a call that finds itself aborted.
    pub fn check(&self) -> Result<(), CollectiveError> {
        match self.reason() {
            Some(reason) => Err(CollectiveError::Aborted { reason: reason.to_owned() }),
            None => Ok(()),
        }
    }

    /// Runs `hook` once when this is aborted; at once if it already is. For implementations of
    /// [`Collective`](super::Collective) whose calls block where they cannot see [`reason`](Self::reason).
    pub fn on_abort(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = self.hooks();
        // Looked at under the lock that `abort` takes the hooks out with: an abort that comes now either
        // is seen here or sees the hook.
        if self.reason().is_some() {
            drop(hooks);
            hook();
        } else {
            hooks.push(Box::new(hook));
        }
    }

    fn hooks(&self) -> MutexGuard<'_, Vec<Hook>> {
        // A hook never runs under the lock, so a poisoned list is still a whole one.
        self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("reason", &self.reason()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn the_first_reason_stays_and_each_hook_runs_once() {
        let handle = AbortHandle::new();
        let runs = Arc::new(AtomicU32::new(0));
        let count = |runs: &Arc<AtomicU32>| {
            let runs = Arc::clone(runs);
            move || {
                runs.fetch_add(1, Ordering::SeqCst);
            }
        };
        handle.on_abort(count(&runs));
        assert!(handle.check().is_ok());
        assert_eq!(runs.load(Ordering::SeqCst), 0);

        handle.clone().abort("rank 3 was lost");
        handle.abort("too late");
        assert_eq!(handle.reason(), Some("rank 3 was lost"));
        assert_eq!(runs.load(Ordering::SeqCst), 1);

        handle.on_abort(count(&runs));
        assert_eq!(runs.load(Ordering::SeqCst), 2, "a hook that comes after the abort runs at once");
        assert!(
            matches!(handle.check(), Err(CollectiveError::Aborted { reason }) if reason == "rank 3 was lost")
        );
    }
}
