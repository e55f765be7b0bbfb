//! How many measurements become a few figures.

use serde::Serialize;

/// Order statistics of a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    pub min: f64,
    pub q1: f64,
    pub median: f64,
    pub q3: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    /// All zeros for an empty sample. The p99 of 100 values is the largest but one.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        // Nearest rank: the smallest value that at least this share of the sample does not exceed.
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self { min: at(0.0), q1: at(0.25), median: at(0.5), q3: at(0.75), p99: at(0.99), max: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest() {
        let spread = Spread::of((1..=100).rev().map(f64::from));
        let expected = Spread { min: 1.0, q1: 25.0, median: 50.0, q3: 75.0, p99: 99.0, max: 100.0 };
        assert_eq!(spread, expected);
        assert_eq!(Spread::of([7.0]), Spread { min: 7.0, q1: 7.0, median: 7.0, q3: 7.0, p99: 7.0, max: 7.0 });
        assert_eq!(Spread::of([]), Spread::default());
    }
}
