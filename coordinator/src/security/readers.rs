//! Who may read the HTTP port, which asks for no token: a browser and Prometheus could not well show one.
//!
//! | `--http` | who reads |
//! |---|---|
//! | left out | on the loopback interface, processes of this one's user and of root |
//! | an address, be it one of loopback | whoever reaches it; a line in the log says so |
//!
//! A host name, a loss and a log line are nobody's business on a login node that many share. Who tunnels to the host
//! with ssh comes as the user that he is there.

use std::net::SocketAddr;

use super::caller;

/// Who may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Processes on this machine of the user that this one runs as, and of root.
    OwnUser,
    /// Whoever reaches the port.
    Everybody,
}

impl Readers {
    /// Whether the process at the end `peer` of a connection to `own` is one of them. One whose user cannot be told is
    /// not, and so neither is one that has begun to close the connection.
    pub async fn admit(self, peer: SocketAddr, own: SocketAddr) -> bool {
        match self {
            Self::Everybody => true,
            // The kernel's table is long where many sockets are open. A task that could not be run has told nothing.
            Self::OwnUser => {
                tokio::task::spawn_blocking(move || caller::is_own_user(peer, own)).await.unwrap_or(false)
            }
        }
    }

    /// What a process that is none of them is told by a port at `address`.
    pub fn refusal(address: SocketAddr) -> String {
        format!(
            "only the user who started this run, and root, may read this: to let every user of this machine, start \
             the coordinator with --http {address}\n"
        )
    }

    /// What is to be said once of a port at `address`.
    pub fn warning(self, address: SocketAddr) -> Option<String> {
        match (self, address.ip().to_canonical().is_loopback()) {
            (Self::OwnUser, _) => None,
            (Self::Everybody, true) => Some(format!(
                "every user of this machine can read the dashboard on {address}: leave --http out to keep it to yourself"
            )),
            (Self::Everybody, false) => Some(format!(
                "whoever reaches {address} can read the dashboard: keep it on a private network"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_what_is_open_to_others_is_warned_of() {
        let line = |readers: Readers, address: &str| readers.warning(address.parse().unwrap());
        assert_eq!(line(Readers::OwnUser, "127.0.0.1:4748"), None);
        for loopback in ["127.0.0.1:4748", "[::1]:4748"] {
            let words = line(Readers::Everybody, loopback).unwrap();
            assert!(words.contains("every user of this machine") && words.contains(loopback), "{words}");
        }
        for network in ["0.0.0.0:4748", "10.0.0.1:4748"] {
            let words = line(Readers::Everybody, network).unwrap();
            assert!(words.contains("whoever reaches") && words.contains(network), "{words}");
        }
    }

    /// Who is at the other end cannot be told of a connection that is none.
    #[tokio::test]
    async fn nobody_is_not_taken_for_the_user() {
        let (peer, own) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        assert!(!Readers::OwnUser.admit(peer, own).await);
        assert!(Readers::Everybody.admit(peer, own).await);
    }
}
