//! Who a service is: its role and its name, and how both stand in a certificate.
//!
//! A certificate carries the identity as one subject alternative name of type URI,
//! `homeward://ROLE/NAME`, for example `homeward://process-server/ps-azure-1`. A URI, because TLS libraries
//! match DNS names and addresses against where one connects to, and ours must say who one talks to: services
//! move between addresses, names do not. The subject's common name repeats it for people and is never read.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

const SCHEME: &str = "homeward://";
const NAME_CHARS: usize = 63;

/// DNS name in every certificate of the private CA. A fixed one, because the standard check of a server's
/// certificate wants a DNS name to look for; the identity is what tells services apart.
pub const TLS_NAME: &str = "homeward.internal";

/// What a service may do. Each end of a connection demands a role of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sends the disks of the VM it runs on.
    Agent,
    /// Relays.
    ProcessServer,
    /// Writes VMware disks.
    MasterTarget,
    /// No service but a person: looks into drills from another machine.
    Operator,
}

impl Role {
    /// All, in the order data flows.
    pub const ALL: [Role; 4] = [Role::Agent, Role::ProcessServer, Role::MasterTarget, Role::Operator];

    /// As in certificates, configuration and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::ProcessServer => "process-server",
            Role::MasterTarget => "master-target",
            Role::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Role::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| IdentityError::UnknownRole(text.into()))
    }
}

/// A service, as its certificate names it. The name is 1 to 63 of `A-Z a-z 0-9 . _ -`, so it can be part of a
/// file name, a metric label or a log line as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawIdentity")]
pub struct Identity {
    role: Role,
    name: String,
}

#[derive(Deserialize)]
struct RawIdentity {
    role: Role,
    name: String,
}

impl TryFrom<RawIdentity> for Identity {
    type Error = IdentityError;

    fn try_from(raw: RawIdentity) -> Result<Self, IdentityError> {
        Identity::new(raw.role, raw.name)
    }
}

impl Identity {
    /// # Errors
    /// [`IdentityError::BadName`] if the name is empty, too long, has other characters, or is only dots.
    pub fn new(role: Role, name: impl Into<String>) -> Result<Self, IdentityError> {
        let name = name.into();
        let fits = (1..=NAME_CHARS).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && name.bytes().any(|b| b != b'.');
        if fits { Ok(Self { role, name }) } else { Err(IdentityError::BadName(name)) }
    }

    /// What it may do.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Which one of its role it is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `homeward://ROLE/NAME`, as it stands in the certificate.
    #[must_use]
    pub fn to_uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.role, self.name)
    }

    /// Reads `homeward://ROLE/NAME`; `None` if the URI is of another scheme and none of our business.
    ///
    /// # Errors
    /// If it is of our scheme but role or name are wrong.
    pub fn from_uri(uri: &str) -> Option<Result<Self, IdentityError>> {
        let (role, name) = uri.strip_prefix(SCHEME)?.split_once('/').unwrap_or_default();
        Some(role.parse().and_then(|role| Identity::new(role, name)))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// Why a text or a certificate names no service.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The role is none of ours.
    #[error("{0:?} is no role; use agent, process-server or master-target")]
    UnknownRole(String),
    /// The name breaks the rules.
    #[error("{0:?} is no service name; use 1 to 63 letters, digits, dots, underscores or hyphens")]
    BadName(String),
    /// The certificate has no `homeward://` URI.
    #[error("it carries no homeward:// identity; make it with `homeward pki issue`")]
    Missing,
    /// The certificate has several.
    #[error("it carries more than one homeward:// identity; make one for each service")]
    Ambiguous,
    /// The certificate is not one.
    #[error("it is no X.509 certificate: {0}")]
    NotACertificate(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_round_trips() {
        for role in Role::ALL {
            let identity = Identity::new(role, "a.B_9-x").unwrap();
            assert_eq!(Identity::from_uri(&identity.to_uri()), Some(Ok(identity)));
        }
    }

    #[test]
    fn other_uris_are_not_ours_and_broken_ones_are_errors() {
        assert_eq!(Identity::from_uri("https://agent/a"), None);
        for broken in [
            "homeward://",
            "homeward://agent",
            "homeward://agent/",
            "homeward://boss/a",
            "homeward://agent/a/b",
        ] {
            assert!(matches!(Identity::from_uri(broken), Some(Err(_))), "{broken}");
        }
    }

    #[test]
    fn names_are_safe_as_file_names() {
        for bad in ["", ".", "..", "a/b", "a b", "ü", "a\n", &"x".repeat(64)] {
            assert!(Identity::new(Role::Agent, bad).is_err(), "{bad:?}");
        }
        assert!(Identity::new(Role::Agent, "x".repeat(63)).is_ok());
    }

    #[test]
    fn serde_checks_names_and_uses_the_text_form_of_roles() {
        let identity: Identity = serde_json::from_str(r#"{"role":"process-server","name":"ps"}"#).unwrap();
        assert_eq!(identity, Identity::new(Role::ProcessServer, "ps").unwrap());
        assert!(serde_json::from_str::<Identity>(r#"{"role":"agent","name":"a/b"}"#).is_err());
        for role in Role::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
    }
}
