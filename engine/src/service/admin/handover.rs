//! A file that comes with a request: opened by the command with its user's rights, used by the service.
//!
//! The service need not be allowed to open it, and cannot be made to open anything else. At most one, with the first
//! bytes of the request (`SCM_RIGHTS`, unix(7)).

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream as BlockingStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::{io::Interest, net::UnixStream};

/// Room for one file.
const SPACE: usize = rustix::cmsg_space!(ScmRights(1));

/// Bytes of a request that are read together with the file.
const FIRST: usize = 4096;

/// Sends a request and, with its first bytes, a file.
pub(super) fn send(stream: &mut BlockingStream, request: &[u8], file: Option<&File>) -> io::Result<()> {
    let mut sent = 0;
    if let Some(file) = file {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: [BorrowedFd<'_>; 1] = [file.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        sent = sendmsg(&*stream, &[IoSlice::new(request)], &mut ancillary, SendFlags::NOSIGNAL)?;
    }
    stream.write_all(&request[sent..])
}

/// The first bytes of a request, none if it ends before them, and the file that came with them.
pub(super) async fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<File>)> {
    stream
        .async_io(Interest::READABLE, || {
            let mut bytes = vec![0; FIRST];
            let mut space = [MaybeUninit::uninit(); SPACE];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
            bytes.truncate(received.bytes);
            let mut file = None;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(mut files) = message {
                    file = files.next().map(File::from);
                }
            }
            Ok((bytes, file))
        })
        .await
}
