//! Certificates and keys from their files, and what a TLS handshake failed of, in words.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

use super::SecurityError;
use crate::text::sentence;

/// Where `--tls-cert` and `--tls-key` are named in messages.
const CERT: &str = "--tls-cert";
const KEY: &str = "--tls-key";

/// What HTTP/2 is called in a handshake.
pub const H2: &[u8] = b"h2";

/// A client that trusts what `ca` signed and nothing else, and shows the certificate of `own` (and its key) where it is
/// asked for one.
///
/// # Errors
/// Files that cannot be read, hold something else, or do not belong together.
pub(super) fn client(ca: &Path, own: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, SecurityError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |error: rustls::Error| unusable("--tls-ca", ca, &error);
    let builder =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).map_err(unusable)?;
    let builder = builder.with_root_certificates(authorities("--tls-ca", ca)?);
    let mut config = match own {
        Some((cert, key)) => {
            let (chain, private) = own_certificate(cert, key)?;
            builder.with_client_auth_cert(chain, private).map_err(unusable)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(Arc::new(config))
}

/// A program's own certificate, the ones that lead to its authority after it, and its key.
///
/// # Errors
/// Files that cannot be read, hold something else, or do not belong together.
pub fn own_certificate(
    cert: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SecurityError> {
    let chain = certificates(CERT, cert)?;
    let not_pem = |_| SecurityError::NotPem { flag: KEY, path: key.into(), wanted: "private key" };
    let private = PrivateKeyDer::from_pem_slice(&read(KEY, key)?).map_err(not_pem)?;
    let provider = rustls::crypto::ring::default_provider();
    match rustls::sign::CertifiedKey::from_der(chain.clone(), private.clone_key(), &provider) {
        Ok(_) => Ok((chain, private)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(SecurityError::KeyMismatch { cert: cert.into(), key: key.into() })
        }
        Err(error) => Err(SecurityError::Key { path: key.into(), reason: error.to_string() }),
    }
}

/// The authorities in the file that `flag` names.
///
/// # Errors
/// A file that cannot be read or holds something else.
pub fn authorities(flag: &'static str, path: &Path) -> Result<RootCertStore, SecurityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(flag, path)? {
        roots.add(certificate).map_err(|error| unusable(flag, path, &error))?;
    }
    Ok(roots)
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, SecurityError> {
    std::fs::read(path).map_err(|source| SecurityError::Read { flag, path: path.into(), source })
}

fn unusable(flag: &'static str, path: &Path, error: &rustls::Error) -> SecurityError {
    let reason = match error {
        rustls::Error::InvalidCertificate(bad) => in_words(bad),
        other => other.to_string(),
    };
    SecurityError::Certificate { flag, path: path.into(), reason }
}

/// At least one certificate.
fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let pem = read(flag, path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.ok().filter(|found| !found.is_empty());
    let found = found.ok_or(SecurityError::NotPem { flag, path: path.into(), wanted: "certificate" })?;
    for certificate in &found {
        let parsed = rustls::server::ParsedCertificate::try_from(certificate);
        parsed.map_err(|error| unusable(flag, path, &error))?;
    }
    Ok(found)
}

/// What is wrong with a certificate by itself.
fn in_words(bad: &CertificateError) -> String {
    let words = bad.to_string();
    if words.contains("CaUsedAsEndEntity") {
        return "it is an authority's own; openssl makes another kind with \
                `-addext basicConstraints=critical,CA:FALSE`"
            .into();
    }
    if words.contains("UnsupportedCertVersion") {
        return "it is of version 1; `openssl x509 -req` makes one of version 3 where -extfile has it add anything"
            .into();
    }
    words
}

/// Names in a certificate without what the library writes around them: `DnsName("host")`.
fn plain_names(names: &[String]) -> String {
    let plain = |name: &String| {
        let inner = name.rsplit_once('(').map(|(_, rest)| rest.trim_end_matches(')'));
        inner.unwrap_or(name).trim_matches('"').to_owned()
    };
    match names {
        [] => "none".into(),
        names => names.iter().map(plain).collect::<Vec<_>>().join(", "),
    }
}

/// The innermost cause: the layers around it only say that something failed.
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    sentence(&cause.to_string())
}

/// The TLS error that is at the bottom of `error`, if one is.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error wraps is not its source, but that one's source is.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// See [`Access::mistrust`](super::Access::mistrust).
pub(super) fn mistrust(
    error: &(dyn Error + 'static),
    url: &str,
    host: &str,
    has_certificate: bool,
) -> Option<String> {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    let words = match tls_error(error)? {
        rustls::Error::InvalidMessage(_) => {
            format!(
                "{url} does not speak TLS: use http://, or start the coordinator with --tls-cert and --tls-key"
            )
        }
        rustls::Error::InvalidCertificate(bad) => match bad {
            Bad::UnknownIssuer => format!(
                "{url} shows a certificate that is not signed by the one in --tls-ca: name the one that signed the \
                 coordinator's --tls-cert"
            ),
            Bad::NotValidForName => format!("the certificate of {url} is not for the name {host}"),
            Bad::NotValidForNameContext { presented, .. } => format!(
                "the certificate of {url} is not for the name {host} but for {}",
                plain_names(presented)
            ),
            Bad::Expired | Bad::ExpiredContext { .. } => format!("the certificate of {url} has expired"),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                format!("the certificate of {url} is not valid yet: is this host's clock right?")
            }
            bad => format!("{url} shows a certificate that cannot be used: {}", in_words(bad)),
        },
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            format!("{url} lets in only those who show a certificate: name one with --tls-cert and --tls-key")
        }
        // Some servers give no better reason to those who show none.
        rustls::Error::AlertReceived(Alert::BadCertificate | Alert::HandshakeFailure) if !has_certificate => {
            format!(
                "{url} does not let this program in; it may want a certificate (--tls-cert and --tls-key)"
            )
        }
        rustls::Error::AlertReceived(
            alert @ (Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::AccessDenied
            | Alert::DecryptError),
        ) => format!(
            "{url} does not take the certificate in --tls-cert ({alert:?}): the coordinator's --tls-client-ca has to have \
             signed it"
        ),
        other => format!("no TLS with {url}: {other}"),
    };
    Some(sentence(&words))
}
