//! Work that several threads do at once, whose results come out in the order in which it was handed in.
//!
//! What was handed in and not collected is memory; bounding it is the caller's business.

use std::{collections::VecDeque, fmt, io, thread};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// Threads, which end when the last queue to them is dropped.
pub struct Queue<In, Out> {
    jobs: Sender<(In, Sender<Out>)>,
    threads: usize,
    results: VecDeque<Receiver<Out>>,
}

impl<In: Send + 'static, Out: Send + 'static> Queue<In, Out> {
    /// Starts `threads` threads, at least one, that do `work`, which must not panic.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(name: &str, threads: usize, work: fn(In) -> Out) -> io::Result<Self> {
        let (jobs, queue) = unbounded::<(In, Sender<Out>)>();
        let threads = threads.max(1);
        for number in 0..threads {
            let queue = queue.clone();
            thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                // A result that nobody waits for any more is no error.
                queue.iter().for_each(|(input, result)| drop(result.send(work(input))));
            })?;
        }
        Ok(Self { jobs, threads, results: VecDeque::new() })
    }

    /// Another queue to the same threads.
    #[must_use]
    pub fn another(&self) -> Self {
        Self { jobs: self.jobs.clone(), threads: self.threads, results: VecDeque::new() }
    }

    /// Hands in one.
    #[expect(clippy::expect_used, reason = "the threads end only when no queue is left")]
    pub fn submit(&mut self, input: In) {
        let (result, receiver) = bounded(1);
        self.jobs.send((input, result)).expect("a thread is there");
        self.results.push_back(receiver);
    }

    /// The result of the oldest one handed in; `None` if there is none. Waits for it.
    #[expect(clippy::expect_used, reason = "work does not panic, so every job has a result")]
    pub fn collect(&mut self) -> Option<Out> {
        self.results.pop_front().map(|result| result.recv().expect("every job is done"))
    }

    /// Whether more was handed in and not collected than there are threads.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.results.len() > self.threads
    }

    /// Nobody wants what was handed in any more.
    pub fn clear(&mut self) {
        self.results.clear();
    }
}

impl<In, Out> fmt::Debug for Queue<In, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.results.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_come_in_order_for_each_queue() {
        // Of very different cost, so that later ones are ready before earlier ones.
        let work = |number: u64| {
            thread::sleep(Duration::from_micros(number % 7 * 300));
            number
        };
        let mut one = Queue::start("test", 3, work).unwrap();
        let mut other = one.another();
        (0..100).for_each(|number| if number % 3 == 0 { other.submit(number) } else { one.submit(number) });
        assert!(one.is_busy());
        let collect =
            |queue: &mut Queue<u64, u64>| std::iter::from_fn(|| queue.collect()).collect::<Vec<_>>();
        assert_eq!(collect(&mut one), (0..100).filter(|n| n % 3 != 0).collect::<Vec<_>>());
        other.clear();
        assert!(other.collect().is_none());
        other.submit(7);
        assert_eq!(other.collect(), Some(7));
    }
}
