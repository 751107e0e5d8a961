//! What lets a program in at a coordinator: its address, TLS, a token. Workers and the operator's commands take the
//! same flags and reach it by the same [`Access`]; the coordinator's own end is its `security` module.
//!
//! [`AccessToken`] is the shared secret of a role and [`tls`] reads the files of certificates and keys.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint};

mod connector;
pub mod tls;
pub mod token;
mod transport;

pub use token::{ADMIN_TOKEN, AccessToken, JOIN_TOKEN};
pub use transport::{Connecting, Transport, Wire};

use crate::DEFAULT_PORT;
use connector::Connector;
use transport::Carrier;

/// For a TCP connection and the TLS handshake on it.
const CONNECT: Duration = Duration::from_secs(5);

/// What is wrong with how a program is to be let in. Each message is one line and says what to do; none has a secret
/// in it.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error("`{url}` is not the address of a coordinator: it should look like http://host:4747 ({reason})")]
    Address { url: String, reason: String },
    #[error(
        "{url} is to be reached by TLS: name the certificate that signed the coordinator's with --tls-ca FILE"
    )]
    NoCa { url: String },
    #[error("--tls flags are given, but {url} is not encrypted: use https://, or leave them out")]
    Unencrypted { url: String },
    #[error("cannot read {flag} {}: {source}", path.display())]
    Read { flag: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{flag} {} holds no {wanted} in PEM form", path.display())]
    NotPem { flag: &'static str, path: PathBuf, wanted: &'static str },
    #[error("{flag} {} holds a certificate that cannot be used: {reason}", path.display())]
    Certificate { flag: &'static str, path: PathBuf, reason: String },
    #[error("the key in --tls-key {} does not belong to the certificate in --tls-cert {}", key.display(), cert.display())]
    KeyMismatch { cert: PathBuf, key: PathBuf },
    #[error("the key in --tls-key {} cannot be used: {reason}", path.display())]
    Key { path: PathBuf, reason: String },
    #[error("{origin} is no token: {reason}; `openssl rand -hex 32` makes a good one")]
    Token { origin: String, reason: &'static str },
    #[error("the join token and the admin token are the same: a worker could give the operator's orders")]
    SameTokens,
    #[error("cannot get random numbers from the system: {0}")]
    Random(#[source] getrandom::Error),
}

/// How the coordinator is made sure of, and shown who comes
#[derive(Debug, Clone, Default, Args)]
pub struct TlsArgs {
    /// Certificate (PEM) that signed the coordinator's, for an https:// address
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Own certificate (PEM), where the coordinator has --tls-client-ca
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Key (PEM) of --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

impl TlsArgs {
    fn any(&self) -> bool {
        [&self.tls_ca, &self.tls_cert, &self.tls_key].into_iter().any(Option::is_some)
    }
}

/// What lets a worker in
#[derive(Debug, Clone, Default, Args)]
pub struct WorkerAccess {
    #[command(flatten)]
    pub tls: TlsArgs,
    /// File with the coordinator's join token [default: the token itself in RELABEL_JOIN_TOKEN, if it is set]
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
}

impl WorkerAccess {
    /// The way to the coordinator at `url`.
    ///
    /// # Errors
    /// An address, a file or a token that cannot be.
    pub fn to(&self, url: &str) -> Result<Access, SecurityError> {
        Access::new(url, &self.tls, AccessToken::find(&JOIN_TOKEN, self.join_token_file.as_deref())?)
    }
}

/// What lets the operator in
#[derive(Debug, Clone, Default, Args)]
pub struct AdminAccess {
    #[command(flatten)]
    pub tls: TlsArgs,
    /// File with the coordinator's admin token [default: the token itself in RELABEL_ADMIN_TOKEN, if it is set]
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
}

impl AdminAccess {
    /// The way to the coordinator at `url`.
    ///
    /// # Errors
    /// An address, a file or a token that cannot be.
    pub fn to(&self, url: &str) -> Result<Access, SecurityError> {
        Access::new(url, &self.tls, AccessToken::find(&ADMIN_TOKEN, self.admin_token_file.as_deref())?)
    }
}

/// The way to one coordinator: where it is, how it is made sure of, and the token that it is shown.
#[derive(Debug, Clone)]
pub struct Access {
    url: String,
    endpoint: Endpoint,
    tls: Option<Connector>,
    carrier: Option<Carrier>,
    has_certificate: bool,
    token: Option<AccessToken>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// The two ends do not trust each other. It would be the same at every attempt.
    #[error("{0}")]
    Mistrust(String),
    /// Nobody was there, which may pass.
    #[error("{0}")]
    Absent(String),
}

impl Access {
    /// The way to `url`. One without a scheme is taken for `https://` where a CA is given and for `http://`
    /// otherwise, one without a port for the default port.
    ///
    /// # Errors
    /// An address that cannot be, https:// without a CA or a CA without https://, and files that cannot be used.
    pub fn new(url: &str, tls: &TlsArgs, token: Option<AccessToken>) -> Result<Self, SecurityError> {
        let wrong = |reason: &str| SecurityError::Address { url: url.into(), reason: reason.into() };
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
            Some((scheme, _)) => return Err(wrong(&format!("{scheme} is not supported"))),
            None if tls.any() => ("https", url),
            None => ("http", url),
        };
        let encrypted = scheme == "https";
        let parsed =
            |url: String| Endpoint::from_shared(url).map_err(|error| wrong(&tls::root_cause(&error)));
        let mut endpoint = parsed(format!("{scheme}://{rest}"))?;
        let host = endpoint.uri().host().unwrap_or_default();
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        if endpoint.uri().port_u16().is_none() {
            endpoint = parsed(format!("{scheme}://{host}:{DEFAULT_PORT}"))?;
        }
        let connector = match (encrypted, &tls.tls_ca) {
            (true, None) => return Err(SecurityError::NoCa { url: url.into() }),
            (false, _) if tls.any() => return Err(SecurityError::Unencrypted { url: url.into() }),
            (false, _) => None,
            (true, Some(ca)) => {
                let config = tls::client(ca, tls.tls_cert.as_deref().zip(tls.tls_key.as_deref()))?;
                let (host, port) = host_and_port(&endpoint);
                let (host, port) = (host.to_owned(), port);
                let name = ServerName::try_from(host.clone()).map_err(|error| wrong(&error.to_string()))?;
                // The connector encrypts: what is above it takes the connection as it is.
                let origin = endpoint.uri().clone();
                endpoint = parsed(format!("http://{}", origin.authority().map_or("", |host| host.as_str())))?
                    .origin(origin);
                Some(Connector { host, port, name, config })
            }
        };
        let (url, has_certificate) = (url.into(), tls.tls_cert.is_some());
        Ok(Self { url, endpoint, tls: connector, carrier: None, has_certificate, token })
    }

    /// The same way over another network than this machine's. It is for an address without TLS; one with it is reached
    /// as before.
    pub fn over(mut self, transport: Arc<dyn Transport>) -> Self {
        let (host, port) = self.host_and_port();
        self.carrier = Some(Carrier { host: host.to_owned(), port, transport });
        self
    }

    /// The address as it was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The host's name or address, without an IPv6 address's brackets, and the port.
    pub fn host_and_port(&self) -> (&str, u16) {
        host_and_port(&self.endpoint)
    }

    /// Connects, once. A connection whose other end is gone without a word is seen to be after `dead_after`; a call on
    /// it takes `limit` at most, if there is one.
    ///
    /// # Errors
    /// Nobody answers, or the two ends do not trust each other.
    pub async fn connect(&self, dead_after: Duration, limit: Option<Duration>) -> Result<Channel, Unreached> {
        let mut endpoint = self
            .endpoint
            .clone()
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(dead_after / 2)
            .keep_alive_timeout(dead_after / 2)
            .keep_alive_while_idle(true);
        if let Some(limit) = limit {
            endpoint = endpoint.timeout(limit);
        }
        let connected = match (&self.tls, &self.carrier) {
            (Some(connector), _) => endpoint.connect_with_connector(connector.clone()).await,
            (None, Some(carrier)) => endpoint.connect_with_connector(carrier.clone()).await,
            (None, None) => endpoint.connect().await,
        };
        connected.map_err(|error| match self.mistrust(&error) {
            Some(words) => Unreached::Mistrust(words),
            None => Unreached::Absent(tls::root_cause(&error)),
        })
    }

    /// A request that shows the token, if there is one.
    pub fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.bearer());
        }
        request
    }

    /// What the two ends could not agree on in their TLS handshake, in a sentence that says what to do. None for an
    /// error of another kind: those may pass, while this would be the same at every attempt.
    pub fn mistrust(&self, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        tls::mistrust(error, &self.url, self.host_and_port().0, self.has_certificate)
    }
}

/// Where an endpoint is: its host without brackets, and its port.
fn host_and_port(endpoint: &Endpoint) -> (&str, u16) {
    let uri = endpoint.uri();
    (uri.host().unwrap_or_default().trim_matches(['[', ']']), uri.port_u16().unwrap_or(DEFAULT_PORT))
}

#[cfg(test)]
mod tests;
