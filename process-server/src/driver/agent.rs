//! An agent's connection: TLS, its Hello, then bytes to the stream's thread and answers back.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use engine::{
    frame::Refusal,
    limits as engine_limits,
    net::{Incoming, NetError, Peer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

use super::{Server, event::Event};
use crate::{
    greeting::{Greeting, GreetingError, Hello},
    limits,
};

/// Answers that wait for the socket. An agent that lets more pile up does not read them.
const ANSWERS: usize = 256;

pub(super) async fn serve(server: Arc<Server>, incoming: Incoming) {
    let addr = incoming.addr();
    match incoming.handshake().await {
        Ok(peer) => {
            let who = peer.identity.to_string();
            match converse(&server, peer).await {
                Ok(()) => tracing::info!(peer = %who, %addr, "disconnected"),
                Err(reason) => tracing::warn!(peer = %who, %addr, %reason, "connection ended"),
            }
        }
        Err(error) => {
            server.note_refused(error.label());
            tracing::warn!(%error, "refused a connection");
        }
    }
}

async fn converse(server: &Arc<Server>, peer: Peer) -> Result<(), String> {
    let who = peer.identity.to_string();
    let broken = |error| NetError::from_io(&who, error).to_string();
    let (mut reader, mut writer) = tokio::io::split(peer.stream);
    let mut buffer = vec![0; limits::READ];

    let mut greeting = Greeting::new(peer.identity.name(), Instant::now());
    let greet = async {
        loop {
            let read = reader.read(&mut buffer).await.map_err(broken)?;
            if read == 0 {
                return Err("closed before it said hello".to_owned());
            }
            match greeting.handle_bytes(&buffer[..read], Instant::now()) {
                Ok(Ok(hello)) => return Ok(Ok(hello)),
                Ok(Err(waiting)) => greeting = waiting,
                Err(error) => return Ok(Err(error)),
            }
        }
    };
    let hello = match timeout(engine_limits::HANDSHAKE, greet).await.map_err(|_| "no hello in time")?? {
        Ok(hello) => hello,
        Err(error) => return refuse(server, writer, "hello", error).await,
    };
    let Hello { description, .. } = &hello;
    let id = description.stream.id;
    tracing::info!(peer = %who, vm = description.stream.vm, stream = %id, "hello");
    let Some(stream) = server.stream(id) else {
        let reason = format!("{} streams are served already, the most there may be", engine_limits::STREAMS);
        let error = GreetingError::Refused { stream: id, why: Refusal::Unavailable, reason };
        return refuse(server, writer, "streams", error).await;
    };
    let conn = server.next_connection();
    let (answers, mut outgoing) = mpsc::channel::<Bytes>(ANSWERS);
    let connected = Event::AgentConnected { conn, hello: Box::new(hello), answers };
    if stream.events.send(connected).await.is_err() {
        let reason = "the stream was just put to rest; try again".to_owned();
        let error = GreetingError::Refused { stream: id, why: Refusal::Unavailable, reason };
        return refuse(server, writer, "streams", error).await;
    }

    let write = async {
        while let Some(bytes) = outgoing.recv().await {
            writer.write_all(&bytes).await?;
            writer.flush().await?;
        }
        // The node closed the connection: what was said before, such as a refusal, still arrives.
        timeout(engine_limits::HANDSHAKE, writer.shutdown()).await.unwrap_or(Ok(()))
    };
    let read = async {
        loop {
            let read = reader.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            let bytes = Bytes::copy_from_slice(&buffer[..read]);
            if stream.events.send(Event::AgentBytes { conn, bytes }).await.is_err() {
                return Ok(());
            }
        }
    };
    let result = tokio::select! { result = read => result, result = write => result };
    // The thread may have ended.
    let _ = stream.events.send(Event::AgentClosed { conn }).await;
    result.map_err(broken)
}

/// Says no, if there is something to say.
async fn refuse(
    server: &Server,
    mut writer: impl AsyncWrite + Unpin,
    label: &str,
    error: GreetingError,
) -> Result<(), String> {
    server.note_refused(label);
    if let Some(answer) = error.answer() {
        let say = async {
            writer.write_all(answer.bytes()).await?;
            writer.shutdown().await
        };
        // Courtesy: the connection ends either way.
        let _ = timeout(engine_limits::HANDSHAKE, say).await;
    }
    Err(error.to_string())
}
