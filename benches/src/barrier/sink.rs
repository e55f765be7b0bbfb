//! Process server and master target in one thread, which confirms every frame at once and keeps no block, only a
//! checksum of each.
//!
//! It opens each frame as a master target would, so its CPU time also stands for what a real connection costs here.

use std::{
    path::Path,
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::Context;
use bytes::Bytes;
use crossbeam_channel::{Receiver as Inbox, Sender as Outbox, unbounded};
use engine::{
    frame::{Content, Control, Frame, Opened, Payload, Position},
    io::{Access, Backend, Op, open_device},
    limits,
    session::{Link, Message, Receiver},
    units::{BLOCK_BYTES, Seq, StreamId, blocks_in},
};

const BLOCK: usize = BLOCK_BYTES as usize;

/// The far end of the agent's connection. Its queues hold at most the sender's window.
pub struct Sink {
    to: Option<Outbox<Bytes>>,
    from: Inbox<Bytes>,
    thread: Option<JoinHandle<anyhow::Result<Replica>>>,
}

impl Sink {
    /// For one disk of `bytes` bytes.
    pub fn start(bytes: u64) -> std::io::Result<Self> {
        let ((to, inbox), (outbox, from)) = (unbounded(), unbounded());
        let replica = Replica::new(bytes);
        let thread = thread::Builder::new().name("sink".into());
        let thread = thread.spawn(move || serve(&inbox, &outbox, replica))?;
        Ok(Self { to: Some(to), from, thread: Some(thread) })
    }

    /// Bytes to it. What it makes of them shows in [`Self::inbox`], or in [`Self::finish`].
    pub fn send(&self, bytes: Bytes) {
        let _ = self.to.as_ref().map(|to| to.send(bytes));
    }

    /// Bytes from it.
    pub fn inbox(&self) -> &Inbox<Bytes> {
        &self.from
    }

    /// Ends it: what it holds, or why it did not like what it got.
    pub fn finish(mut self) -> anyhow::Result<Replica> {
        self.to = None;
        let thread = self.thread.take().context("finished twice")?;
        thread.join().unwrap_or_else(|_| anyhow::bail!("the sink panicked"))
    }
}

fn serve(inbox: &Inbox<Bytes>, outbox: &Outbox<Bytes>, mut replica: Replica) -> anyhow::Result<Replica> {
    let mut link = Link::new(None, Instant::now());
    let mut receiver = Receiver::at(Position::START, Seq(0));
    let mut of = StreamId::random();
    // The agent is gone only when nobody waits for an answer any more.
    let say = |control: &Control, of| drop(outbox.send(control.to_frame(of).bytes().clone()));
    for bytes in inbox {
        link.handle_bytes(&bytes, Instant::now());
        while let Some(message) = link.poll_message()? {
            match message {
                Message::Control(Control::Hello { stream, .. }) => {
                    of = stream.id;
                    let (position, durable) = (receiver.position(), Seq(0));
                    let window = limits::WINDOW_BYTES as u64;
                    say(&Control::Welcome { position, durable, window, adopted: false }, of);
                }
                Message::Control(other) => anyhow::bail!("out of turn: {other:?}"),
                Message::Frame(frame) => {
                    let before = receiver.position();
                    receiver.handle_frame(&frame)?;
                    replica.apply(&frame, &before)?;
                    receiver.handle_durable(frame.header().seq);
                }
            }
        }
        if let Some(ack) = receiver.poll_ack() {
            say(&ack, of);
        }
    }
    Ok(replica)
}

/// A checksum of each block, as far as it was sent.
pub struct Replica {
    blocks: Vec<Option<u32>>,
}

impl Replica {
    fn new(bytes: u64) -> Self {
        Self { blocks: vec![None; blocks_in(bytes) as usize] }
    }

    fn apply(&mut self, frame: &Frame, before: &Position) -> anyhow::Result<()> {
        match frame.open(before.chain)? {
            Opened::Data(content) => self.note(&content),
            Opened::Seal(_) | Opened::Digests(_) => Ok(()),
        }
    }

    fn note(&mut self, content: &Content) -> anyhow::Result<()> {
        static ZEROS: [u8; BLOCK] = [0; BLOCK];
        for (extent, payload) in content.extents() {
            let blocks = extent.start.0 as usize..extent.end().0 as usize;
            let blocks =
                self.blocks.get_mut(blocks).with_context(|| format!("{extent} is beyond the disk"))?;
            match payload {
                Payload::Data(bytes) => {
                    let sums = bytes.chunks_exact(BLOCK).map(crc32fast::hash);
                    blocks.iter_mut().zip(sums).for_each(|(block, sum)| *block = Some(sum));
                }
                Payload::Zero => blocks.fill(Some(crc32fast::hash(&ZEROS))),
                Payload::Copy { .. } => anyhow::bail!("nothing was to be copied"),
            }
        }
        Ok(())
    }

    /// How many blocks of the disk at `path` differ, or were never sent.
    pub fn different(&self, path: &Path) -> anyhow::Result<usize> {
        let device = open_device(path, Access::ReadOnly, Backend::Auto)?;
        let piece = limits::IO_BYTES as u64;
        let starts = (0..device.size()).step_by(limits::IO_BYTES);
        let mut ops = starts.map(|at| Op::read(at, (device.size() - at).min(piece) as usize, at));
        let mut different = 0;
        let mut failed = None;
        device.run(&mut ops, &mut |op, outcome| match outcome {
            Err(error) => failed = Some(error),
            Ok(()) => {
                let held = &self.blocks[(op.offset / BLOCK_BYTES) as usize..];
                let same = |(bytes, held): (&[u8], &Option<u32>)| *held == Some(crc32fast::hash(bytes));
                different += op.buf.chunks(BLOCK).zip(held).filter(|pair| !same(*pair)).count();
            }
        });
        failed.map_or(Ok(different), |error| Err(error).context("cannot read the disk again"))
    }
}
