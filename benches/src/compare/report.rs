//! What a comparison found: every run, and what follows from them.

use std::fmt;

use engine::service::quantity::Size;
use serde::Serialize;

use super::meter::Usage;
use crate::figures::Spread;

/// The name of our own runs.
pub const OURS: &str = "homeward";

/// One run of one tool.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its name.
    pub tool: String,
    /// Counted from 1.
    pub round: u32,
    /// From the start of the sender until the last byte was on stable storage.
    pub seconds: f64,
    /// Bytes that passed the link, both ways, with all headers.
    pub wire_bytes: u64,
    /// CPU time of all its processes, on both ends.
    pub cpu_seconds: f64,
    /// The sum of the peaks of resident memory of all its processes.
    pub peak_rss_bytes: u64,
    /// Whether the target was equal to the source, byte for byte.
    pub verified: bool,
}

impl Run {
    /// One that was measured.
    pub fn new(tool: &str, round: u32, seconds: f64, wire_bytes: u64, usage: Usage, verified: bool) -> Self {
        let Usage { cpu_seconds, peak_rss_bytes } = usage;
        Self { tool: tool.into(), round, seconds, wire_bytes, cpu_seconds, peak_rss_bytes, verified }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tool, seconds, wire_bytes, cpu_seconds, peak_rss_bytes, verified, .. } = self;
        let verdict = if *verified { "equal" } else { "NOT EQUAL" };
        let (wire, memory) = (*wire_bytes as f64 / 1e6, Size(*peak_rss_bytes));
        write!(
            f,
            "{tool:<20} {seconds:>8.2} s {wire:>9.1} MB {cpu_seconds:>8.1} s CPU {memory:>10}  {verdict}"
        )
    }
}

/// The median of the seconds of a tool's runs.
pub fn median_seconds(tool: &str, runs: &[Run]) -> f64 {
    Spread::of(runs.iter().filter(|run| run.tool == tool).map(|run| run.seconds)).median
}

/// The medians of a tool's runs.
#[derive(Clone, Debug, Serialize)]
pub struct Median {
    tool: String,
    runs: usize,
    seconds: f64,
    seconds_min: f64,
    seconds_max: f64,
    wire_bytes: u64,
    cpu_seconds: f64,
    peak_rss_bytes: u64,
    /// All of them.
    verified: bool,
}

/// Runs of several tools with one disk.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Every run, in the order in which they were made.
    pub runs: Vec<Run>,
    /// Of each tool.
    pub medians: Vec<Median>,
    /// The quickest of the others, by its median.
    pub best_peer: Option<String>,
    /// Its seconds to ours, medians: above 1 we are quicker.
    pub ratio_to_best_peer: Option<f64>,
    /// Our seconds to those that our bytes take on the link at least, the median.
    pub ratio_to_limit: Option<f64>,
    /// What that limit is.
    pub limit: Option<String>,
}

impl Comparison {
    /// What follows from runs over a link with so many bits per second.
    pub fn of(runs: Vec<Run>, rate: Option<u64>) -> Self {
        let mut tools: Vec<&str> = Vec::new();
        for run in &runs {
            if !tools.contains(&run.tool.as_str()) {
                tools.push(&run.tool);
            }
        }
        let medians: Vec<Median> = tools.into_iter().map(|tool| median(tool, &runs)).collect();
        let ours = medians.iter().find(|median| median.tool == OURS);
        let peers = medians.iter().filter(|median| !median.tool.starts_with(OURS));
        let best = peers.min_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let ratio_to_best_peer = ours.zip(best).map(|(ours, best)| best.seconds / ours.seconds);
        let to_limit = |rate: u64| {
            let ours = runs.iter().filter(|run| run.tool == OURS);
            let ratios = ours.map(|run| run.seconds / (run.wire_bytes as f64 * 8.0 / rate as f64));
            Spread::of(ratios).median
        };
        Self {
            best_peer: best.map(|best| best.tool.clone()),
            ratio_to_best_peer,
            ratio_to_limit: rate.map(to_limit),
            limit: rate.map(|rate| format!("wire bytes at {} Mbit/s", rate / 1_000_000)),
            medians,
            runs,
        }
    }
}

fn median(tool: &str, runs: &[Run]) -> Median {
    let of = |figure: fn(&Run) -> f64| Spread::of(runs.iter().filter(|run| run.tool == tool).map(figure));
    let seconds = of(|run| run.seconds);
    Median {
        tool: tool.into(),
        runs: runs.iter().filter(|run| run.tool == tool).count(),
        seconds: seconds.median,
        seconds_min: seconds.min,
        seconds_max: seconds.max,
        wire_bytes: of(|run| run.wire_bytes as f64).median as u64,
        cpu_seconds: of(|run| run.cpu_seconds).median,
        peak_rss_bytes: of(|run| run.peak_rss_bytes as f64).median as u64,
        verified: runs.iter().filter(|run| run.tool == tool).all(|run| run.verified),
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {:<20} {:>9} {:>19} {:>10} {:>9} {:>11}  target",
            "tool", "seconds", "least, most", "wire MB", "CPU s", "peak RSS"
        )?;
        for median in &self.medians {
            writeln!(
                f,
                "  {:<20} {:>9.2} {:>9.2} {:>9.2} {:>10.1} {:>9.1} {:>11}  {}",
                median.tool,
                median.seconds,
                median.seconds_min,
                median.seconds_max,
                median.wire_bytes as f64 / 1e6,
                median.cpu_seconds,
                Size(median.peak_rss_bytes).to_string(),
                if median.verified { "equal" } else { "NOT EQUAL" },
            )?;
        }
        if let (Some(best), Some(ratio)) = (&self.best_peer, self.ratio_to_best_peer) {
            writeln!(f, "  {ratio:.2} times as fast as the best of the others, {best}")?;
        }
        if let (Some(limit), Some(ratio)) = (&self.limit, self.ratio_to_limit) {
            writeln!(f, "  {ratio:.3} of the time that the link needs at least ({limit})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(tool: &str, seconds: f64, wire_bytes: u64) -> Run {
        Run::new(tool, 1, seconds, wire_bytes, Usage { cpu_seconds: 1.0, peak_rss_bytes: 1 }, true)
    }

    #[test]
    fn ratios_are_of_medians() {
        let ours = [10.0, 12.0, 30.0].map(|seconds| run(OURS, seconds, 1_000_000_000));
        let slow = [50.0, 60.0, 70.0].map(|seconds| run("slow", seconds, 1));
        let best = [24.0, 36.0, 48.0].map(|seconds| run("best", seconds, 1));
        let runs = ours.into_iter().chain(slow).chain(best).collect();
        let found = Comparison::of(runs, Some(1_000_000_000));
        assert_eq!(found.best_peer.as_deref(), Some("best"));
        assert_eq!(found.ratio_to_best_peer, Some(3.0));
        assert_eq!(found.ratio_to_limit, Some(1.5));
    }
}
