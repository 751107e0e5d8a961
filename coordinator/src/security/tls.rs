//! The coordinator's end of TLS: version 1.3, with client certificates where an authority for them is named.

use std::path::Path;
use std::sync::Arc;

use relabel_proto::security::{SecurityError, tls};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use tokio_rustls::TlsAcceptor;

/// Shows the certificate in `cert`; with `client_ca`, asks for one that it signed.
///
/// # Errors
/// Files that cannot be read, hold something else, or do not belong together.
pub(super) fn acceptor(
    cert: &Path,
    key: &Path,
    client_ca: Option<&Path>,
) -> Result<TlsAcceptor, SecurityError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |error: rustls::Error| SecurityError::Key { path: key.into(), reason: error.to_string() };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let flag = "--tls-client-ca";
            let roots = Arc::new(tls::authorities(flag, path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            let verifier = verifier.map_err(|error| SecurityError::Certificate {
                flag,
                path: path.into(),
                reason: error.to_string(),
            })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, private) = tls::own_certificate(cert, key)?;
    let mut config = builder.with_single_cert(chain, private).map_err(unusable)?;
    config.alpn_protocols = vec![tls::H2.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
