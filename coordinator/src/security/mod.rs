//! Who may come, and how much of them: the port that workers and the operator's commands reach.
//!
//! ```text
//!   TCP ──▶ guests ─▶ TLS ─▶ HTTP/2 ──▶ door ──▶ service
//!           how many,  tls   limits     token
//!           for how long                and role
//! ```
//!
//! A connection that has shown no valid token after ten seconds is closed, whatever it has been doing: a stranger
//! costs a socket for that long and nothing else. Where no token is set, whoever comes is let in, and a line says so.
//! A worker that has the token is trusted to be one: what it says is checked ([`relabel_proto`]), what it computes
//! is not.

mod caller;
mod door;
mod guests;
pub mod limits;
mod port;
mod readers;
mod refusal;
mod tls;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use relabel_proto::security::{ADMIN_TOKEN, AccessToken, JOIN_TOKEN, SecurityError};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

pub use door::{Doorkeeper, Role};
pub use port::{Port, Stream};
pub use readers::Readers;

use door::Policy;
use guests::Reception;
use refusal::Refusals;

/// Who may come
#[derive(Debug, Clone, Args)]
pub struct SecurityArgs {
    /// Speak TLS with this certificate (PEM), the ones that lead to its authority after it in the file
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Key (PEM) of --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Let in only those who show a certificate that this one (PEM) signed
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// File with the token that workers have to show [default: the token itself in RELABEL_JOIN_TOKEN, if it is set;
    /// else none, or with --local one that only the local workers know]
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// File with the token that `status` and `stop` have to show [default: the token itself in RELABEL_ADMIN_TOKEN, if
    /// it is set; else none, and where workers have to show one, only this user on this machine may]
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Most connections at a time
    #[arg(long, value_name = "N", default_value_t = limits::CONNECTIONS, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
}

impl Default for SecurityArgs {
    /// Nothing is asked of anybody.
    fn default() -> Self {
        Self {
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            join_token_file: None,
            admin_token_file: None,
            max_connections: limits::CONNECTIONS,
        }
    }
}

/// How local workers reach their coordinator.
#[derive(Debug, Clone)]
pub struct LocalAccess {
    pub url: String,
    /// For their environment.
    pub token: AccessToken,
}

/// The open port.
pub struct Entrance<P = TcpListener> {
    port: P,
    address: SocketAddr,
    keys: Keys,
    /// Where local workers come in: past TLS, as no certificate can be expected to be for this machine's loopback address.
    children: Option<P>,
    local: Option<LocalAccess>,
    refusals: Refusals,
    max_connections: usize,
}

/// What opens the port to a caller.
struct Keys {
    tls: Option<TlsAcceptor>,
    asks_certificates: bool,
    policy: Arc<Policy>,
}

impl Keys {
    /// Reads certificates and tokens.
    fn read(args: &SecurityArgs, local: bool) -> Result<Self> {
        let tls = match (&args.tls_cert, &args.tls_key) {
            (Some(cert), Some(key)) => Some(tls::acceptor(cert, key, args.tls_client_ca.as_deref())?),
            _ => None,
        };
        let given = AccessToken::find(&JOIN_TOKEN, args.join_token_file.as_deref())?;
        let only_children = local && given.is_none();
        let join = if only_children { Some(AccessToken::random()?) } else { given };
        let admin = AccessToken::find(&ADMIN_TOKEN, args.admin_token_file.as_deref())?;
        if let (Some(join), Some(admin)) = (&join, &admin)
            && join.is(admin.reveal())
        {
            return Err(SecurityError::SameTokens.into());
        }
        let policy = Arc::new(Policy { join, admin, only_children });
        Ok(Self { tls, asks_certificates: args.tls_client_ca.is_some(), policy })
    }
}

impl Entrance {
    /// Reads certificates and tokens and opens the port; `local` says that this coordinator starts workers itself.
    /// Warns of what is left open to a network.
    ///
    /// # Errors
    /// Files or tokens that cannot be used, and a port that cannot be opened.
    pub async fn open(args: &SecurityArgs, address: SocketAddr, local: bool) -> Result<Self> {
        let keys = Keys::read(args, local)?;
        let port = listen(address).await?;
        let address = port.local_addr().context("cannot tell the address that was bound")?;
        let past_tls = local && keys.tls.is_some();
        let children = match past_tls {
            true => Some(listen((Ipv4Addr::LOCALHOST, 0).into()).await?),
            false => None,
        };
        let local = match (&keys.policy.join, local) {
            (Some(token), true) => Some(LocalAccess {
                url: local_url(children.as_ref().map_or(Ok(address), TcpListener::local_addr)?),
                token: token.clone(),
            }),
            _ => None,
        };
        for line in warnings(address, keys.tls.is_some(), keys.asks_certificates, keys.policy.join.is_some())
        {
            tracing::warn!("{line}");
        }
        let (refusals, max_connections) = (Refusals::default(), limits::connections(args.max_connections));
        Ok(Self { port, address, keys, children, local, refusals, max_connections })
    }
}

impl<P: Port> Entrance<P> {
    /// The entrance by a port that is open already, on whatever network, at `address` there.
    ///
    /// # Errors
    /// Files or tokens that cannot be used.
    pub fn by(port: P, address: SocketAddr, args: &SecurityArgs) -> Result<Self> {
        let keys = Keys::read(args, false)?;
        let (refusals, max_connections) = (Refusals::default(), limits::connections(args.max_connections));
        Ok(Self { port, address, keys, children: None, local: None, refusals, max_connections })
    }

    /// The address that was bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Warns if so many workers cannot all be connected.
    pub fn expect(&self, workers: u32) {
        if let Some(line) = too_few(self.max_connections, workers) {
            tracing::warn!("{line}");
        }
    }

    /// The flags of a worker on another host, but for this host's name and the names of its files.
    pub fn invitation(&self) -> String {
        let scheme = if self.keys.tls.is_some() { "https" } else { "http" };
        let mut flags = format!("--coordinator {scheme}://HOST:{}", self.address.port());
        for (asked, more) in [
            (self.keys.tls.is_some(), " --tls-ca FILE"),
            (self.keys.asks_certificates, " --tls-cert FILE --tls-key FILE"),
            (self.keys.policy.join.is_some(), " --join-token-file FILE"),
        ] {
            flags += if asked { more } else { "" };
        }
        flags
    }

    /// How local workers come in, where they were announced.
    pub fn for_children(&self) -> Option<&LocalAccess> {
        self.local.as_ref()
    }

    /// `service` for callers in this role only.
    pub fn only_for<S>(&self, role: Role, service: S) -> InterceptedService<S, Doorkeeper> {
        InterceptedService::new(
            service,
            Doorkeeper::new(role, self.keys.policy.clone(), self.refusals.clone()),
        )
    }

    /// Serves until `over`, and then until all connections are closed, those of strangers at once. A connection whose
    /// other end is gone without a word is closed half as long again as `dead_after` later.
    ///
    /// # Errors
    /// As tonic's server fails.
    pub async fn serve(
        self,
        routes: Routes,
        dead_after: Duration,
        over: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let reception =
            Reception { tls: self.keys.tls, refusals: self.refusals, max_connections: self.max_connections };
        let (guests, closing) = reception.open(self.port, self.children);
        let (interval, timeout) = limits::pings(dead_after);
        Server::builder()
            .max_concurrent_streams(limits::STREAMS)
            .http2_max_header_list_size(limits::HEADER_BYTES)
            .http2_keepalive_interval(Some(interval))
            .http2_keepalive_timeout(Some(timeout))
            .add_routes(routes)
            .serve_with_incoming_shutdown(guests, async move {
                over.await;
                drop(closing);
            })
            .await
    }
}

/// Opens a port.
async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {} is in use, perhaps by another coordinator: choose another with --listen {}:PORT",
            address.port(),
            address.ip()
        ),
        _ => anyhow::anyhow!("cannot listen on {address}: {error}"),
    })
}

/// How this machine reaches a port of its own.
fn local_url(address: SocketAddr) -> String {
    let mut reached = address;
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => reached.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            reached.set_ip(std::net::Ipv6Addr::LOCALHOST.into())
        }
        _ => {}
    }
    format!("http://{reached}")
}

/// What a network could do to this coordinator, a line each.
fn warnings(address: SocketAddr, tls: bool, certificates: bool, token: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if address.ip().to_canonical().is_loopback() {
        return lines;
    }
    if !token && !certificates {
        lines.push(format!(
            "no join token is set: anybody who reaches port {} can join, and stop it all (see --join-token-file)",
            address.port()
        ));
    }
    if token && !tls {
        lines.push(
            "tokens go over the network in the clear: add --tls-cert and --tls-key, or keep to a private network"
                .into(),
        );
    }
    lines
}

/// That there are fewer connections than workers, in words.
fn too_few(connections: usize, workers: u32) -> Option<String> {
    let few = connections < workers as usize;
    few.then(|| {
        format!(
            "{connections} connections may be open at a time, which is too few for {workers} workers: raise \
             --max-connections, and the limit of open files (ulimit -n) where it is what keeps them few"
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn local_workers_reach_an_address_that_is_all_of_them() {
        for (bound, url) in [
            ("127.0.0.1:5", "http://127.0.0.1:5"),
            ("0.0.0.0:5", "http://127.0.0.1:5"),
            ("[::]:5", "http://[::1]:5"),
            ("10.0.0.1:5", "http://10.0.0.1:5"),
        ] {
            assert_eq!(local_url(bound.parse().unwrap()), url);
        }
    }

    #[test]
    fn only_a_network_is_warned_of() {
        let lines = |bound: &str, tls, certificates, token| {
            warnings(bound.parse().unwrap(), tls, certificates, token).len()
        };
        for loopback in ["127.0.0.1:5", "[::1]:5", "[::ffff:127.0.0.1]:5"] {
            assert_eq!(lines(loopback, false, false, false), 0);
        }
        for network in ["0.0.0.0:5", "[::]:5", "10.0.0.1:5"] {
            assert_eq!(lines(network, false, false, false), 1);
            assert_eq!(lines(network, false, false, true), 1);
            assert_eq!(lines(network, true, false, true), 0);
        }
    }

    #[test]
    fn fewer_connections_than_workers_are_warned_of() {
        assert_eq!(too_few(8, 8), None);
        let words = too_few(7, 8).unwrap();
        assert!(words.starts_with("7 connections") && words.contains("8 workers"), "{words}");
    }
}
