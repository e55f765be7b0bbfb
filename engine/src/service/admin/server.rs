//! The service's side of the admin interface.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::{fs::PermissionsExt, net::UnixListener as StdListener},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{AdminError, Answer, Failure, Step, handover, remove_stale, to_line};
use crate::{
    limits,
    service::{code::Code, shutdown::Shutdown},
};

/// Reports of progress that wait for a slow client before newer ones are dropped.
const REPORTS: usize = 16;

/// Listens already, serves not yet. Removes the socket when dropped.
#[derive(Debug)]
pub struct AdminServer {
    listener: UnixListener,
    path: PathBuf,
}

/// Sends a request's progress to whoever asked, and has what came with it. Never blocks; reports that find no room are
/// dropped.
#[derive(Clone, Debug)]
pub struct Reporter {
    steps: mpsc::Sender<Step>,
    file: Option<Arc<File>>,
}

impl Reporter {
    /// `done` of `total` bytes of `what` are done.
    pub fn report(&self, what: &str, done: u64, total: u64) {
        // Full: the client is slow. Closed: it has gone. Neither is the work's concern.
        let _ = self.steps.try_send(Step { what: what.into(), done, total });
    }

    /// The file that came with the request, open with the rights of whoever asked.
    #[must_use]
    pub fn file(&self) -> Option<Arc<File>> {
        self.file.clone()
    }

    /// Whether nobody waits for the answer any more; known only some time after a report.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.steps.is_closed()
    }
}

impl AdminServer {
    /// Makes the socket `path`, mode 0600, replacing one that a dead service left. Within a tokio runtime.
    ///
    /// # Errors
    /// [`AdminError::AlreadyRunning`], [`AdminError::NotASocket`], [`AdminError::Io`].
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        remove_stale(path)?;
        let bind = || -> io::Result<UnixListener> {
            let listener = StdListener::bind(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        let listener = bind().map_err(|source| AdminError::Io { path: path.into(), source })?;
        Ok(Self { listener, path: path.into() })
    }

    /// Answers until `shutdown`; each request in a task of its own, running `handler`, whose long work belongs in
    /// `spawn_blocking`. `Request` may be `serde_json::Value`; what is no `Request` is refused here.
    pub async fn serve<Request, Response, Fut>(
        self,
        handler: impl Fn(Request, Reporter) -> Fut + Send + Sync + 'static,
        shutdown: Shutdown,
    ) where
        Request: DeserializeOwned + Send + 'static,
        Response: Serialize + Send + 'static,
        Fut: Future<Output = Result<Response, Failure>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let clients = Arc::new(Semaphore::new(limits::ADMIN_CLIENTS));
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) if may_ask(&stream) => stream,
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    // Most likely out of file descriptors; do not spin.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = clients.clone().try_acquire_owned() else {
                tracing::warn!(limit = limits::ADMIN_CLIENTS, "too many admin clients; one was turned away");
                continue;
            };
            let handler = handler.clone();
            tokio::spawn(async move {
                if let Err(error) = answer(stream, &*handler).await {
                    tracing::debug!(%error, "an admin client went away");
                }
                drop(permit);
            });
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        // What remains would be found stale by the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// The mode of the socket says the same, but not in the moment between its making and its `chmod`.
fn may_ask(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn answer<Request, Response, Fut>(
    stream: UnixStream,
    handler: &impl Fn(Request, Reporter) -> Fut,
) -> io::Result<()>
where
    Request: DeserializeOwned,
    Response: Serialize + Send + 'static,
    Fut: Future<Output = Result<Response, Failure>> + Send + 'static,
{
    let limit = limits::ADMIN_LINE as u64;
    let receive = async {
        let (mut line, file) = handover::receive(&stream).await?;
        let (reader, writer) = stream.into_split();
        if !line.is_empty() && line.last() != Some(&b'\n') {
            let mut reader = BufReader::new(reader).take(limit - line.len() as u64);
            reader.read_until(b'\n', &mut line).await?;
        }
        io::Result::Ok((line, file.map(Arc::new), writer))
    };
    let (line, file, mut writer) = timeout(limits::HANDSHAKE, receive).await??;
    if line.last() != Some(&b'\n') {
        return refuse(&mut writer, format!("a request is one line of at most {limit} bytes")).await;
    }
    let request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            return refuse(&mut writer, format!("the service does not know this request: {error}")).await;
        }
    };

    let (sender, mut reports) = mpsc::channel(REPORTS);
    // A task of its own: neither a client that does not read nor one that goes away stops the work.
    let mut work = tokio::spawn(handler(request, Reporter { steps: sender, file }));
    let outcome = loop {
        tokio::select! {
            biased;
            Some(step) = reports.recv() => write(&mut writer, Answer::<()>::Progress(step)).await?,
            outcome = &mut work => break outcome,
        }
    };
    let answer = match outcome {
        Ok(Ok(response)) => Answer::Ok(response),
        Ok(Err(failure)) => Answer::Error(failure),
        Err(error) => Answer::Error(Failure {
            message: format!("the request ended without an answer: {error}; the service's log says more"),
            code: Code::Failed,
        }),
    };
    write(&mut writer, answer).await
}

async fn refuse(writer: &mut OwnedWriteHalf, message: String) -> io::Result<()> {
    write(writer, Answer::<()>::Error(Failure { message, code: Code::Refused })).await
}

async fn write(writer: &mut OwnedWriteHalf, answer: Answer<impl Serialize>) -> io::Result<()> {
    let mut line = to_line(&answer)?;
    if line.len() > limits::ADMIN_ANSWER {
        let message = format!("the answer is {} bytes, too long for the admin interface", line.len());
        line = to_line(&Answer::<()>::Error(Failure { message, code: Code::Failed }))?;
    }
    writer.write_all(&line).await
}
