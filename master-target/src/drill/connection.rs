//! One client: its handshake, then its requests, by several threads.
//!
//! The threads of a connection take turns at its socket: one reads a request, hands the turn to the next and answers
//! it, while the next reads. So as many requests are in flight as there are threads, nothing is queued, and a lone
//! request never changes threads. A thread is added when a request is taken and nobody is left to read.

use std::{
    io::{self, BufReader, Read, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use engine::net::{NetError, ServerTls};

use super::{
    disk::{DrillDisk, errno},
    limits,
    nbd::{
        Action, Errno, Export, Negotiation, Next, OptionHeader, ProtocolError, Request, Session,
        layout::{OPTION_HEADER, REQUEST},
        negotiation::Tls,
        response::{self, DATA_CHUNK},
    },
    overlay::OverlayError,
    socket::Socket,
};

/// Bytes of requests that are read at once.
const READ: usize = 64 << 10;

/// Why a connection ended, if not because the client wished it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] NetError),
    #[error("the client did not come to an end of its handshake")]
    Slow,
    #[error("the client spoke on before TLS stood: somebody may have spoken in its name")]
    SpokeBeforeTls,
    #[error("a disk failed in the middle of an answer: {0}")]
    Disk(#[from] OverlayError),
}

type Reader = BufReader<Box<dyn Read + Send>>;
type Writer = Box<dyn Write + Send>;

/// Serves one client until it goes. `tls` is demanded if it is there.
pub(super) fn serve(
    socket: Socket,
    exports: &[Export],
    disks: &[Arc<DrillDisk>],
    tls: Option<&ServerTls>,
) -> Result<(), Ended> {
    let closer = socket.try_clone()?;
    socket.set_read_timeout(Some(engine::limits::HANDSHAKE))?;
    let Some((reader, writer, export, session)) = negotiate(socket, exports, tls)? else { return Ok(()) };
    closer.set_read_timeout(None)?;
    let connection = Arc::new(Connection {
        reading: Mutex::new(Reading { reader, ended: false }),
        writer: Mutex::new(writer),
        disk: Arc::clone(&disks[export]),
        session,
        closer,
        threads: AtomicUsize::new(1),
        waiting: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
        helpers: Mutex::default(),
    });
    let result = connection.work();
    // Helpers add helpers only before they end.
    while let Some(helper) = { lock(&connection.helpers).pop() } {
        // A panic there is in the log.
        let _ = helper.join();
    }
    result
}

/// The handshake. `None`: the client has gone as it may.
fn negotiate(
    socket: Socket,
    exports: &[Export],
    tls: Option<&ServerTls>,
) -> Result<Option<(Reader, Writer, usize, Session)>, Ended> {
    let began = Instant::now();
    let mut plain = Some(socket.try_clone()?);
    let mut writer: Writer = Box::new(socket.try_clone()?);
    let mut reader: Reader = BufReader::with_capacity(READ, Box::new(socket));
    writer.write_all(&Negotiation::greeting())?;
    let mut flags = [0; 4];
    reader.read_exact(&mut flags)?;
    let demanded = if tls.is_some() { Tls::Demanded } else { Tls::None };
    let mut negotiation = Negotiation::new(exports, demanded, flags)?;
    loop {
        if began.elapsed() > NEGOTIATION {
            return Err(Ended::Slow);
        }
        let mut header = [0; OPTION_HEADER];
        reader.read_exact(&mut header)?;
        let header = OptionHeader::parse(&header)?;
        let mut data = vec![0; header.bytes];
        reader.read_exact(&mut data)?;
        let (answer, next) = negotiation.handle_option(header.option, &data)?;
        writer.write_all(&answer)?;
        match next {
            Next::Option => {}
            Next::End => return Ok(None),
            Next::Requests { export, session } => return Ok(Some((reader, writer, export, session))),
            Next::Tls => {
                let (Some(tls), Some(Socket::Tcp(socket))) = (tls, plain.take()) else { return Ok(None) };
                if !reader.buffer().is_empty() {
                    return Err(Ended::SpokeBeforeTls);
                }
                let (from, to) = tls.accept_blocking(socket)?;
                reader = BufReader::with_capacity(READ, Box::new(from));
                writer = Box::new(to);
                negotiation.handle_tls();
            }
        }
    }
}

/// How long a handshake may take in all.
const NEGOTIATION: Duration = Duration::from_secs(60);

/// A client that has chosen its disk.
struct Connection {
    reading: Mutex<Reading>,
    writer: Mutex<Writer>,
    disk: Arc<DrillDisk>,
    session: Session,
    /// Ends the connection.
    closer: Socket,
    /// Threads that work on it.
    threads: AtomicUsize,
    /// Threads that read, or wait for their turn.
    waiting: AtomicUsize,
    /// Whether a failure of the disk was told to the log; once is enough.
    failed: AtomicBool,
    helpers: Mutex<Vec<JoinHandle<()>>>,
}

/// What only the thread whose turn it is has.
struct Reading {
    reader: Reader,
    ended: bool,
}

/// A request that is to be answered.
struct Job {
    request: Request,
    /// What to do; a write's bytes are in the buffer, unless they are written already.
    action: Result<Action, Errno>,
    /// Bytes of a write in the buffer.
    payload: usize,
}

impl Connection {
    /// A thread's work: requests, until there are no more.
    fn work(self: &Arc<Self>) -> Result<(), Ended> {
        let mut buffer = Vec::new();
        loop {
            self.waiting.fetch_add(1, SeqCst);
            let next = self.next(&mut buffer);
            self.waiting.fetch_sub(1, SeqCst);
            let Some(job) = next? else { return Ok(()) };
            self.keep_reading();
            if let Err(error) = self.answer(&job, &mut buffer) {
                // Who reads must not wait for a client that hears nothing.
                self.closer.close();
                return Err(error);
            }
        }
    }

    /// Sees to it that somebody reads.
    fn keep_reading(self: &Arc<Self>) {
        if self.waiting.load(SeqCst) > 0 || self.threads.fetch_add(1, SeqCst) >= limits::THREADS {
            return;
        }
        let connection = Arc::clone(self);
        let body = move || {
            if let Err(error) = connection.work() {
                tracing::debug!(%error, "a client's connection ended");
            }
        };
        // Without it the connection goes on with the threads it has.
        match thread::Builder::new().name("drill".into()).spawn(body) {
            Ok(helper) => lock(&self.helpers).push(helper),
            Err(error) => tracing::warn!(%error, "cannot start a thread for a drill"),
        }
    }

    /// Takes the next request; `None` if there are no more.
    fn next(&self, buffer: &mut Vec<u8>) -> Result<Option<Job>, Ended> {
        let mut reading = lock(&self.reading);
        if reading.ended {
            return Ok(None);
        }
        // Whatever happens on the way: nothing is read after it.
        reading.ended = true;
        let mut header = [0; REQUEST];
        match reading.reader.read_exact(&mut header) {
            // Some clients say no goodbye.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let request = Request::parse(&header)?;
        let mut action = request.check(&self.session);
        if action == Ok(Action::Disconnect) {
            return Ok(None);
        }
        let payload = match action {
            Ok(Action::Write { .. }) if request.payload <= limits::PIECE_BYTES => {
                reading.reader.read_exact(room(buffer, request.payload))?;
                request.payload
            }
            _ => {
                action = self.take_long_payload(&mut reading.reader, &request, action, buffer)?;
                0
            }
        };
        reading.ended = false;
        Ok(Some(Job { request, action, payload }))
    }

    /// A write that is too long to be in memory is written while it comes; one that is refused is only heard out.
    fn take_long_payload(
        &self,
        reader: &mut Reader,
        request: &Request,
        mut action: Result<Action, Errno>,
        buffer: &mut Vec<u8>,
    ) -> Result<Result<Action, Errno>, Ended> {
        let mut done = 0;
        while done < request.payload {
            let piece = room(buffer, (request.payload - done).min(limits::PIECE_BYTES));
            reader.read_exact(piece)?;
            if let Ok(Action::Write { offset }) = action
                && let Err(error) = self.write(offset + done as u64, piece)
            {
                action = Err(error);
            }
            done += piece.len();
        }
        Ok(action)
    }

    fn answer(&self, job: &Job, buffer: &mut Vec<u8>) -> Result<(), Ended> {
        let (structured, cookie) = (self.session.structured, job.request.cookie);
        let done = match job.action {
            Err(error) => Err(error),
            Ok(Action::Read { offset, len, may_split }) => {
                return self.answer_read(cookie, offset, len, may_split, buffer);
            }
            Ok(Action::Status { offset, len, one }) => {
                let most = if one { 1 } else { limits::STATUS_EXTENTS };
                match self.disk.status(offset, len, most) {
                    Ok(extents) => return self.send(&response::status(cookie, &extents)),
                    Err(error) => Err(self.failure(&error)),
                }
            }
            Ok(Action::Write { offset }) => self.write(offset, &buffer[..job.payload]),
            Ok(Action::Zero { offset, len, keep_space, fast }) => {
                self.change(|overlay, below| overlay.zero(below, offset, len, keep_space, fast))
            }
            Ok(Action::Trim { offset, len }) => self.change(|overlay, _| overlay.trim(offset, len)),
            // What was answered is seen by every connection already, and survives nothing in any case.
            Ok(Action::Flush) | Ok(Action::Disconnect) => Ok(()),
        };
        match done {
            Ok(()) => self.send(&response::done(structured, cookie)),
            Err(error) => self.send(&response::failed(structured, cookie, error)),
        }
    }

    fn answer_read(
        &self,
        cookie: u64,
        offset: u64,
        len: usize,
        may_split: bool,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Ended> {
        let structured = self.session.structured;
        if structured && !may_split && len > limits::PIECE_BYTES {
            return self.send(&response::failed(structured, cookie, Errno::Overflow));
        }
        if len == 0 {
            return self.send(&response::done(structured, cookie));
        }
        // A simple answer comes in one go, whose beginning says that all of it is well.
        let mut all_of_it = None;
        let mut done = 0;
        while done < len {
            let bytes = (len - done).min(limits::PIECE_BYTES);
            let (at, last) = (offset + done as u64, done + bytes == len);
            let out = room(buffer, DATA_CHUNK + bytes);
            if let Err(error) = self.disk.read(at, &mut out[DATA_CHUNK..]) {
                let errno = self.failure(&error);
                return match all_of_it {
                    None => self.send(&response::failed(structured, cookie, errno)),
                    Some(_) => Err(error.into()),
                };
            }
            if structured {
                out[..DATA_CHUNK].copy_from_slice(&response::data_chunk_head(cookie, at, bytes, last));
                self.send(out)?;
            } else {
                let head = response::simple_data_head(cookie);
                let first = all_of_it.is_none();
                let from = if first { DATA_CHUNK - head.len() } else { DATA_CHUNK };
                if first {
                    out[from..DATA_CHUNK].copy_from_slice(&head);
                }
                all_of_it.get_or_insert_with(|| lock(&self.writer)).write_all(&out[from..])?;
            }
            done += bytes;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.change(|overlay, below| overlay.write(below, offset, data))
    }

    fn change(
        &self,
        change: impl FnOnce(&super::Overlay, &dyn crate::image::Image) -> Result<(), OverlayError>,
    ) -> Result<(), Errno> {
        // Requests to write pass the check only where there is an overlay.
        let Some((overlay, below)) = self.disk.writable() else { return Err(Errno::NotPermitted) };
        change(overlay, below).map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &OverlayError) -> Errno {
        if !self.failed.swap(true, SeqCst) {
            tracing::warn!(%error, "a drill's request failed; further ones of this client are not told");
        }
        errno(error)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Ended> {
        Ok(lock(&self.writer).write_all(bytes)?)
    }
}

/// The first `len` bytes of `buffer`, which grows to them.
fn room(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // After a panic in the middle of an answer the client hears nonsense, and ends the connection.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
