//! What holds for every answer: who may ask, and what a browser may do with it.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{StatusCode, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Nothing but what this server sends, no framing, no forms. Styles and scripts are files of their own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Whether only this host is meant to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guard {
    loopback: bool,
}

impl Guard {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { loopback: address.ip().is_loopback() }
    }

    /// A page of somebody else's may have its own name point to this host, and so read what is served here in
    /// its reader's browser. So a port of the loopback interface answers to its own names alone.
    fn admits(self, host: Option<&HeaderValue>) -> bool {
        if !self.loopback {
            return true;
        }
        let authority =
            host.and_then(|host| host.to_str().ok()).and_then(|host| host.parse::<Authority>().ok());
        let Some(authority) = authority else { return false };
        let host = authority.host().trim_matches(['[', ']']);
        host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let mut response = match guard.admits(request.headers().get(header::HOST)) {
        true => next.run(request).await,
        false => (
            StatusCode::MISDIRECTED_REQUEST,
            "this port answers to localhost; for others, start the coordinator with --http ADDRESS:PORT\n",
        )
            .into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_port_answers_to_its_own_names() {
        let own = Guard::new("127.0.0.1:4748".parse().unwrap());
        let admits = |guard: Guard, host: &'static str| guard.admits(Some(&HeaderValue::from_static(host)));
        for host in ["localhost:4748", "localhost", "127.0.0.1:4748", "127.0.0.2", "[::1]:4748"] {
            assert!(admits(own, host), "{host}");
        }
        for host in ["evil.example:4748", "localhost.evil.example", "10.0.0.1:4748", "", "a b"] {
            assert!(!admits(own, host), "{host}");
        }
        assert!(!own.admits(None));
        let all = Guard::new("0.0.0.0:4748".parse().unwrap());
        assert!(admits(all, "node7.cluster:4748"));
    }
}
