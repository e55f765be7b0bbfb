//! Where logs go: stderr, but for the moments in which nothing may be written.
//!
//! stderr may be a file on a file system that we have frozen: writing to it would wait for a thaw that waits for us. So
//! lines are kept in memory between [`hold`] and [`go_on`], within a bound; what does not fit is counted.

use std::{
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::limits;

static KEPT: Mutex<Kept> = Mutex::new(Kept { holding: false, lines: Vec::new(), lost: 0 });

struct Kept {
    holding: bool,
    lines: Vec<u8>,
    /// Lines that found no room.
    lost: usize,
}

/// Keeps lines from now on. One that another thread is writing at this moment is written, sooner or later.
pub fn hold() {
    let mut kept = kept();
    // Memory that is needed later is taken now.
    kept.lines.reserve(limits::HELD_LOG);
    kept.holding = true;
}

/// Writes what was kept, and lines as they come from now on.
pub fn go_on() {
    let Kept { lines, lost, .. } =
        std::mem::replace(&mut *kept(), Kept { holding: false, lines: Vec::new(), lost: 0 });
    // There is nobody to tell that the log cannot be written.
    let _ = io::stderr().write_all(&lines);
    if lost > 0 {
        let _ =
            writeln!(io::stderr(), "{lost} lines of the log were left out while file systems were frozen");
    }
}

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// stderr, or memory.
pub(super) struct HeldLog;

impl Write for HeldLog {
    /// `bytes` is one line: that is how tracing writes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = kept();
        if !kept.holding {
            // Who is stuck in writing keeps nobody else from keeping lines.
            drop(kept);
            return io::stderr().write(bytes);
        }
        if kept.lines.len() + bytes.len() <= limits::HELD_LOG {
            kept.lines.extend_from_slice(bytes);
        } else {
            kept.lost += 1;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_within_the_bound() {
        hold();
        let line = [b'x'; 1000];
        for _ in 0..limits::HELD_LOG / 1000 + 5 {
            HeldLog.write_all(&line).unwrap();
        }
        let (bytes, lost, room) = {
            let kept = kept();
            (kept.lines.len(), kept.lost, kept.lines.capacity())
        };
        *kept() = Kept { holding: true, lines: Vec::new(), lost: 0 };
        go_on();
        assert!(!kept().holding);
        assert_eq!((bytes, lost), (limits::HELD_LOG / 1000 * 1000, 5));
        assert!(room < limits::HELD_LOG * 2);
    }
}
