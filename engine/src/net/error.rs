//! Why there is no connection: one type for both ends, each message with what to do about it.
//!
//! In TLS 1.3 a client has finished its handshake before the server has looked at the client's certificate.
//! A refused client therefore often learns of it only at its first read: pass that error through
//! [`NetError::from_io`] to get the same reasons.

use std::{io, time::Duration};

use jiff::Timestamp;
use rustls::{AlertDescription, CertificateError, InvalidMessage, PeerIncompatible, pki_types::UnixTime};
use thiserror::Error;

use super::identity::{Identity, IdentityError, Role};

/// A connection could not be made, or broke. Addresses are `host:port` as configured, or the peer's.
#[derive(Debug, Error)]
pub enum NetError {
    /// The service's own address could not be used.
    #[error(
        "cannot listen on {addr}: {source}; is another service there, or is the address not this machine's?"
    )]
    Bind {
        /// From the configuration.
        addr: String,
        /// Why.
        source: io::Error,
    },
    /// Name resolution or TCP failed.
    #[error(
        "cannot reach {addr}: {source}; is the service running there, and does a firewall let it through?"
    )]
    Connect {
        /// From the configuration.
        addr: String,
        /// Why.
        source: io::Error,
    },
    /// The peer did not finish its handshake in time.
    #[error("{peer} did not finish the TLS handshake within {} s; is it a Homeward service?", after.as_secs())]
    Timeout {
        /// The peer's address.
        peer: String,
        /// The limit.
        after: Duration,
    },
    /// One of the two ends would not talk to the other.
    #[error("connection with {peer} refused: {why}")]
    Refused {
        /// The peer's address.
        peer: String,
        /// Which end, and why.
        why: Box<Refusal>,
    },
    /// The connection broke.
    #[error("connection with {peer} broke: {source}")]
    Io {
        /// The peer's address.
        peer: String,
        /// Why.
        source: io::Error,
    },
}

impl NetError {
    /// An error met on a TLS stream. If TLS itself is at its root this is [`NetError::Refused`].
    #[must_use]
    pub fn from_io(peer: impl Into<String>, source: io::Error) -> Self {
        let peer = peer.into();
        match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => NetError::Refused { peer, why: Box::new(Refusal::from(tls)) },
            None => NetError::Io { peer, source },
        }
    }

    /// A short constant word for the reason, as a metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            NetError::Bind { .. } => "bind",
            NetError::Connect { .. } => "connect",
            NetError::Timeout { .. } => "timeout",
            NetError::Refused { why, .. } => why.label(),
            NetError::Io { .. } => "io",
        }
    }
}

/// Which end refused, and why. Unless said otherwise it was ours.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Refusal {
    /// The first bytes were not TLS.
    #[error(
        "it does not speak TLS, and Homeward has no plaintext mode; check its address and its [tls] section"
    )]
    Plaintext,
    /// TLS 1.2 or older.
    #[error("it does not speak TLS 1.3; update it, or check that it is a Homeward service")]
    OldTls,
    /// A client without a certificate.
    #[error("it showed no certificate; make one with `homeward pki issue` and name it in its [tls] section")]
    NoCertificate,
    /// Its certificate is too old.
    #[error("its certificate expired{}; issue a new one with `homeward pki issue`", at(.0))]
    Expired(Option<Timestamp>),
    /// Its certificate is for later.
    #[error("its certificate is not valid yet{}; check the clocks of both machines", at(.0))]
    NotYetValid(Option<Timestamp>),
    /// Its certificate was not signed by the CA we trust.
    #[error(
        "its certificate is from another CA; both ends need certificates issued with the same `homeward pki` folder"
    )]
    UnknownCa,
    /// Its certificate does not say who it is.
    #[error("its certificate does not say who it is: {0}")]
    NoIdentity(IdentityError),
    /// It is not what it must be here.
    #[error("it is {found}, but only {} may be there; check the address it was reached at, or its certificate", list(.allowed))]
    WrongRole {
        /// Who it is.
        found: Identity,
        /// Roles that may connect or be connected to.
        allowed: Vec<Role>,
    },
    /// Anything else about its certificate.
    #[error("its certificate is not acceptable: {0}; issue a new one with `homeward pki issue`")]
    BadCertificate(CertificateError),
    /// The peer refused us and told why.
    #[error("{}", by_peer(.0))]
    ByPeer(AlertDescription),
    /// The peer broke TLS's rules, or the bytes were changed on their way.
    #[error("TLS failed: {0}")]
    Protocol(rustls::Error),
}

impl Refusal {
    /// A short constant word for the reason, as a metric label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Refusal::Plaintext => "plaintext",
            Refusal::OldTls => "old_tls",
            Refusal::NoCertificate => "no_certificate",
            Refusal::Expired(_) => "expired",
            Refusal::NotYetValid(_) => "not_yet_valid",
            Refusal::UnknownCa => "unknown_ca",
            Refusal::NoIdentity(_) => "no_identity",
            Refusal::WrongRole { .. } => "wrong_role",
            Refusal::BadCertificate(_) => "bad_certificate",
            Refusal::ByPeer(_) => "refused_by_peer",
            Refusal::Protocol(_) => "tls",
        }
    }
}

impl From<&rustls::Error> for Refusal {
    fn from(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Refusal::Plaintext,
            rustls::Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            )
            | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => Refusal::OldTls,
            rustls::Error::NoCertificatesPresented => Refusal::NoCertificate,
            rustls::Error::InvalidCertificate(certificate) => Refusal::from(certificate),
            rustls::Error::AlertReceived(alert) => Refusal::ByPeer(*alert),
            other => Refusal::Protocol(other.clone()),
        }
    }
}

impl From<&CertificateError> for Refusal {
    fn from(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired => Refusal::Expired(None),
            CertificateError::ExpiredContext { not_after, .. } => Refusal::Expired(timestamp(*not_after)),
            CertificateError::NotValidYet => Refusal::NotYetValid(None),
            CertificateError::NotValidYetContext { not_before, .. } => {
                Refusal::NotYetValid(timestamp(*not_before))
            }
            CertificateError::UnknownIssuer => Refusal::UnknownCa,
            // Our own verifiers send their reasons through rustls this way: see `verify`.
            CertificateError::Other(other) => match other.0.downcast_ref::<Refusal>() {
                Some(ours) => ours.clone(),
                None => Refusal::BadCertificate(error.clone()),
            },
            other => Refusal::BadCertificate(other.clone()),
        }
    }
}

fn timestamp(time: UnixTime) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok()
}

fn at(time: &Option<Timestamp>) -> String {
    time.map(|time| format!(" ({time})")).unwrap_or_default()
}

fn list(roles: &[Role]) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" or ")
}

fn by_peer(alert: &AlertDescription) -> String {
    let why = match alert {
        AlertDescription::CertificateExpired => {
            "our certificate is expired or not yet valid by its clock; check both clocks, then issue a new \
             one with `homeward pki issue`"
        }
        AlertDescription::UnknownCA => {
            "our certificate is from a CA it does not know; both ends need certificates issued with the same \
             `homeward pki` folder"
        }
        // What our verifiers' own refusals arrive as.
        AlertDescription::CertificateUnknown => {
            "it does not accept our role; check the address in the configuration, and our certificate with \
             `homeward pki show`; its log has the details"
        }
        AlertDescription::CertificateRequired => "it wants a certificate from us",
        other => return format!("it refused us ({other:?}); its log has the details"),
    };
    format!("it refused us: {why}")
}
