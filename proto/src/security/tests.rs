#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;

fn access(url: &str, tls: &TlsArgs) -> Result<Access, SecurityError> {
    Access::new(url, tls, None)
}

fn refusal(result: Result<impl Sized, SecurityError>) -> String {
    let words = result.map(|_| ()).unwrap_err().to_string();
    assert!(!words.contains('\n'), "{words}");
    words
}

/// A folder with the files of an authority and of one that it signed for `localhost`.
fn certificates() -> (tempfile::TempDir, TlsArgs) {
    let folder = tempfile::tempdir().unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let ca = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let own =
        rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let args = TlsArgs {
        tls_ca: file("ca.pem", ca.pem()),
        tls_cert: file("cert.pem", own.pem()),
        tls_key: file("key.pem", key.serialize_pem()),
    };
    (folder, args)
}

#[test]
fn an_address_may_leave_out_what_goes_without_saying() {
    let (_folder, tls) = certificates();
    let plain = TlsArgs::default();
    for (url, tls, whole, host) in [
        ("http://h:1", &plain, "http://h:1/", ("h", 1)),
        ("h:1", &plain, "http://h:1/", ("h", 1)),
        ("h", &plain, "http://h:4747/", ("h", 4747)),
        ("http://[::1]", &plain, "http://[::1]:4747/", ("::1", 4747)),
        ("https://h:1", &tls, "https://h:1/", ("h", 1)),
        ("https://10.0.0.1", &tls, "https://10.0.0.1:4747/", ("10.0.0.1", 4747)),
        ("h", &tls, "https://h:4747/", ("h", 4747)),
        ("https://[::1]:9", &tls, "https://[::1]:9/", ("::1", 9)),
    ] {
        let access = access(url, tls).unwrap();
        assert_eq!(access.url(), url);
        let scheme = if access.tls.is_some() { "https" } else { "http" };
        assert_eq!(access.endpoint.uri().to_string(), whole.replacen(scheme, "http", 1));
        assert_eq!(access.host_and_port(), host);
    }
    for url in ["", "not an address", "ftp://h", "http://", "https://", "http://:80", "unix:///x"] {
        let words = refusal(access(url, &plain));
        assert!(words.starts_with(&format!("`{url}` is not the address of a coordinator")), "{words}");
    }
}

#[test]
fn encryption_is_all_or_nothing() {
    let (_folder, tls) = certificates();
    assert!(refusal(access("https://h", &TlsArgs::default())).contains("--tls-ca FILE"));
    assert!(refusal(access("http://h", &tls)).contains("http://h is not encrypted"));
    let without_ca = TlsArgs { tls_ca: None, ..tls };
    assert!(refusal(access("h", &without_ca)).contains("--tls-ca FILE"));
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let (folder, tls) = certificates();
    let with = |ca: &Path, cert: &Path, key: &Path| {
        let [tls_ca, tls_cert, tls_key] = [ca, cert, key].map(|path| Some(path.to_owned()));
        access("https://h", &TlsArgs { tls_ca, tls_cert, tls_key })
    };
    let [ca, cert, key] = [tls.tls_ca, tls.tls_cert, tls.tls_key].map(Option::unwrap);
    assert!(with(&ca, &cert, &key).is_ok());

    let none = folder.path().join("none.pem");
    assert!(
        refusal(with(&none, &cert, &key)).starts_with(&format!("cannot read --tls-ca {}", none.display()))
    );
    assert!(refusal(with(&ca, &none, &key)).starts_with("cannot read --tls-cert"));
    assert!(refusal(with(&ca, &cert, &none)).starts_with("cannot read --tls-key"));
    assert!(refusal(with(&key, &cert, &key)).contains("holds no certificate in PEM form"));
    assert!(refusal(with(&ca, &key, &key)).contains("holds no certificate in PEM form"));
    assert!(refusal(with(&ca, &cert, &cert)).contains("holds no private key in PEM form"));

    let pem = |kind: &str, base64: &str| format!("-----BEGIN {kind}-----\n{base64}\n-----END {kind}-----\n");
    std::fs::write(&none, pem("CERTIFICATE", "bm8gY2VydGlmaWNhdGU=")).unwrap();
    assert!(refusal(with(&none, &cert, &key)).contains("a certificate that cannot be used"));
    std::fs::write(&none, pem("PRIVATE KEY", "bm8ga2V5")).unwrap();
    assert!(refusal(with(&ca, &cert, &none)).contains(&format!("the key in --tls-key {}", none.display())));
    std::fs::write(&none, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(refusal(with(&ca, &cert, &none)).contains("does not belong to the certificate in --tls-cert"));
}

#[test]
fn a_token_is_one_word_of_16_to_256_characters() {
    let token = |text: &str| AccessToken::new(text, || "RELABEL_JOIN_TOKEN".into());
    for good in ["0123456789abcdef", " 0123456789+/=.-_ \n", &"x".repeat(256)] {
        let token = token(good).unwrap();
        assert!(token.is(good.trim()) && !token.is(&good.trim()[1..]) && !token.is(""));
        assert_eq!(token.reveal(), good.trim());
    }
    for (bad, why) in [
        ("", "empty"),
        (" \n", "empty"),
        ("0123456789abcde", "shorter than 16"),
        ("0123456789 abcdef", "one word"),
        ("0123456789\nabcdef", "one word"),
        ("0123456789abcdeé", "ASCII"),
        (&"x".repeat(257), "longer than 256"),
    ] {
        let words = refusal(token(bad));
        assert!(
            words.starts_with("RELABEL_JOIN_TOKEN is no token: ") && words.contains(why),
            "{bad:?}: {words}"
        );
        assert!(bad.trim().is_empty() || !words.contains(bad.trim()), "the text is not repeated: {words}");
    }
    let (one, other) = (AccessToken::random().unwrap(), AccessToken::random().unwrap());
    assert!(one.is(one.reveal()) && !one.is(other.reveal()));
}

#[test]
fn a_token_comes_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let find = || AccessToken::find(&JOIN_TOKEN, Some(&path));
    assert!(refusal(find()).starts_with(&format!("cannot read --join-token-file {}", path.display())));
    std::fs::write(&path, "a-token-of-this-test\n").unwrap();
    assert!(find().unwrap().unwrap().is("a-token-of-this-test"));
    for bad in [&b"\xff\xfe\0"[..], b"", &[b'x'; 100_000]] {
        std::fs::write(&path, bad).unwrap();
        assert!(refusal(find()).contains("is no token"));
    }
}

#[test]
fn a_token_is_shown_in_the_header_and_printed_nowhere() {
    let text = "a-token-of-this-test";
    let token = AccessToken::new(text, String::new).unwrap();
    let access = Access::new("http://h", &TlsArgs::default(), Some(token.clone())).unwrap();
    let request = access.request(());
    assert_eq!(AccessToken::shown(request.metadata()), Some(text));
    for printed in [
        format!("{token:?}"),
        format!("{access:#?}"),
        format!("{request:?}"),
        format!("{:?}", token.bearer()),
    ] {
        assert!(!printed.contains(text), "{printed}");
    }

    let shown = |value: &'static str| {
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert("authorization", value.parse().unwrap());
        AccessToken::shown(&metadata).map(str::to_owned)
    };
    assert_eq!(shown("bearer  abc"), Some("abc".into()));
    for other in ["", "abc", "Bearer", "Basic abc"] {
        assert_eq!(shown(other), None);
    }
    assert_eq!(AccessToken::shown(&tonic::metadata::MetadataMap::new()), None);
}

#[test]
fn only_what_tls_failed_of_is_mistrust() {
    let (_folder, tls) = certificates();
    let with = access("https://h", &tls).unwrap();
    let without = access("https://h", &TlsArgs { tls_cert: None, tls_key: None, ..tls }).unwrap();
    let wrapped = |error: rustls::Error| std::io::Error::other(std::io::Error::other(error));
    let alert = |alert| wrapped(rustls::Error::AlertReceived(alert));
    let says = |access: &Access, error: std::io::Error, words: &str| {
        let said = access.mistrust(&error).unwrap();
        assert!(said.contains("https://h") && said.contains(words), "{said}");
    };
    use rustls::{AlertDescription as Alert, CertificateError as Bad};
    let bad = |bad| wrapped(rustls::Error::InvalidCertificate(bad));
    says(&with, bad(Bad::UnknownIssuer), "--tls-ca");
    says(&with, bad(Bad::NotValidForName), "not for the name h");
    says(&with, bad(Bad::Expired), "has expired");
    says(&with, bad(Bad::BadSignature), "cannot be used");
    says(
        &with,
        wrapped(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)),
        "use http://",
    );
    says(&without, alert(Alert::CertificateRequired), "name one with --tls-cert");
    says(&without, alert(Alert::BadCertificate), "--tls-cert");
    says(&with, alert(Alert::UnknownCA), "--tls-client-ca");
    says(&with, alert(Alert::InternalError), "no TLS with");
    assert_eq!(with.mistrust(&std::io::Error::from(std::io::ErrorKind::ConnectionRefused)), None);
    assert_eq!(with.mistrust(&std::io::Error::other("something else")), None);
}
