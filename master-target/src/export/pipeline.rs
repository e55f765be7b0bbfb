//! Works on pieces with several threads, and hands over what they made in order.

use std::{collections::VecDeque, thread};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::limits;

/// Calls `work` with 0 to `pieces` on several threads, and `take` on this one with what it made, in order. Ends with the
/// first error of either.
pub(super) fn in_order<T: Send, E: Send>(
    pieces: u64,
    work: &(dyn Fn(u64) -> Result<T, E> + Sync),
    take: &mut dyn FnMut(u64, T) -> Result<(), E>,
) -> Result<(), E> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(limits::WORKERS);
    thread::scope(|scope| {
        let (jobs, todo) = bounded::<(u64, Sender<Result<T, E>>)>(limits::AHEAD);
        for _ in 0..workers {
            let todo: Receiver<_> = todo.clone();
            scope.spawn(move || {
                for (piece, made) in todo {
                    // Who waits for it may have ended with an error.
                    let _ = made.send(work(piece));
                }
            });
        }
        let mut begun: VecDeque<Receiver<Result<T, E>>> = VecDeque::new();
        let mut next = 0;
        for piece in 0..pieces {
            while next < pieces && begun.len() < limits::AHEAD {
                let (made, result) = bounded(1);
                // It fails only if every worker panicked; then so does the scope.
                let _ = jobs.send((next, made));
                begun.push_back(result);
                next += 1;
            }
            let Some(Ok(made)) = begun.pop_front().map(|result| result.recv()) else { break };
            take(piece, made?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn order_is_kept_and_little_is_ahead() {
        let (begun, mut taken) = (AtomicU64::new(0), 0);
        let work = |piece: u64| {
            begun.fetch_add(1, Ordering::Relaxed);
            Ok::<_, ()>(piece * 2)
        };
        let mut take = |piece, made| {
            assert_eq!((piece, made), (taken, taken * 2));
            taken += 1;
            assert!(begun.load(Ordering::Relaxed) <= taken + limits::AHEAD as u64);
            Ok(())
        };
        in_order(1000, &work, &mut take).unwrap();
        assert_eq!(taken, 1000);
    }

    #[test]
    fn the_first_error_in_order_ends_it() {
        let work = |piece| if piece % 100 == 99 { Err(piece) } else { Ok(piece) };
        let mut taken = 0;
        let mut take = |_, _| {
            taken += 1;
            Ok(())
        };
        assert_eq!(in_order(1000, &work, &mut take), Err(99));
        assert_eq!(taken, 99);
        assert_eq!(in_order(1000, &|piece| Ok(piece), &mut |piece, _| Err(piece)), Err(0));
    }
}
