//! Authorities and certificates that live as long as a test.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// One who signs certificates.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// The file with its own certificate.
    pub pem: PathBuf,
}

/// A certificate and its key, each in a file.
pub struct Signed {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// One that keeps its files in `folder`.
    pub fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let pem = folder.join(format!("{name}.pem"));
        std::fs::write(&pem, certificate.pem()).unwrap();
        Self { folder: folder.to_owned(), issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `host`.
    pub fn sign(&self, host: &str) -> Signed {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let name = format!("{}-of-{}", host, self.pem.file_stem().unwrap().to_str().unwrap());
        let file = |ending: &str, text: String| {
            let path = self.folder.join(format!("{name}.{ending}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Signed { cert: file("pem", certificate.pem()), key: file("key", key.serialize_pem()) }
    }
}
