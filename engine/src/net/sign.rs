//! Statements that a service signs with the key of its certificate, to be checked later by anybody who has the CA.
//!
//! ECDSA with P-256 and SHA-256, as all keys made by `homeward pki`. The certificate travels with the signature.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::{
    RootCertStore, SignatureScheme,
    pki_types::{CertificateDer, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    identity::{Identity, Role},
    verify::ClientRole,
};

/// Name of the algorithm in signatures.
const ALGORITHM: &str = "ecdsa-p256-sha256";

/// A signature with the certificate of who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// `ecdsa-p256-sha256`.
    pub algorithm: String,
    /// The signature, ASN.1 DER in hexadecimal.
    pub value: String,
    /// The signer's certificate, DER in hexadecimal.
    pub certificate: String,
}

/// Why there is no signature, or not one that counts.
#[derive(Debug, Error)]
pub enum SignError {
    /// The key is of another kind.
    #[error("this service's key cannot make {ALGORITHM} signatures; use one made by `homeward pki issue`")]
    Key,
    /// The key refused.
    #[error("signing failed: {0}")]
    Sign(rustls::Error),
    /// It is not put together as it should be.
    #[error("the signature is malformed: {0}")]
    Malformed(String),
    /// Its certificate is not from our CA, or not of who should sign.
    #[error("the signer's certificate is not accepted: {0}")]
    Signer(String),
    /// What was signed is something else.
    #[error("the signature does not match: what it is under was changed after it was signed")]
    Mismatch,
}

/// Makes a signature with `key`, which belongs to `certificate`.
pub(super) fn sign(
    key: &dyn rustls::sign::SigningKey,
    certificate: &CertificateDer<'_>,
    message: &[u8],
) -> Result<Signature, SignError> {
    let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).ok_or(SignError::Key)?;
    let value = signer.sign(message).map_err(SignError::Sign)?;
    let (value, certificate) = (Hex(&value).to_string(), Hex(certificate).to_string());
    Ok(Signature { algorithm: ALGORITHM.into(), value, certificate })
}

/// Checks that a service of role `role`, with a certificate from `roots` that was valid at `at`, signed `message`.
pub(super) fn check(
    roots: &Arc<RootCertStore>,
    message: &[u8],
    signature: &Signature,
    role: Role,
    at: Timestamp,
) -> Result<Identity, SignError> {
    let malformed = |what: &str| SignError::Malformed(what.to_owned());
    if signature.algorithm != ALGORITHM {
        return Err(malformed("its algorithm is unknown here"));
    }
    let value = unhex(&signature.value).ok_or_else(|| malformed("its value is not hexadecimal"))?;
    let der = unhex(&signature.certificate).ok_or_else(|| malformed("its certificate is not hexadecimal"))?;
    let certificate = CertificateDer::from(der);

    let refused = |error: &dyn fmt::Display| SignError::Signer(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let webpki = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider)
        .build()
        .map_err(|error| refused(&error))?;
    let seconds = u64::try_from(at.as_second()).map_err(|error| refused(&error))?;
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    ClientRole { webpki, allowed: vec![role] }
        .verify_client_cert(&certificate, &[], at)
        .map_err(|error| refused(&error))?;

    let (_, x509) = X509Certificate::from_der(&certificate).map_err(|error| refused(&error))?;
    let key = &x509.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.as_ref())
        .verify(message, &value)
        .map_err(|_| SignError::Mismatch)?;
    Identity::from_certificate(&certificate).map_err(|error| refused(&error))
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}
