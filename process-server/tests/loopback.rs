//! The driver with real TLS, sockets, threads and files: an agent's frames reach a master target, also over a
//! restart of the process server, and stopping ends.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of a test are not in test functions

use std::{path::Path, sync::Arc, time::Duration};

use engine::{
    extent::Extent,
    frame::{ContentBuilder, Control, DiskInfo, Frame, PROTOCOL, Packed, Payload, Position, StreamInfo},
    net::{Credentials, Listener, Peer, Role, TlsFiles, connect},
    service::{metrics, shutdown::Shutdown},
    session::{Link, Message},
    units::{DiskIndex, Seq, StreamId},
};
use process_server::{
    driver::{Server, Settings},
    metrics::Metrics,
    node::TargetStatus,
    spool::Bounds,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(9));

fn make_keys(dir: &Path) -> impl Fn(Role) -> Credentials {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new([]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let dir = dir.to_owned();
    move |role| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([engine::net::identity::TLS_NAME.to_owned()]).unwrap();
        let uri = format!("homeward://{role}/one").try_into().unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
        let path = |ending: &str| dir.join(format!("{role}.{ending}"));
        std::fs::write(path("pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path("key"), private).unwrap();
        Credentials::load(&TlsFiles { ca: dir.join("ca.pem"), cert: path("pem"), key: path("key") }, role)
            .unwrap()
    }
}

/// A connection that speaks in messages.
struct Talk {
    peer: Peer,
    link: Link,
}

impl Talk {
    fn new(peer: Peer) -> Self {
        Self { peer, link: Link::new(None, std::time::Instant::now()) }
    }

    async fn say(&mut self, frame: &Frame) {
        self.peer.stream.write_all(frame.bytes()).await.unwrap();
        self.peer.stream.flush().await.unwrap();
    }

    /// The next message; none when the connection has ended.
    async fn hear(&mut self) -> Option<Message> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(message) = self.link.poll_message().unwrap() {
                return Some(message);
            }
            let read = self.peer.stream.read(&mut buffer).await.unwrap_or(0);
            if read == 0 {
                return None;
            }
            self.link.handle_bytes(&buffer[..read], std::time::Instant::now());
        }
    }
}

/// A master target that checks every chain, acknowledges every frame, and survives its connections.
async fn target(listener: Listener) {
    let mut position = Position::START;
    loop {
        let mut talk = Talk::new(listener.accept().await.handshake().await.unwrap());
        while let Some(message) = talk.hear().await {
            let answer = match message {
                Message::Control(Control::Hello { .. }) => {
                    Control::Welcome { position, durable: position.seq, window: 8 << 20, adopted: false }
                }
                Message::Frame(frame) => {
                    frame.open(position.chain).unwrap();
                    position = Position::after(frame.header());
                    Control::Ack { spooled: position.seq, durable: position.seq }
                }
                other => panic!("{other:?}"),
            };
            talk.say(&answer.to_frame(STREAM)).await;
        }
    }
}

fn frame(before: &Position) -> Frame {
    let mut noise = vec![0; 256 << 10];
    blake3::Hasher::new().update(&before.seq.0.to_le_bytes()).finalize_xof().fill(&mut noise);
    let mut content = ContentBuilder::default();
    content.push(Extent::new(0, 64), Payload::Data(&noise));
    Packed::data(DiskIndex(0), &content.finish(), 1, 1).seal(STREAM, before)
}

/// Says Hello, sends `count` frames, and stays until they are durable.
async fn agent(addr: &str, keys: &Credentials, count: u64) -> Position {
    let tls = keys.client(Role::ProcessServer).unwrap();
    let mut talk = Talk::new(connect(addr, &tls).await.unwrap());
    let disk = DiskInfo { name: "sda".into(), bytes: 1 << 30, used_bytes: 0 };
    let stream = StreamInfo { id: STREAM, vm: "web".into(), disks: vec![disk] };
    let hello = Control::Hello { protocol: PROTOCOL, agent: "one".into(), stream };
    talk.say(&hello.to_frame(STREAM)).await;
    let Some(Message::Control(Control::Welcome { position: mut last, .. })) = talk.hear().await else {
        panic!("no welcome")
    };
    let end = Seq(last.seq.0 + count);
    while last.seq < end {
        let next = frame(&last);
        last = Position::after(next.header());
        talk.say(&next).await;
    }
    loop {
        match talk.hear().await {
            Some(Message::Control(Control::Ack { durable, .. })) if durable == end => return last,
            Some(Message::Control(Control::Ack { .. })) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_arrive_over_real_connections_and_stopping_ends() {
    let dir = tempfile::tempdir().unwrap();
    let keys = make_keys(dir.path());
    let (target_keys, own_keys, agent_keys) =
        (keys(Role::MasterTarget), keys(Role::ProcessServer), keys(Role::Agent));
    let listener = Listener::bind("127.0.0.1:0", target_keys.server(&[Role::ProcessServer]).unwrap());
    let listener = listener.await.unwrap();
    let settings = Settings {
        target: listener.local_addr().unwrap().to_string(),
        target_tls: own_keys.client(Role::MasterTarget).unwrap(),
        spool: dir.path().to_owned(),
        bounds: Bounds::new(1 << 30, 1 << 30),
        rate: None,
        groups: Vec::new(),
    };
    tokio::spawn(target(listener));
    let story = async {
        let mut expected = Seq(0);
        for run in 0..3 {
            let server = Server::new(settings.clone(), Metrics::register(&mut metrics::registry()));
            let tls = own_keys.server(&[Role::Agent]).unwrap();
            let listener = Listener::bind("127.0.0.1:0", tls).await.unwrap();
            let addr = listener.local_addr().unwrap().to_string();
            let stop = Shutdown::manual();
            let serving = tokio::spawn(Arc::clone(&server).serve(listener, stop.clone()));
            let end = agent(&addr, &agent_keys, 40).await;
            expected.0 += 40;
            assert_eq!(end.seq, expected, "run {run} goes on where the one before ended");
            // It is published just after the agent is told.
            let published = |server: &Server| {
                let status = &server.status().streams[0].status;
                (status.durable, status.target) == (end.seq, TargetStatus::Connected)
            };
            while !published(&server) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            stop.request();
            serving.await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), story).await.expect("it all ends within a minute");
}
