//! Who may talk to whom: real certificates, real TLS, over loopback. Each refusal has its own typed error on the
//! side that sees it, and the other side learns of it too.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    limits,
    net::{
        ClientTls, Credentials, Identity, Listener, NetError, Peer, Refusal, Role, ServerTls, TlsFileError,
        TlsFiles, connect, identity::TLS_NAME,
    },
};
use homeward::pki::{self, PkiError, Validity};
use jiff::{SignedDuration, Timestamp};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// A CA and what it issued.
struct Ca(TempDir);

impl Ca {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        pki::init(dir.path(), Validity::days(10)).unwrap();
        Self(dir)
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn issue(&self, role: Role, validity: Validity) -> Credentials {
        Credentials::load(&self.files(role, validity), role).unwrap()
    }

    fn files(&self, role: Role, validity: Validity) -> TlsFiles {
        let identity = Identity::new(role, format!("n{}", rand::random::<u32>())).unwrap();
        pki::issue(self.dir(), &identity, self.dir(), validity).unwrap()
    }

    /// A process server that only agents may connect to.
    fn process_server(&self) -> ServerTls {
        self.issue(Role::ProcessServer, valid()).server(&[Role::Agent]).unwrap()
    }

    fn agent(&self) -> ClientTls {
        self.issue(Role::Agent, valid()).client(Role::ProcessServer).unwrap()
    }
}

fn valid() -> Validity {
    Validity::days(1)
}

fn hours(from: i64, to: i64) -> Validity {
    let at = |hours| Timestamp::now() + SignedDuration::from_hours(hours);
    Validity { not_before: at(from), not_after: at(to) }
}

/// What server and client get when they meet. A client reads one byte, as every session begins by reading.
async fn meet(server: ServerTls, client: &ClientTls) -> (Result<Peer, NetError>, Result<Identity, NetError>) {
    let listener = Listener::bind("127.0.0.1:0", server).await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let serving = async {
        let mut peer = listener.accept().await.handshake().await?;
        peer.stream.write_all(b"!").await.unwrap();
        peer.stream.flush().await.unwrap();
        Ok(peer)
    };
    let connecting = async {
        let mut peer = connect(&addr, client).await?;
        peer.stream.read_u8().await.map_err(|error| NetError::from_io(&addr, error))?;
        Ok(peer.identity)
    };
    tokio::join!(serving, connecting)
}

/// What a server gets from a client that is none of ours.
async fn meet_stranger<F: Future<Output = ()>>(
    server: ServerTls,
    client: impl FnOnce(SocketAddr) -> F,
) -> NetError {
    let listener = Listener::bind("127.0.0.1:0", server).await.unwrap();
    let addr = listener.local_addr().unwrap();
    // A peer let in by mistake is hung up on, so that its side ends too.
    let serving = async { listener.accept().await.handshake().await.map(drop) };
    let (served, ()) = tokio::join!(serving, client(addr));
    served.expect_err("a stranger was let in")
}

#[track_caller]
fn refusal<T>(result: Result<T, NetError>) -> Refusal {
    match result {
        Err(NetError::Refused { why, .. }) => *why,
        Err(other) => panic!("not refused but: {other}"),
        Ok(_) => panic!("let in"),
    }
}

#[track_caller]
fn assert_refused_by_peer<T>(result: Result<T, NetError>, hint: &str) {
    let why = refusal(result);
    assert!(matches!(why, Refusal::ByPeer(_)), "{why}");
    assert!(why.to_string().contains(hint), "{why}");
}

#[tokio::test]
async fn the_right_roles_connect_and_know_each_other() {
    let ca = Ca::new();
    let server = ca.issue(Role::ProcessServer, valid());
    let client = ca.issue(Role::Agent, valid());
    let (served, connected) =
        meet(server.server(&[Role::Agent]).unwrap(), &client.client(Role::ProcessServer).unwrap()).await;
    assert_eq!(&served.unwrap().identity, client.identity());
    assert_eq!(&connected.unwrap(), server.identity());
}

#[tokio::test]
async fn a_client_of_a_wrong_role_is_refused_and_told() {
    let ca = Ca::new();
    let client = ca.issue(Role::MasterTarget, valid());
    let (served, connected) = meet(ca.process_server(), &client.client(Role::ProcessServer).unwrap()).await;
    let expected = Refusal::WrongRole { found: client.identity().clone(), allowed: vec![Role::Agent] };
    assert_eq!(refusal(served), expected);
    assert_refused_by_peer(connected, "does not accept our role");
}

#[tokio::test]
async fn a_server_of_a_wrong_role_is_refused_and_told() {
    let ca = Ca::new();
    let server = ca.issue(Role::MasterTarget, valid());
    let (served, connected) = meet(server.server(&[Role::Agent]).unwrap(), &ca.agent()).await;
    let expected =
        Refusal::WrongRole { found: server.identity().clone(), allowed: vec![Role::ProcessServer] };
    assert_eq!(refusal(connected), expected);
    assert_refused_by_peer(served, "does not accept our role");
}

#[tokio::test]
async fn expired_certificates_are_refused_on_either_side() {
    let ca = Ca::new();
    let client = ca.issue(Role::Agent, hours(-2, -1)).client(Role::ProcessServer).unwrap();
    let (served, connected) = meet(ca.process_server(), &client).await;
    assert!(matches!(refusal(served), Refusal::Expired(Some(_))));
    assert_refused_by_peer(connected, "expired");

    let server = ca.issue(Role::ProcessServer, hours(-2, -1)).server(&[Role::Agent]).unwrap();
    let (served, connected) = meet(server, &ca.agent()).await;
    assert!(matches!(refusal(connected), Refusal::Expired(Some(_))));
    assert_refused_by_peer(served, "expired");
}

#[tokio::test]
async fn certificates_for_later_are_refused_on_either_side() {
    let ca = Ca::new();
    let client = ca.issue(Role::Agent, hours(1, 2)).client(Role::ProcessServer).unwrap();
    let (served, connected) = meet(ca.process_server(), &client).await;
    assert!(matches!(refusal(served), Refusal::NotYetValid(Some(_))));
    assert_refused_by_peer(connected, "not yet valid");

    let server = ca.issue(Role::ProcessServer, hours(1, 2)).server(&[Role::Agent]).unwrap();
    let (served, connected) = meet(server, &ca.agent()).await;
    assert!(matches!(refusal(connected), Refusal::NotYetValid(Some(_))));
    assert_refused_by_peer(served, "not yet valid");
}

/// Trusts the CA `trusted`, but shows a certificate of the CA `own`.
fn of_another_ca(own: &Ca, trusted: &Ca, role: Role) -> Credentials {
    let files = TlsFiles { ca: trusted.dir().join("ca.pem"), ..own.files(role, valid()) };
    Credentials::load(&files, role).unwrap()
}

#[tokio::test]
async fn certificates_of_another_ca_are_refused_on_either_side() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let client = of_another_ca(&theirs, &ours, Role::Agent).client(Role::ProcessServer).unwrap();
    let (served, connected) = meet(ours.process_server(), &client).await;
    assert_eq!(refusal(served), Refusal::UnknownCa);
    assert_refused_by_peer(connected, "a CA it does not know");

    let server = of_another_ca(&theirs, &ours, Role::ProcessServer).server(&[Role::Agent]).unwrap();
    let (served, connected) = meet(server, &ours.agent()).await;
    assert_eq!(refusal(connected), Refusal::UnknownCa);
    assert_refused_by_peer(served, "a CA it does not know");
}

/// A plain rustls client, not ours, which trusts the CA.
async fn plain_tls(
    addr: SocketAddr,
    ca: PathBuf,
    version: &'static rustls::SupportedProtocolVersion,
    files: Option<TlsFiles>,
) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let config = match files {
        Some(files) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(files.cert).unwrap()],
                PrivateKeyDer::from_pem_file(files.key).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from(TLS_NAME).unwrap();
    // How it fails, or that in TLS 1.3 it does not yet, is the client's affair.
    if let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        let _ = stream.read(&mut [0; 1]).await;
    }
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let ca = Ca::new();
    let cert = ca.dir().join("ca.pem");
    let error = meet_stranger(ca.process_server(), |addr| plain_tls(addr, cert, &TLS13, None)).await;
    assert_eq!(refusal::<()>(Err(error)), Refusal::NoCertificate);
}

#[tokio::test]
async fn tls_1_2_is_refused_even_with_a_good_certificate() {
    let ca = Ca::new();
    let cert = ca.dir().join("ca.pem");
    let files = ca.files(Role::Agent, valid());
    let error = meet_stranger(ca.process_server(), |addr| plain_tls(addr, cert, &TLS12, Some(files))).await;
    assert_eq!(refusal::<()>(Err(error)), Refusal::OldTls);
}

/// A certificate of our CA, as another tool with the CA's key could make it, that names no service.
fn anonymous(ca: &Ca) -> TlsFiles {
    let read = |name: &str| std::fs::read_to_string(ca.dir().join(name)).unwrap();
    let issuer_key = rcgen::KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.pem"), issuer_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new([TLS_NAME.to_owned()]).unwrap();
    let files = TlsFiles {
        ca: ca.dir().join("ca.pem"),
        cert: ca.dir().join("anonymous.pem"),
        key: ca.dir().join("anonymous.key"),
    };
    std::fs::write(&files.cert, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    files
}

#[tokio::test]
async fn a_certificate_without_identity_is_refused_also_by_its_own_service() {
    let ca = Ca::new();
    let files = anonymous(&ca);
    let error = Credentials::load(&files, Role::Agent).unwrap_err();
    assert!(matches!(error, TlsFileError::Certificate { .. }), "{error}");

    let cert = files.ca.clone();
    let error = meet_stranger(ca.process_server(), |addr| plain_tls(addr, cert, &TLS13, Some(files))).await;
    let why = refusal::<()>(Err(error));
    assert!(matches!(why, Refusal::NoIdentity(_)), "{why}");
}

#[tokio::test]
async fn plaintext_is_refused_on_either_side() {
    let ca = Ca::new();
    let error = meet_stranger(ca.process_server(), async |addr| {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    assert_eq!(refusal::<()>(Err(error)), Refusal::Plaintext);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let agent = ca.agent();
    let serving = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        // Keeps the connection open until the client has read that and gone.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    let ((), connected) = tokio::join!(serving, connect(&addr, &agent));
    assert_eq!(refusal(connected), Refusal::Plaintext);
}

/// With the clock paused, tokio jumps to the next timer as soon as nothing else can happen.
#[tokio::test(start_paused = true)]
async fn a_silent_client_is_dropped_at_the_limit() {
    let ca = Ca::new();
    let listener = Listener::bind("127.0.0.1:0", ca.process_server()).await.unwrap();
    let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let incoming = listener.accept().await;
    let begin = tokio::time::Instant::now();
    let error = incoming.handshake().await.unwrap_err();
    assert!(matches!(error, NetError::Timeout { after, .. } if after == limits::HANDSHAKE), "{error}");
    assert_eq!(begin.elapsed().as_secs(), limits::HANDSHAKE.as_secs());
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    let ca = Ca::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = connect(&free, &ca.agent()).await.unwrap_err();
    assert!(matches!(&error, NetError::Connect { addr, .. } if *addr == free), "{error}");
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let ca = Ca::new();
    let files = ca.files(Role::Agent, valid());
    for mode in [0o640, 0o604, 0o644] {
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = Credentials::load(&files, Role::Agent).unwrap_err();
        assert!(matches!(error, TlsFileError::OpenKey { .. }), "{error}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let ca = Ca::new();
    let (agent, other) = (ca.files(Role::Agent, valid()), ca.files(Role::Agent, valid()));
    let load = |files: &TlsFiles| Credentials::load(files, Role::Agent).unwrap_err();

    let error = load(&TlsFiles { key: other.key, ..agent.clone() });
    assert!(matches!(error, TlsFileError::Unusable { .. }), "{error}");
    let error = load(&TlsFiles { ca: agent.key.clone(), ..agent.clone() });
    assert!(matches!(error, TlsFileError::Pem { .. }), "{error}");
    let error = load(&TlsFiles { cert: "/nonexistent.pem".into(), ..agent.clone() });
    assert!(matches!(error, TlsFileError::Read { .. }), "{error}");
    let error = Credentials::load(&agent, Role::MasterTarget).unwrap_err();
    assert!(matches!(error, TlsFileError::WrongRole { .. }), "{error}");
}

#[test]
fn keys_are_never_overwritten() {
    let ca = Ca::new();
    let before = std::fs::read(ca.dir().join("ca.key")).unwrap();
    assert!(matches!(pki::init(ca.dir(), valid()), Err(PkiError::Exists(_))));
    assert_eq!(std::fs::read(ca.dir().join("ca.key")).unwrap(), before);

    let identity = Identity::new(Role::Agent, "a").unwrap();
    pki::issue(ca.dir(), &identity, ca.dir(), valid()).unwrap();
    assert!(matches!(pki::issue(ca.dir(), &identity, ca.dir(), valid()), Err(PkiError::Exists(_))));
    let other = Ca::new();
    assert!(matches!(pki::issue(ca.dir(), &identity, other.dir(), valid()), Err(PkiError::OtherCa(_))));
}

#[test]
fn certificates_are_as_documented() {
    let ca = Ca::new();
    let files = ca.files(Role::ProcessServer, Validity::days(10_000));
    for key in [ca.dir().join("ca.key"), files.key] {
        assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let (root, leaf) = (pki::show(&files.ca).unwrap(), pki::show(&files.cert).unwrap());
    assert_eq!((root.kind, root.role), ("ca", None));
    assert_eq!((leaf.kind, leaf.role), ("service", Some(Role::ProcessServer)));
    assert_eq!(leaf.not_after, root.not_after, "cut to the CA's validity");
    assert!(leaf.valid_now && leaf.fingerprint.len() == 32 * 3 - 1, "{leaf}");
}
