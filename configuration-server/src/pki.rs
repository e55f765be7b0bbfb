//! The private certificate authority: makes it, issues a certificate for each service, shows certificates.
//!
//! A folder holds `ca.pem` and `ca.key`; whoever has `ca.key` can be any service, so it belongs on the operator's
//! machine and on no other. A service gets `ca.pem`, `ROLE-NAME.pem` and `ROLE-NAME.key`. Nothing is ever
//! overwritten. What stands in a certificate, and how it is checked, says [`engine::net::identity`].

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use engine::net::{
    Identity, TlsFiles,
    identity::{IdentityError, TLS_NAME},
};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use thiserror::Error;

mod show;

pub use show::{Shown, show};

/// Days that a CA is valid: ten years.
pub const CA_DAYS: u32 = 3653;

/// Days that a service's certificate is valid, unless said otherwise.
pub const LEAF_DAYS: u32 = 825;

/// A new certificate is valid from this long ago, so that a peer whose clock is behind takes it.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(1);

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: Timestamp,
    /// Last moment.
    pub not_after: Timestamp,
}

impl Validity {
    /// From an hour ago to `days` from now.
    #[must_use]
    pub fn days(days: u32) -> Self {
        let now = Timestamp::now();
        let length = SignedDuration::from_hours(24 * i64::from(days));
        Self { not_before: now - CLOCK_SKEW, not_after: now.saturating_add(length).unwrap_or(Timestamp::MAX) }
    }
}

/// The files of a CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFiles {
    /// Its certificate, for every service.
    pub cert: PathBuf,
    /// Its private key, for nobody.
    pub key: PathBuf,
}

impl CaFiles {
    /// Where they are in the folder `dir`.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { cert: dir.join("ca.pem"), key: dir.join("ca.key") }
    }
}

/// Makes a CA in the folder `dir`, and the folder (mode 0700) if it is missing.
///
/// # Errors
/// [`PkiError::Exists`] if there is one already, or the files cannot be written.
pub fn init(dir: &Path, validity: Validity) -> Result<CaFiles, PkiError> {
    let files = CaFiles::in_dir(dir);
    refuse_existing([&files.cert, &files.key])?;
    create_dir(dir)?;

    let mut params = params(validity);
    // A name of its own: with equal names, a certificate of another CA would look like a forgery of ours.
    params.distinguished_name.push(DnType::CommonName, format!("Homeward CA {:08x}", rand::random::<u32>()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = params.self_signed(&key)?;

    write_new(&files.key, 0o600, &key.serialize_pem())?;
    write_new(&files.cert, 0o644, &cert.pem())?;
    Ok(files)
}

/// Issues a certificate for `identity` with the CA in the folder `dir`, into the folder `out`: the certificate,
/// its key (mode 0600) and a copy of `ca.pem`. Returned as a service's `[tls]` section wants them. It is cut to
/// the CA's own validity, since nobody checks that of a CA later.
///
/// # Errors
/// No CA in `dir`, a file that exists already, a CA that expires before `validity` begins, another CA in `out`.
pub fn issue(dir: &Path, identity: &Identity, out: &Path, validity: Validity) -> Result<TlsFiles, PkiError> {
    let ca = CaFiles::in_dir(dir);
    let ca_pem = read(&ca.cert)?;
    let ca_not_after = show::parse(&ca.cert, ca_pem.as_bytes())?.1.not_after;
    if ca_not_after <= validity.not_before {
        return Err(PkiError::CaExpired { path: ca.cert, not_after: ca_not_after });
    }
    let validity = Validity { not_after: validity.not_after.min(ca_not_after), ..validity };
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, KeyPair::from_pem(&read(&ca.key)?)?)?;

    let stem = format!("{}-{}", identity.role(), identity.name());
    let files = TlsFiles {
        ca: out.join("ca.pem"),
        cert: out.join(format!("{stem}.pem")),
        key: out.join(format!("{stem}.key")),
    };
    refuse_existing([&files.cert, &files.key])?;
    create_dir(out)?;
    copy_ca(&files.ca, &ca_pem)?;

    let mut params = params(validity);
    params.distinguished_name.push(DnType::CommonName, identity.to_string());
    params.subject_alt_names =
        vec![SanType::DnsName(TLS_NAME.try_into()?), SanType::URI(identity.to_uri().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A process server is a server to agents and a client of master targets; the role says the rest.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = params.signed_by(&key, &issuer)?;

    write_new(&files.key, 0o600, &key.serialize_pem())?;
    write_new(&files.cert, 0o644, &cert.pem())?;
    Ok(files)
}

/// Why keys cannot be made or shown.
#[derive(Debug, Error)]
pub enum PkiError {
    /// Never overwritten.
    #[error("{0} exists already, and keys are never overwritten; choose another folder or move it away")]
    Exists(PathBuf),
    /// There is another CA's certificate where a copy of ours would go.
    #[error("{0} is the certificate of another CA; choose another --out folder")]
    OtherCa(PathBuf),
    /// Nothing issued now would be accepted.
    #[error(
        "the CA {path} expired at {not_after}; make a new one with `homeward pki init` in another folder"
    )]
    CaExpired {
        /// Its certificate.
        path: PathBuf,
        /// When.
        not_after: Timestamp,
    },
    /// No CA, or no certificate, there.
    #[error("cannot read {path}: {source}; a CA is made with `homeward pki init`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Disk full, no permission.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not PEM.
    #[error("{path} is no PEM certificate: {why}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// PEM, but not X.509.
    #[error("{path} cannot be used: {source}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// The certificate library refuses, for example a CA key which is none.
    #[error("cannot make a certificate: {0}; check ca.pem and ca.key")]
    Make(#[from] rcgen::Error),
}

/// What all certificates have in common.
fn params(validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = SystemTime::from(validity.not_before).into();
    params.not_after = SystemTime::from(validity.not_after).into();
    // RFC 5280: positive, at most 20 bytes. 126 random bits under a leading 01.
    let mut serial = rand::random::<[u8; 16]>();
    serial[0] = serial[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn refuse_existing(paths: [&PathBuf; 2]) -> Result<(), PkiError> {
    match paths.into_iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(PkiError::Exists(path.clone())),
        None => Ok(()),
    }
}

fn create_dir(dir: &Path) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| PkiError::Write { path: dir.into(), source })
}

/// The copy of the CA's certificate next to a service's; there already after the first service.
fn copy_ca(path: &Path, pem: &str) -> Result<(), PkiError> {
    match write_new(path, 0o644, pem) {
        Err(PkiError::Exists(_)) if read(path)? == pem => Ok(()),
        Err(PkiError::Exists(path)) => Err(PkiError::OtherCa(path)),
        done => done,
    }
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), PkiError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists(path.into()),
        _ => PkiError::Write { path: path.into(), source },
    })
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.into(), source })
}
