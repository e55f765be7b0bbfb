//! Certificate verifiers: everything webpki checks, and then the role.
//!
//! Both wrap rustls' own verifiers, which check the chain up to our CA, its constraints, the dates, the purpose
//! and the handshake's signature. Only if all that holds the identity is read. Doing it inside the handshake,
//! and not after it, means that a refused peer gets a TLS alert instead of a closed connection.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::{
    error::Refusal,
    identity::{Identity, Role},
};

/// A client's view of a server.
#[derive(Debug)]
pub(super) struct ServerRole {
    pub(super) webpki: Arc<WebPkiServerVerifier>,
    pub(super) expected: Role,
}

/// A server's view of its clients.
#[derive(Debug)]
pub(super) struct ClientRole {
    pub(super) webpki: Arc<dyn ClientCertVerifier>,
    pub(super) allowed: Vec<Role>,
}

/// Refuses a certificate, already verified, whose identity has none of the allowed roles.
fn check_role(certificate: &CertificateDer<'_>, allowed: &[Role]) -> Result<(), Error> {
    let refusal = match Identity::from_certificate(certificate) {
        Ok(identity) if allowed.contains(&identity.role()) => return Ok(()),
        Ok(found) => Refusal::WrongRole { found, allowed: allowed.to_vec() },
        Err(error) => Refusal::NoIdentity(error),
    };
    Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal)))))
}

impl ServerCertVerifier for ServerRole {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        check_role(end_entity, &[self.expected])?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

impl ClientCertVerifier for ClientRole {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.webpki.verify_client_cert(end_entity, intermediates, now)?;
        check_role(end_entity, &self.allowed)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
