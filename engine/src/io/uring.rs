//! Disk I/O on io_uring: each disk has one thread, which runs a tokio-uring runtime and with it a ring.
//!
//! The ring takes reads and writes. Zeroing has no operation there and goes to the runtime's blocking threads.

use std::{
    io,
    rc::Rc,
    sync::{Arc, OnceLock},
    thread::{self, JoinHandle},
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_uring::{BufResult, Runtime, buf::BoundedBuf, fs::File};

use super::{
    AlignedBuf, OpKind,
    disk_file::{CALL_BYTES, DiskFile, progress},
    queue::{Request, Submit},
};

/// Submission slots of a ring. More than this many requests are submitted in several system calls.
const RING_ENTRIES: u32 = 64;

/// A thread with a ring. Ends when it is dropped, after what is in flight.
pub(super) struct Uring {
    /// `None` once dropped, which ends the thread. Bounded by its users, who have `IO_DEPTH` requests each.
    queue: Option<UnboundedSender<Vec<Request>>>,
    thread: Option<JoinHandle<()>>,
}

impl Uring {
    /// Fails where the kernel refuses io_uring.
    pub(super) fn start(disk: Arc<DiskFile>) -> io::Result<Self> {
        let direct = disk.direct.as_ref().map(|direct| direct.file.try_clone()).transpose()?;
        let buffered = disk.buffered.try_clone()?;
        let (queue, requests) = unbounded_channel();
        let (report, started) = crossbeam_channel::bounded(1);
        let thread = thread::Builder::new().name("disk-io-uring".into()).spawn(move || {
            let (runtime, outcome) = match Runtime::new(tokio_uring::builder().entries(RING_ENTRIES)) {
                Ok(runtime) => (Some(runtime), Ok(())),
                Err(error) => (None, Err(error)),
            };
            let _ = report.send(outcome); // `start` is waiting for it.
            if let Some(runtime) = runtime {
                let files =
                    Files { disk, direct: direct.map(File::from_std), buffered: File::from_std(buffered) };
                runtime.block_on(serve(Rc::new(files), requests));
            }
        })?;
        started.recv().unwrap_or_else(|_| Err(panicked()))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }
}

impl Submit for Uring {
    fn submit(&self, batch: Vec<Request>) {
        // If the thread is gone, the requests answer themselves.
        let _ = self.queue.as_ref().map(|queue| queue.send(batch));
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.queue = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Whether this process may use io_uring; tried once, with a real read.
pub(super) fn is_allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        probe()
            .inspect_err(|error| tracing::info!(%error, "io_uring is refused: disk I/O uses threads instead"))
            .is_ok()
    })
}

/// Reads by io_uring on a thread of its own, since the caller's may be inside another runtime.
fn probe() -> io::Result<()> {
    let zeros = std::fs::File::open("/dev/zero")?;
    let probe = move || {
        let runtime = Runtime::new(tokio_uring::builder().entries(1))?;
        runtime.block_on(async { File::from_std(zeros).read_at(AlignedBuf::zeroed(1), 0).await.0 })
    };
    thread::Builder::new().spawn(probe)?.join().unwrap_or_else(|_| Err(panicked())).map(|_| ())
}

fn panicked() -> io::Error {
    io::Error::other("the thread for io_uring panicked")
}

/// The disk's descriptors as the runtime wants them.
struct Files {
    disk: Arc<DiskFile>,
    direct: Option<File>,
    buffered: File,
}

async fn serve(files: Rc<Files>, mut requests: UnboundedReceiver<Vec<Request>>) {
    while let Some(batch) = requests.recv().await {
        for request in batch {
            tokio_uring::spawn(files.clone().perform(request));
        }
    }
}

impl Files {
    async fn perform(self: Rc<Self>, mut request: Request) {
        let (offset, len) = (request.op.offset, request.op.len);
        let buf = std::mem::take(&mut request.op.buf);
        let (result, buf) = match request.op.kind {
            OpKind::Read => self.read(buf, offset).await,
            OpKind::Write => self.write(buf, offset).await,
            OpKind::Zero => {
                let disk = self.disk.clone();
                let zeroed = tokio::task::spawn_blocking(move || disk.zero(offset, len)).await;
                (zeroed.unwrap_or_else(|error| Err(io::Error::other(error))), buf)
            }
        };
        request.op.buf = buf;
        request.answer(result);
    }

    async fn read(&self, mut buf: AlignedBuf, offset: u64) -> BufResult<(), AlignedBuf> {
        let mut done = 0;
        while done < buf.len() {
            let file = self.file_for(offset, buf.len(), done);
            let end = buf.len().min(done + CALL_BYTES);
            let (result, slice) = file.read_at(buf.slice(done..end), offset + done as u64).await;
            buf = slice.into_inner();
            match progress(result) {
                Ok(bytes) => done += bytes,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    async fn write(&self, mut buf: AlignedBuf, offset: u64) -> BufResult<(), AlignedBuf> {
        let mut done = 0;
        while done < buf.len() {
            let file = self.file_for(offset, buf.len(), done);
            let end = buf.len().min(done + CALL_BYTES);
            let (result, slice) = file.write_at(buf.slice(done..end), offset + done as u64).submit().await;
            buf = slice.into_inner();
            match progress(result) {
                Ok(bytes) => done += bytes,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    fn file_for(&self, offset: u64, len: usize, done: usize) -> &File {
        match &self.direct {
            Some(direct) if self.disk.can_be_direct(offset, len, done) => direct,
            _ => &self.buffered,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::{super::testing::refuse_io_uring, *};

    #[test]
    fn a_refusal_is_an_error_and_not_a_panic() {
        for errno in [Errno::PERM, Errno::NOSYS] {
            let refused = thread::spawn(move || {
                refuse_io_uring(errno);
                let file = tempfile::NamedTempFile::new().unwrap();
                let disk = Arc::new(DiskFile::open(file.path(), false).unwrap());
                (probe(), Uring::start(disk).map(|_| ()))
            });
            let (probed, started) = refused.join().unwrap();
            assert_eq!(probed.unwrap_err().raw_os_error(), Some(errno.raw_os_error()));
            assert_eq!(started.unwrap_err().raw_os_error(), Some(errno.raw_os_error()));
        }
    }
}
