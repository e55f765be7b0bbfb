//! A service's keys, and the TLS settings made of them: version 1.3 only, both ends with certificates, our
//! private CA the only one trusted, no session resumption (it would skip the look at the certificate).
//!
//! Files are read once, at start: restart the service after renewing its certificate; nothing is lost by that.
//! There is no revocation list: to shut out a stolen key, make a new CA.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
    version::TLS13,
};
use serde::Deserialize;
use thiserror::Error;

use super::{
    certificate::Certificate,
    identity::{Identity, IdentityError, Role},
    sign::{self, SignError, Signature},
    verify::{ClientRole, ServerRole},
};

/// How long before a certificate expires the service begins to say so.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// The `[tls]` section of a service's configuration: PEM files made by `homeward pki`. Relative paths are
/// relative to the working directory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The private CA's certificate; several while one CA replaces another.
    pub ca: PathBuf,
    /// The service's certificate.
    pub cert: PathBuf,
    /// Its private key, readable by the service's user alone.
    pub key: PathBuf,
}

/// A service's certificate and key, checked to fit each other, and whom it trusts.
#[derive(Clone, Debug)]
pub struct Credentials {
    identity: Identity,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    own: Arc<SingleCertAndKey>,
    key: Arc<dyn SigningKey>,
    certificate: CertificateDer<'static>,
}

/// The CA certificates that a file holds: enough to check signatures.
#[derive(Clone, Debug)]
pub struct Authorities(Arc<RootCertStore>);

/// Settings of a listening service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerTls(pub(super) Arc<ServerConfig>);

/// Settings of a connecting service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientTls(pub(super) Arc<ClientConfig>);

impl Credentials {
    /// Reads the files of a service of role `role`. Warns in the log of certificates that have expired or soon
    /// will; it is the peers who refuse them.
    ///
    /// # Errors
    /// Each names the file: unreadable, no PEM, a key others can read, a key of another certificate, a
    /// certificate without identity or of another role.
    pub fn load(files: &TlsFiles, role: Role) -> Result<Self, TlsFileError> {
        let provider = Arc::new(ring::default_provider());

        let Authorities(roots) = Authorities::load(&files.ca)?;

        let chain = certificates(&files.cert)?;
        let own = parse(&files.cert, &chain[0])?;
        warn_of_expiry(&files.cert, &own);
        let identity =
            own.identity.map_err(|source| TlsFileError::Certificate { path: files.cert.clone(), source })?;
        if identity.role() != role {
            return Err(TlsFileError::WrongRole { path: files.cert.clone(), found: identity, role });
        }

        let certificate = chain[0].clone();
        let pair = CertifiedKey::from_der(chain, private_key(&files.key)?, &provider)
            .map_err(|source| TlsFileError::Unusable { path: files.key.clone(), source })?;
        let key = Arc::clone(&pair.key);
        Ok(Self { identity, provider, roots, own: Arc::new(SingleCertAndKey::from(pair)), key, certificate })
    }

    /// Signs a statement with the service's key.
    ///
    /// # Errors
    /// [`SignError::Key`], [`SignError::Sign`].
    pub fn sign(&self, message: &[u8]) -> Result<Signature, SignError> {
        sign::sign(self.key.as_ref(), &self.certificate, message)
    }

    /// Who we are.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Settings for a listener to which only services of the roles `allowed` may connect.
    ///
    /// # Errors
    /// Only if rustls refuses the settings, which the CA file decides.
    pub fn server(&self, allowed: &[Role]) -> Result<ServerTls, TlsFileError> {
        let webpki = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
            .build()
            .map_err(|error| TlsFileError::Settings(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| TlsFileError::Settings(error.to_string()))?
            .with_client_cert_verifier(Arc::new(ClientRole { webpki, allowed: allowed.to_vec() }))
            .with_cert_resolver(self.own.clone());
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(ServerTls(Arc::new(config)))
    }

    /// Settings for connecting to services of role `expected` only.
    ///
    /// # Errors
    /// As for [`Credentials::server`].
    pub fn client(&self, expected: Role) -> Result<ClientTls, TlsFileError> {
        let webpki = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
            .build()
            .map_err(|error| TlsFileError::Settings(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| TlsFileError::Settings(error.to_string()))?
            // "Dangerous" is rustls' word for any verifier not its own; ours adds a check and drops none.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerRole { webpki, expected }))
            .with_client_cert_resolver(self.own.clone());
        config.resumption = Resumption::disabled();
        Ok(ClientTls(Arc::new(config)))
    }
}

impl Authorities {
    /// Reads a CA file. Warns in the log of certificates that have expired or soon will.
    ///
    /// # Errors
    /// [`TlsFileError`], which names the file.
    pub fn load(path: &Path) -> Result<Self, TlsFileError> {
        let mut roots = RootCertStore::empty();
        for ca in certificates(path)? {
            warn_of_expiry(path, &parse(path, &ca)?);
            roots.add(ca).map_err(|source| TlsFileError::Unusable { path: path.into(), source })?;
        }
        Ok(Self(Arc::new(roots)))
    }

    /// Checks that a service of role `role`, with a certificate from here that was valid at `at`, signed `message`;
    /// returns who it is.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn check(
        &self,
        message: &[u8],
        signature: &Signature,
        role: Role,
        at: Timestamp,
    ) -> Result<Identity, SignError> {
        sign::check(&self.0, message, signature, role, at)
    }
}

/// What is wrong with the files of a service's `[tls]` section.
#[derive(Debug, Error)]
pub enum TlsFileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}; check the [tls] section and who may read the file")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not the PEM file it should be.
    #[error("{path} is no PEM file with {expected}: {source}; use the files made by `homeward pki`")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// Why.
        source: pem::Error,
    },
    /// Others can read the private key.
    #[error("the private key {path} has mode {mode:04o}: others may read it; run `chmod 600 {path}`")]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate cannot be read, or names no service.
    #[error("the certificate {path} cannot be used: {source}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// It is the certificate of another kind of service.
    #[error("the certificate {path} is for {found}, but this is a {role}; check the [tls] section")]
    WrongRole {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: Identity,
        /// What the service is.
        role: Role,
    },
    /// rustls cannot use it, as when a key does not belong to the certificate.
    #[error(
        "{path} cannot be used: {source}; certificate and key must be a pair made by `homeward pki issue`"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// rustls refuses the settings as a whole.
    #[error("TLS cannot be set up: {0}; check the ca file of the [tls] section")]
    Settings(String),
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let pem_error = |source| TlsFileError::Pem { path: path.into(), expected: "certificates", source };
    let bytes = std::fs::read(path).map_err(|source| TlsFileError::Read { path: path.into(), source })?;
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(pem_error)?;
    if found.is_empty() { Err(pem_error(pem::Error::NoItemsFound)) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let read_error = |source| TlsFileError::Read { path: path.into(), source };
    // Mode and content of one open file: nobody can swap it in between.
    let mut file = File::open(path).map_err(read_error)?;
    let mode = file.metadata().map_err(read_error)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TlsFileError::OpenKey { path: path.into(), mode });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(read_error)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|source| TlsFileError::Pem {
        path: path.into(),
        expected: "a private key",
        source,
    })
}

fn parse(path: &Path, der: &CertificateDer<'_>) -> Result<Certificate, TlsFileError> {
    Certificate::parse(der).map_err(|source| TlsFileError::Certificate { path: path.into(), source })
}

fn warn_of_expiry(path: &Path, certificate: &Certificate) {
    let not_after = certificate.not_after;
    let left = not_after.duration_since(Timestamp::now());
    if left < EXPIRES_SOON {
        let path = path.display();
        tracing::warn!(%path, %not_after, "certificate has expired or soon will; issue a new one with `homeward pki issue`");
    }
}
