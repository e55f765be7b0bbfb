//! What processes take, and all that they start: CPU time and memory.
//!
//! CPU time is the kernel's own sum, exact to 10 ms, also of processes that have ended. Peaks of memory are the kernel's
//! own, too, read ten times a second: what grows in the last tenth before an end is missed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Ticks of `/proc/PID/stat` in a second: USER_HZ, which is 100 wherever Linux runs on servers.
const TICKS: f64 = 100.0;

/// What was used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Of all processes, in seconds.
    pub cpu_seconds: f64,
    /// The sum of each process's own peak of resident memory.
    pub peak_rss_bytes: u64,
}

/// Watches processes until it is dropped.
pub struct Meter {
    seen: Arc<Mutex<Seen>>,
    /// Ends the thread when it is dropped.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    roots: BTreeSet<u32>,
    /// Ticks that processes had used before they were watched.
    ticks_before: u64,
    peaks: BTreeMap<u32, u64>,
}

impl Meter {
    /// Watches processes from now on.
    pub fn start(pids: impl IntoIterator<Item = u32>) -> std::io::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (end, ended) = channel();
        let looking = Arc::clone(&seen);
        let body = move || {
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                lock(&looking).look();
            }
        };
        let thread = thread::Builder::new().name("meter".into()).spawn(body)?;
        let meter = Self { seen, end: Some(end), thread: Some(thread) };
        let mut seen = lock(&meter.seen);
        for pid in pids {
            seen.ticks_before += ticks(pid);
            seen.roots.insert(pid);
        }
        drop(seen);
        Ok(meter)
    }

    /// Watches one that was started just now, whose whole time counts.
    pub fn add(&self, pid: u32) {
        let mut seen = lock(&self.seen);
        seen.roots.insert(pid);
        seen.look();
    }

    /// What they have used. Processes that have ended must not have been waited for yet.
    pub fn usage(&self) -> Usage {
        let mut seen = lock(&self.seen);
        seen.look();
        let ticks: u64 = tree(&seen.roots).into_iter().map(ticks).sum();
        Usage {
            cpu_seconds: ticks.saturating_sub(seen.ticks_before) as f64 / TICKS,
            peak_rss_bytes: seen.peaks.values().sum(),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end = None;
        // It only fails if the thread panicked, which was told.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Seen {
    fn look(&mut self) {
        for pid in tree(&self.roots) {
            let peak = self.peaks.entry(pid).or_default();
            *peak = peak_rss(pid).unwrap_or(0).max(*peak);
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processes and all their descendants that live.
fn tree(roots: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut left: Vec<u32> = roots.iter().copied().collect();
    while let Some(pid) = left.pop() {
        if found.insert(pid) {
            left.extend(children(pid));
        }
    }
    found
}

/// None of a process that is gone.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Of a process and of those that it has waited for; 0 if it is gone.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in brackets, may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    // utime, stime, cutime and cstime: fields 14 to 17, counted from 1, of which the name is the second.
    fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// `None` of a process that has ended.
fn peak_rss(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use homeward::lab::tool::Tool;

    use super::*;

    #[test]
    fn what_descendants_take_counts_even_after_their_end() {
        // A shell whose child works and ends, and that goes on as another program.
        let script = "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; exec sleep 600";
        let shell = Tool::new("sh").args(["-c", script]).start().unwrap();
        let meter = Meter::start([]).unwrap();
        meter.add(shell.pid());
        let (name, began) = (format!("/proc/{}/comm", shell.pid()), Instant::now());
        while fs::read_to_string(&name).unwrap() != "sleep\n" {
            assert!(began.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(20));
        }
        let usage = meter.usage();
        assert!(usage.cpu_seconds >= 0.03 && usage.peak_rss_bytes > 100 << 10, "{usage:?}");
    }

    #[test]
    fn what_was_before_does_not_count() {
        let us = std::process::id();
        let began = Instant::now();
        while ticks(us) < 5 {
            assert!(began.elapsed() < Duration::from_secs(60));
        }
        let meter = Meter::start([us]).unwrap();
        assert!(meter.usage().cpu_seconds * TICKS < ticks(us) as f64);
    }
}
