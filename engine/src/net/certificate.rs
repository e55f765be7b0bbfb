//! What Homeward reads from an X.509 certificate: identity and validity.
//!
//! It verifies nothing: signatures, chain and dates are rustls' and webpki's work, before anybody asks here.

use jiff::Timestamp;
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::identity::{Identity, IdentityError};

/// What one certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is; why not, for a CA or a stranger's.
    pub identity: Result<Identity, IdentityError>,
    /// First moment of its validity.
    pub not_before: Timestamp,
    /// Last moment of its validity.
    pub not_after: Timestamp,
    /// Whether it may sign others.
    pub is_ca: bool,
}

impl Certificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// [`IdentityError::NotACertificate`].
    pub fn parse(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, x509) = X509Certificate::from_der(der)
            .map_err(|error| IdentityError::NotACertificate(error.to_string()))?;
        Ok(Self {
            identity: identity(&x509),
            not_before: timestamp(x509.validity().not_before)?,
            not_after: timestamp(x509.validity().not_after)?,
            is_ca: x509.is_ca(),
        })
    }
}

impl Identity {
    /// Reads the identity from a certificate in DER, which rustls has verified.
    ///
    /// # Errors
    /// If it is no certificate or does not carry exactly one identity.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        Certificate::parse(der)?.identity
    }
}

fn identity(x509: &X509Certificate<'_>) -> Result<Identity, IdentityError> {
    let names = x509
        .subject_alternative_name()
        .map_err(|error| IdentityError::NotACertificate(error.to_string()))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut ours = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Identity::from_uri(uri),
        _ => None,
    });
    let first = ours.next().ok_or(IdentityError::Missing)?;
    if ours.next().is_some() {
        return Err(IdentityError::Ambiguous);
    }
    first
}

fn timestamp(time: ASN1Time) -> Result<Timestamp, IdentityError> {
    Timestamp::from_second(time.timestamp())
        .map_err(|error| IdentityError::NotACertificate(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubbish_is_no_certificate() {
        for rubbish in [&b""[..], b"\x30\x82\xff\xff", &[0x30; 4096]] {
            assert!(matches!(Certificate::parse(rubbish), Err(IdentityError::NotACertificate(_))));
        }
    }
}
