//! A TCP relay that hands bytes on after a fixed time, each way: the latency of a long link, which this kernel's traffic
//! control may be unable to add.
//!
//! It ends TCP on both sides, so that no window of TCP's is too small for the delay: what limits is what the two ends
//! of the session allow themselves. Connecting is not delayed. How much it holds is bounded.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    fd::AsFd,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// Bytes that are read at once.
const CHUNK: usize = 128 << 10;

/// Time between two looks for who connects.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How a relay delays.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    /// Each way.
    pub one_way: Duration,
    /// Bytes that it holds at most, each way of each connection.
    pub buffer: usize,
}

/// The relay. It takes no connections any more when it is dropped; those that there are end with their ends.
pub struct Relay {
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// One in a network namespace, a file, that listens at `from` and dials `to`.
    pub fn start(network: &Path, from: SocketAddr, to: SocketAddr, delay: Delay) -> io::Result<Self> {
        let network = std::fs::File::open(network)?;
        let closing = Arc::new(AtomicBool::new(false));
        let (closed, (ready, is_ready)) = (Arc::clone(&closing), std::sync::mpsc::channel());
        let body = move || {
            // Threads that this one starts are there, too.
            let entered = move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network));
            let listener = entered.map_err(io::Error::from).and_then(|()| {
                let listener = TcpListener::bind(from)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            });
            match listener {
                Ok(listener) => {
                    // Who asked waits for it.
                    let _ = ready.send(Ok(()));
                    accept(&listener, to, delay, &closed);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        let thread = thread::Builder::new().name("relay".into()).spawn(body)?;
        is_ready.recv().map_err(|_| io::Error::other("the relay's thread panicked"))??;
        Ok(Self { closing, thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.closing.store(true, Relaxed);
        // It only fails if the thread panicked, which was told.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn accept(listener: &TcpListener, to: SocketAddr, delay: Delay, closing: &AtomicBool) {
    while !closing.load(Relaxed) {
        match listener.accept() {
            // A connection that cannot be passed on is closed, as if nobody were there.
            Ok((client, _)) => drop(pass_on(client, to, delay)),
            Err(_) => thread::sleep(LOOK_EVERY),
        }
    }
}

fn pass_on(client: TcpStream, to: SocketAddr, delay: Delay) -> io::Result<()> {
    let server = TcpStream::connect(to)?;
    client.set_nonblocking(false)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    one_way(client.try_clone()?, server.try_clone()?, delay);
    one_way(server, client, delay);
    Ok(())
}

fn one_way(from: TcpStream, to: TcpStream, delay: Delay) {
    let pipe = Arc::new(Pipe { delay, held: Mutex::default(), changed: Condvar::new() });
    let other = Arc::clone(&pipe);
    thread::spawn(move || pipe.fill(from));
    thread::spawn(move || other.empty(to));
}

/// Bytes on their way.
struct Pipe {
    delay: Delay,
    held: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    /// With the time at which each may leave; an empty one is the end.
    chunks: VecDeque<(Instant, Vec<u8>)>,
    /// Their bytes: at most the buffer and a chunk.
    bytes: usize,
    /// Nobody takes them any more.
    broken: bool,
}

impl Pipe {
    fn fill(&self, mut from: TcpStream) {
        let mut buffer = vec![0; CHUNK];
        loop {
            let len = from.read(&mut buffer).unwrap_or(0);
            let leaves = Instant::now() + self.delay.one_way;
            let mut held = self.held();
            while held.bytes >= self.delay.buffer && !held.broken {
                held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
            }
            if held.broken {
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
            held.bytes += len;
            held.chunks.push_back((leaves, buffer[..len].to_vec()));
            drop(held);
            self.changed.notify_all();
            if len == 0 {
                return;
            }
        }
    }

    fn empty(&self, mut to: TcpStream) {
        loop {
            let (leaves, chunk) = self.next();
            thread::sleep(leaves.saturating_duration_since(Instant::now()));
            if chunk.is_empty() {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            let written = to.write_all(&chunk);
            let mut held = self.held();
            held.bytes -= chunk.len();
            held.broken = written.is_err();
            let broken = held.broken;
            drop(held);
            self.changed.notify_all();
            if broken {
                return;
            }
        }
    }

    fn next(&self) -> (Instant, Vec<u8>) {
        let mut held = self.held();
        loop {
            if let Some(chunk) = held.chunks.pop_front() {
                return chunk;
            }
            held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const US: &str = "/proc/self/ns/net";

    /// A server that sends back what it gets, and a relay before it.
    fn echo(delay: Delay) -> Option<(Relay, TcpStream)> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: entering a namespace needs root");
            return None;
        }
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = server.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            let _ = io::copy(&mut stream, &mut writer);
            let _ = writer.shutdown(Shutdown::Write);
        });
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let relay = Relay::start(Path::new(US), free, to, delay).unwrap();
        Some((relay, TcpStream::connect(free).unwrap()))
    }

    #[test]
    fn bytes_arrive_whole_and_late() {
        let one_way = Duration::from_millis(40);
        let Some((_relay, mut stream)) = echo(Delay { one_way, buffer: 1 << 20 }) else { return };
        let began = Instant::now();
        stream.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert!(&answer == b"ping" && began.elapsed() >= 2 * one_way, "{:?}", began.elapsed());
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut answer).unwrap(), 0, "the end comes through, too");
    }

    #[test]
    fn delay_does_not_slow_what_fits_into_the_buffer() {
        const BYTES: usize = 8 << 20;
        let one_way = Duration::from_millis(50);
        let Some((_relay, mut stream)) = echo(Delay { one_way, buffer: 2 * BYTES }) else { return };
        let began = Instant::now();
        let mut reader = stream.try_clone().unwrap();
        let reading = thread::spawn(move || {
            let mut all = vec![0; BYTES];
            reader.read_exact(&mut all).unwrap();
            all
        });
        let sent: Vec<u8> = (0..BYTES).map(|at| (at / 1000) as u8).collect();
        stream.write_all(&sent).unwrap();
        assert!(reading.join().unwrap() == sent);
        // A relay that waited out the delay of each chunk would take over three seconds each way.
        assert!(began.elapsed() < 30 * one_way, "{:?}", began.elapsed());
    }
}
