//! What a certificate file says, for people and as JSON.

use std::{fmt, path::Path};

use engine::net::{Role, certificate::Certificate};
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Serialize;

use super::{PkiError, read};

/// A certificate, in short. As JSON: `kind` is `ca` or `service`, times are RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// `ca`, `service`, or `other` for one that Homeward did not make.
    pub kind: &'static str,
    /// A service's role.
    pub role: Option<Role>,
    /// A service's name.
    pub name: Option<String>,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
    /// Whether now is between them.
    pub valid_now: bool,
    /// SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` prints it.
    pub fingerprint: String,
}

/// Reads the first certificate of the PEM file `path`. Verifies nothing.
///
/// # Errors
/// [`PkiError::Read`], [`PkiError::Pem`], [`PkiError::Certificate`].
pub fn show(path: &Path) -> Result<Shown, PkiError> {
    let (der, certificate) = parse(path, read(path)?.as_bytes())?;
    let Certificate { identity, not_before, not_after, is_ca } = certificate;
    let identity = identity.ok();
    let hash = digest(&SHA256, &der);
    let fingerprint = hash.as_ref().iter().map(|byte| format!("{byte:02X}"));
    let now = Timestamp::now();
    Ok(Shown {
        kind: match (is_ca, &identity) {
            (true, _) => "ca",
            (false, Some(_)) => "service",
            (false, None) => "other",
        },
        role: identity.as_ref().map(|identity| identity.role()),
        name: identity.map(|identity| identity.name().into()),
        not_before,
        not_after,
        valid_now: not_before <= now && now <= not_after,
        fingerprint: fingerprint.collect::<Vec<_>>().join(":"),
    })
}

pub(super) fn parse(path: &Path, pem: &[u8]) -> Result<(CertificateDer<'static>, Certificate), PkiError> {
    let der = CertificateDer::from_pem_slice(pem)
        .map_err(|error| PkiError::Pem { path: path.into(), why: error.to_string() })?;
    let certificate =
        Certificate::parse(&der).map_err(|source| PkiError::Certificate { path: path.into(), source })?;
    Ok((der, certificate))
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.valid_now { "valid" } else { "NOT VALID NOW" };
        writeln!(f, "kind         {}", self.kind)?;
        if let (Some(role), Some(name)) = (self.role, &self.name) {
            writeln!(f, "role         {role}\nname         {name}")?;
        }
        writeln!(f, "validity     {} to {} ({state})", self.not_before, self.not_after)?;
        write!(f, "fingerprint  SHA-256 {}", self.fingerprint)
    }
}
