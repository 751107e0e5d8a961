//! The driver's queue, and the clock that it looks at between what others say.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};

/// What there is to be seen to.
#[derive(Debug, PartialEq)]
pub enum Next<T> {
    /// Somebody said something; none where nobody is left who could.
    Input(Option<T>),
    /// It is time to look at the clock.
    Tick,
}

/// Inputs in their order, and a tick every so often. What was said before a look at the clock is heard before it, so
/// that a worker whose word waits in a long queue is not taken for silent; and no tick waits for what is said after it
/// came due.
pub struct Inbox<T> {
    inputs: mpsc::Receiver<T>,
    tick: Interval,
    /// Inputs that were in the queue when a tick came due, and are taken before it.
    before_tick: Option<usize>,
}

impl<T> Inbox<T> {
    pub fn new(inputs: mpsc::Receiver<T>, every: Duration) -> Self {
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { inputs, tick, before_tick: None }
    }

    /// Waits for the next of them. Nothing is lost if that is given up.
    pub async fn next(&mut self) -> Next<T> {
        loop {
            match self.before_tick {
                Some(0) => {
                    self.before_tick = None;
                    return Next::Tick;
                }
                Some(inputs) => {
                    let input = self.inputs.recv().await;
                    self.before_tick = Some(inputs - 1);
                    return Next::Input(input);
                }
                None => tokio::select! {
                    biased;
                    _ = self.tick.tick() => self.before_tick = Some(self.inputs.len()),
                    input = self.inputs.recv() => return Next::Input(input),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const EVERY: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn what_was_said_before_a_tick_is_heard_before_it_and_what_was_said_after_it_is_not_waited_for() {
        let (sender, inputs) = mpsc::channel(64);
        let mut inbox = Inbox::new(inputs, EVERY);
        for round in 0..20 {
            for said in 0..10 {
                sender.try_send(said).unwrap();
            }
            // The tick comes due while the inputs wait.
            tokio::time::sleep(2 * EVERY).await;
            for said in 0..10 {
                assert_eq!(inbox.next().await, Next::Input(Some(said)), "round {round}");
            }
            // Somebody who never stops talking does not stop the clock.
            let mut heard = 0;
            while inbox.next().await != Next::Tick {
                sender.try_send(0).unwrap();
                heard += 1;
                assert!(heard < 10_000, "no tick");
                tokio::task::yield_now().await;
            }
            while inbox.inputs.try_recv().is_ok() {}
        }
    }
}
