//! The certificate of a proof: what was compared, with what result, under the master target's signature.
//!
//! A JSON object with two members, `statement` and `signature`. What is signed is the statement as JSON with its keys
//! sorted and without spaces, so that any tool can check it. Format: docs/formats.md, "Certificate of a proof".

use engine::{
    net::{Authorities, Credentials, Role, SignError, Signature},
    point::PointId,
    units::{Digest, Epoch, StreamId},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the statement. 1, 2026-11: the first.
pub const VERSION: u32 = 1;

/// One disk of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskProof {
    /// Its name within the VM.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Root of its digest tree at the point, as it can be restored.
    pub root: Digest,
    /// What was compared.
    #[serde(flatten)]
    pub coverage: Coverage,
}

/// How the leaves of a disk were compared. All that were, were equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Leaves of 64 KiB.
    pub leaves: u64,
    /// Those compared as of the point itself.
    pub direct: u64,
    /// Those that were overwritten after the point before they could be, and were compared as of a later point.
    pub later: u64,
}

impl Coverage {
    /// Adds those of another disk.
    pub fn add(&mut self, other: Coverage) {
        self.leaves += other.leaves;
        self.direct += other.direct;
        self.later += other.later;
    }

    /// Leaves that were compared.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.direct + self.later
    }
}

/// What the master target states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// [`VERSION`].
    pub version: u32,
    /// Version of Homeward.
    pub homeward: String,
    /// Name of the master target.
    pub issuer: String,
    /// The VM.
    pub vm: String,
    /// Its replication.
    pub stream: StreamId,
    /// Its agent, who computed the source's digests.
    pub agent: String,
    /// The point.
    pub point: PointId,
    /// The epoch that it ends.
    pub epoch: Epoch,
    /// Its instant, by the agent's clock.
    pub taken_at: Timestamp,
    /// Digest that names exactly the frames that made it.
    pub chain: Digest,
    /// Its disks, in the stream's order.
    pub disks: Vec<DiskProof>,
    /// When comparing began, by the master target's clock.
    pub begun_at: Timestamp,
    /// When it was complete.
    pub completed_at: Timestamp,
    /// The last point as of which something was compared: the point itself if all was direct.
    pub settled_by: Epoch,
}

/// A statement with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// What is stated.
    pub statement: Statement,
    /// By whom.
    pub signature: Signature,
}

/// Why a certificate does not count.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It does not parse.
    #[error("this is no certificate of a proof: {0}")]
    Malformed(String),
    /// Of a version that is not known here.
    #[error(
        "the certificate is of version {0}, which is unknown here: use the version of Homeward that wrote it"
    )]
    Version(u32),
    /// The signature is not good.
    #[error(transparent)]
    Signature(#[from] SignError),
    /// It was signed by somebody else than it says.
    #[error("it says that {issuer:?} issued it, but {signer:?} signed it")]
    Issuer {
        /// As it says.
        issuer: String,
        /// As its signature says.
        signer: String,
    },
}

/// Signs statements: the master target's credentials, or a test's.
pub trait Sign: Send + Sync {
    /// Who signs.
    fn name(&self) -> &str;

    /// Signs a message.
    ///
    /// # Errors
    /// [`SignError`].
    fn sign(&self, message: &[u8]) -> Result<Signature, SignError>;
}

impl Sign for Credentials {
    fn name(&self) -> &str {
        self.identity().name()
    }

    fn sign(&self, message: &[u8]) -> Result<Signature, SignError> {
        Credentials::sign(self, message)
    }
}

impl Statement {
    /// What all disks come to.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        let mut all = Coverage::default();
        self.disks.iter().for_each(|disk| all.add(disk.coverage));
        all
    }

    /// Signs it.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn certify(self, signer: &dyn Sign) -> Result<Certificate, SignError> {
        // Plain data with string keys: turning it into JSON cannot fail.
        #[allow(clippy::expect_used)]
        let value = serde_json::to_value(&self).expect("statements serialise");
        let signature = signer.sign(signed(&value).as_bytes())?;
        Ok(Certificate { statement: self, signature })
    }
}

impl Certificate {
    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // As above.
        #[allow(clippy::expect_used)]
        serde_json::to_string_pretty(self).expect("certificates serialise")
    }

    /// Reads a certificate without checking its signature: one that this master target keeps.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`], [`CertificateError::Version`].
    pub fn parse(json: &str) -> Result<Self, CertificateError> {
        Ok(read(json)?.1)
    }

    /// Reads a certificate and checks that a master target with a certificate of `authorities` signed exactly this.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn check(json: &str, authorities: &Authorities) -> Result<Self, CertificateError> {
        let (statement, certificate) = read(json)?;
        let at = certificate.statement.completed_at;
        // As it was read, not as it is understood: nothing may be added to it either.
        let message = signed(&statement);
        let signer = authorities.check(message.as_bytes(), &certificate.signature, Role::MasterTarget, at)?;
        if signer.name() != certificate.statement.issuer {
            let (issuer, signer) = (certificate.statement.issuer, signer.name().to_owned());
            return Err(CertificateError::Issuer { issuer, signer });
        }
        Ok(certificate)
    }
}

/// The statement as it stands there, and the certificate as it is understood.
fn read(json: &str) -> Result<(Value, Certificate), CertificateError> {
    let malformed = |error: serde_json::Error| CertificateError::Malformed(error.to_string());
    let value: Value = serde_json::from_str(json).map_err(malformed)?;
    let statement = value.get("statement").cloned().unwrap_or_default();
    match statement.get("version").and_then(Value::as_u64) {
        Some(version) if version != u64::from(VERSION) => {
            return Err(CertificateError::Version(u32::try_from(version).unwrap_or(u32::MAX)));
        }
        _ => {}
    }
    Ok((statement, serde_json::from_value(value).map_err(malformed)?))
}

/// What is signed of a statement.
fn signed(statement: &Value) -> String {
    sorted(statement).to_string()
}

/// The same value with all keys in order, whatever order this build of the parser keeps.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            Value::Object(members.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(sorted).collect()),
        other => other.clone(),
    }
}
