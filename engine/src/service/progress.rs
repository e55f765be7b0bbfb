//! Progress with rate and time left, for anything that takes more than a second.
//!
//! On a terminal a bar, otherwise a line now and then, nothing when the output is for a program. All of it goes
//! to stderr. What runs inside a service sends [`Step`]s over the admin interface to the command that shows them.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::quantity::{Period, Rate, Size};

/// What is over sooner shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Time between lines, unless said otherwise.
pub const LINE_EVERY: Duration = Duration::from_secs(2);

/// Weight of the newest interval in the rate shown.
const NEWEST: f64 = 0.3;

const TEMPLATE: &str = "{msg}: {bar:30} {binary_bytes} of {binary_total_bytes} ({percent} %), {binary_bytes_per_sec}, {eta} left";

/// How to show progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// One line, redrawn.
    Bar,
    /// A line at most once in `every`.
    Lines {
        /// The least time between two lines.
        every: Duration,
    },
    /// Not at all.
    Nothing,
}

impl Show {
    /// What suits: nothing with `--json`, a bar if stderr is a terminal, lines every [`LINE_EVERY`] otherwise.
    #[must_use]
    pub fn detect(json: bool) -> Self {
        if json {
            Show::Nothing
        } else if std::io::stderr().is_terminal() {
            Show::Bar
        } else {
            Show::Lines { every: LINE_EVERY }
        }
    }
}

/// One report of progress, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is being done: "restoring".
    pub what: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes to do in all.
    pub total: u64,
}

/// Shows the progress of one thing. When dropped, a bar disappears.
#[derive(Debug)]
pub struct Progress {
    step: Step,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Bar { bar: ProgressBar, started: Instant },
    Lines(Lines),
    Nothing,
}

impl Progress {
    /// Begins now. `total` in bytes.
    #[must_use]
    pub fn new(show: Show, what: impl Into<String>, total: u64) -> Self {
        let step = Step { what: what.into(), done: 0, total };
        let now = Instant::now();
        let shown = match show {
            Show::Bar => Shown::Bar { bar: hidden_bar(&step), started: now },
            Show::Lines { every } => Shown::Lines(Lines::new(now, every)),
            Show::Nothing => Shown::Nothing,
        };
        Self { step, shown }
    }

    /// `done` bytes of it are done.
    pub fn set(&mut self, done: u64) {
        self.step.done = done;
        match &mut self.shown {
            Shown::Bar { bar, started } => {
                bar.set_position(done);
                if bar.is_hidden() && started.elapsed() > PATIENCE {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                }
            }
            Shown::Lines(lines) => {
                if let Some(line) = lines.due(Instant::now(), &self.step) {
                    eprintln!("{line}");
                }
            }
            Shown::Nothing => (),
        }
    }

    /// `bytes` more of it are done.
    pub fn advance(&mut self, bytes: u64) {
        self.set(self.step.done + bytes);
    }

    /// Takes over a report from elsewhere: its total and its name may change on the way.
    pub fn update(&mut self, step: Step) {
        if let Shown::Bar { bar, .. } = &self.shown {
            bar.set_length(step.total);
            bar.set_message(step.what.clone());
        }
        let done = step.done;
        self.step = step;
        self.set(done);
    }
}

fn hidden_bar(step: &Step) -> ProgressBar {
    // A test checks the constant.
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(step.total), ProgressDrawTarget::hidden())
        .with_style(style)
        .with_message(step.what.clone())
        .with_finish(ProgressFinish::AndClear)
}

/// Decides when a line is due, and what it says. Time is an argument.
#[derive(Debug)]
struct Lines {
    every: Duration,
    next: Instant,
    /// When the rate was last taken, and the bytes done then.
    last: (Instant, u64),
    /// Bytes per second.
    rate: Option<f64>,
}

impl Lines {
    fn new(now: Instant, every: Duration) -> Self {
        Self { every, next: now + PATIENCE, last: (now, 0), rate: None }
    }

    fn due(&mut self, now: Instant, step: &Step) -> Option<String> {
        if now < self.next {
            return None;
        }
        self.next = now + self.every;
        let (then, before) = std::mem::replace(&mut self.last, (now, step.done));
        let newest = step.done.saturating_sub(before) as f64 / (now - then).as_secs_f64().max(1e-3);
        let rate = self.rate.map_or(newest, |old| old * (1.0 - NEWEST) + newest * NEWEST);
        self.rate = Some(rate);
        Some(describe(step, rate))
    }
}

fn describe(step: &Step, rate: f64) -> String {
    let Step { what, done, total } = step;
    let percent = if *total == 0 { 100 } else { u128::from(*done) * 100 / u128::from(*total) };
    let left = (total.saturating_sub(*done) as f64 / rate).round();
    // A rate of zero makes it infinite or not a number.
    let left = if left.is_finite() {
        format!("{} left", Period(Duration::from_secs(left as u64)))
    } else {
        "stalled".into()
    };
    format!("{what}: {} of {} ({percent} %), {}, {left}", Size(*done), Size(*total), Rate(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn step(done: u64) -> Step {
        Step { what: "copying".into(), done, total: 100 * MIB }
    }

    #[test]
    fn nothing_in_the_first_second_then_a_line_each_interval() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut lines = Lines::new(start, LINE_EVERY);
        assert_eq!(lines.due(at(999), &step(9 * MIB)), None);
        assert_eq!(
            lines.due(at(1000), &step(10 * MIB)).unwrap(),
            "copying: 10.0 MiB of 100.0 MiB (10 %), 10.0 MiB/s, 9s left"
        );
        assert_eq!(lines.due(at(2999), &step(30 * MIB)), None);
        assert_eq!(
            lines.due(at(3000), &step(50 * MIB)).unwrap(),
            "copying: 50.0 MiB of 100.0 MiB (50 %), 13.0 MiB/s, 4s left"
        );
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        assert_eq!(describe(&step(MIB), 0.0), "copying: 1.0 MiB of 100.0 MiB (1 %), 0 B/s, stalled");
        let over = Step { total: 0, ..step(MIB) };
        assert!(describe(&over, 1.0).contains("(100 %)"));
        assert!(describe(&Step { total: u64::MAX, ..step(0) }, 1e-9).contains("left"));
    }

    #[test]
    fn the_template_of_the_bar_is_right() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
