//! A throw-away CA and a server certificate for `dev --tls`. Written once; a restart keeps them, so what trusts the CA
//! goes on working.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::env::Env;
use crate::node::atomic_file;

const VALID: Duration = Duration::days(825);

/// The CA that clients are to trust.
pub(super) fn ca_path(dir: &Path) -> PathBuf {
    dir.join("ca.pem")
}

pub(super) fn cert_path(dir: &Path) -> PathBuf {
    dir.join("server.pem")
}

pub(super) fn key_path(dir: &Path) -> PathBuf {
    dir.join("server.key")
}

/// Writes CA, certificate and key where they are not all there.
///
/// # Errors
/// When they cannot be made or written.
pub(super) fn ensure(dir: &Path, env: &Env) -> anyhow::Result<()> {
    if [ca_path(dir), cert_path(dir), key_path(dir)].iter().all(|path| path.exists()) {
        return Ok(());
    }
    let now = OffsetDateTime::from_unix_timestamp(i64::try_from(env.now_ms() / 1000)?)?;
    let (from, to) = (now - Duration::days(1), now + VALID);

    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.distinguished_name.push(DnType::CommonName, "Holdfast dev CA");
    ca.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    (ca.not_before, ca.not_after) = (from, to);
    let ca_key = KeyPair::generate()?;
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);

    // Buckets as subdomains work too: one label below localhost.
    let names = ["localhost", "*.localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    let mut server = CertificateParams::new(names)?;
    server.distinguished_name.push(DnType::CommonName, "localhost");
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    (server.not_before, server.not_after) = (from, to);
    let key = KeyPair::generate()?;
    let cert = server.signed_by(&key, &issuer)?;

    // The CA's key is not kept: nobody can sign with it again.
    atomic_file::write(&key_path(dir), key.serialize_pem().as_bytes(), 0o600)?;
    atomic_file::write(&cert_path(dir), cert.pem().as_bytes(), 0o644)?;
    atomic_file::write(&ca_path(dir), ca_cert.pem().as_bytes(), 0o644)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path(), &Env::real()).unwrap();
        let before = std::fs::read(ca_path(dir.path())).unwrap();
        ensure(dir.path(), &Env::real()).unwrap();
        assert_eq!(std::fs::read(ca_path(dir.path())).unwrap(), before);
        assert!(before.starts_with(b"-----BEGIN CERTIFICATE-----"));
    }
}
