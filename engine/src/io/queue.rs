//! What both back ends share: requests, and the loop that keeps a back end busy.

use std::{io, mem};

use crossbeam_channel::{Sender, unbounded};

use super::{Op, disk_file::DiskFile};
use crate::limits::{IO_DEPTH, IO_FLIGHT_BYTES};

/// Performs requests, several at once, in whatever order.
pub(super) trait Submit: Send + Sync {
    fn submit(&self, batch: Vec<Request>);
}

/// An operation on its way through a back end. Answered exactly once; if it is dropped, with an error.
pub(super) struct Request {
    pub(super) op: Op,
    /// `None` once answered.
    reply: Option<Sender<(Op, io::Result<()>)>>,
}

impl Request {
    /// Performs it on this thread.
    pub(super) fn perform(mut self, file: &DiskFile) {
        let result = file.perform(&mut self.op);
        self.answer(result);
    }

    pub(super) fn answer(mut self, result: io::Result<()>) {
        self.send(result);
    }

    fn send(&mut self, result: io::Result<()>) {
        if let Some(reply) = self.reply.take() {
            let op = mem::replace(&mut self.op, Op::zero(0, 0, 0));
            // The receiver is gone only if `done` panicked; then nobody is left to tell.
            let _ = reply.send((op, result));
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.send(Err(io::Error::other(
            "the disk I/O thread ended before the operation did; start the service again",
        )));
    }
}

/// The body of [`super::Device::run`] on `file`, whose requests `backend` performs.
pub(super) fn run(
    file: &DiskFile,
    backend: &dyn Submit,
    ops: &mut dyn Iterator<Item = Op>,
    done: &mut dyn FnMut(Op, io::Result<()>),
) {
    let (reply, completions) = unbounded();
    let mut ops = ops.fuse();
    let (mut in_flight, mut bytes) = (0, 0);
    loop {
        let mut batch = Vec::new();
        while in_flight + batch.len() < IO_DEPTH
            && bytes < IO_FLIGHT_BYTES
            && let Some(op) = ops.next()
        {
            match file.check(&op) {
                Ok(()) => {
                    bytes += op.buffer_bytes();
                    batch.push(Request { op, reply: Some(reply.clone()) });
                }
                Err(error) => done(op, Err(error)),
            }
        }
        in_flight += batch.len();
        match in_flight {
            0 => return,
            // A lone operation, as a barrier's reads are, is spared two switches between threads.
            1 => batch.into_iter().for_each(|request| request.perform(file)),
            _ if batch.is_empty() => {}
            _ => backend.submit(batch),
        }
        for (op, result) in completions.recv().into_iter().chain(completions.try_iter()) {
            in_flight -= 1;
            bytes -= op.buffer_bytes();
            done(op, result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A back end whose threads died.
    struct Dead;

    impl Submit for Dead {
        fn submit(&self, batch: Vec<Request>) {
            drop(batch);
        }
    }

    #[test]
    fn a_request_that_is_dropped_is_answered() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = DiskFile::open(file.path(), false).unwrap();
        let mut ops = (0..100).map(|tag| Op::read(tag * 512, 512, tag));
        let mut answered = Vec::new();
        run(&disk, &Dead, &mut ops, &mut |op, result| {
            assert!(result.unwrap_err().to_string().contains("thread ended"));
            answered.push(op.tag);
        });
        answered.sort_unstable();
        assert_eq!(answered, (0..100).collect::<Vec<_>>());
    }
}
