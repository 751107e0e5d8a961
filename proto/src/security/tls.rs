//! Certificates and keys from their files, and what a TLS handshake failed of, in words.

use std::error::Error;
use std::path::Path;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, RootCertStore};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::SecurityError;
use crate::text::sentence;

/// Where `--tls-cert` and `--tls-key` are named in messages.
const CERT: &str = "--tls-cert";
const KEY: &str = "--tls-key";

/// A client that trusts what `ca` signed and nothing else, and shows the certificate of `own` (and its key) where it is
/// asked for one.
///
/// # Errors
/// Files that cannot be read, or hold something else.
pub(super) fn client(ca: &Path, own: Option<(&Path, &Path)>) -> Result<ClientTlsConfig, SecurityError> {
    let (_, pem) = certificates("--tls-ca", ca)?;
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
    Ok(match own {
        Some((cert, key)) => {
            let (chain, cert_pem) = certificates(CERT, cert)?;
            let key_pem = read(KEY, key)?;
            check_pair(chain, private_key(key, &key_pem)?, cert, key)?;
            config.identity(Identity::from_pem(cert_pem, key_pem))
        }
        None => config,
    })
}

/// A program's own certificate, the ones that lead to its authority after it, and its key.
///
/// # Errors
/// Files that cannot be read, hold something else, or do not belong together.
pub fn own_certificate(
    cert: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SecurityError> {
    let (chain, _) = certificates(CERT, cert)?;
    let key_pem = read(KEY, key)?;
    check_pair(chain.clone(), private_key(key, &key_pem)?, cert, key)?;
    Ok((chain, private_key(key, &key_pem)?))
}

/// The authorities in the file that `flag` names.
///
/// # Errors
/// A file that cannot be read or holds something else.
pub fn authorities(flag: &'static str, path: &Path) -> Result<RootCertStore, SecurityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(flag, path)?.0 {
        roots.add(certificate).map_err(|error| unusable(flag, path, &error))?;
    }
    Ok(roots)
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, SecurityError> {
    std::fs::read(path).map_err(|source| SecurityError::Read { flag, path: path.into(), source })
}

fn unusable(flag: &'static str, path: &Path, error: &dyn Error) -> SecurityError {
    SecurityError::Certificate { flag, path: path.into(), reason: error.to_string() }
}

/// At least one certificate, and the file's contents.
fn certificates(
    flag: &'static str,
    path: &Path,
) -> Result<(Vec<CertificateDer<'static>>, Vec<u8>), SecurityError> {
    let pem = read(flag, path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.ok().filter(|found| !found.is_empty());
    let found = found.ok_or(SecurityError::NotPem { flag, path: path.into(), wanted: "certificate" })?;
    for certificate in &found {
        let parsed = rustls::server::ParsedCertificate::try_from(certificate);
        parsed.map_err(|error| unusable(flag, path, &error))?;
    }
    Ok((found, pem))
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, SecurityError> {
    let wanted = "private key";
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| SecurityError::NotPem {
        flag: KEY,
        path: path.into(),
        wanted,
    })
}

/// That the key is the certificate's.
fn check_pair(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    cert_path: &Path,
    key_path: &Path,
) -> Result<(), SecurityError> {
    let provider = rustls::crypto::ring::default_provider();
    match rustls::sign::CertifiedKey::from_der(chain, key, &provider) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(SecurityError::KeyMismatch { cert: cert_path.into(), key: key_path.into() })
        }
        Err(error) => Err(SecurityError::Key { path: key_path.into(), reason: error.to_string() }),
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
                if presented.is_empty() { "none".into() } else { presented.join(", ") }
            ),
            Bad::Expired | Bad::ExpiredContext { .. } => format!("the certificate of {url} has expired"),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                format!("the certificate of {url} is not valid yet: is this host's clock right?")
            }
            bad if bad.to_string().contains("CaUsedAsEndEntity") => format!(
                "{url} shows the certificate of an authority: give the coordinator one that is not, as \
                 `-addext basicConstraints=critical,CA:FALSE` has openssl make it"
            ),
            bad => format!("{url} shows a certificate that cannot be used: {bad}"),
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
