//! How hard frames are compressed: as hard as does not hold the copy up.
//!
//! Where frames wait, and how long, shows what is slowest. While packing is, lighter levels copy faster; while the link or the
//! target is, packers have time to spare, and heavier levels send less. Summed over [`WINDOW`] frames, one level at a time.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// zstd levels, from the lightest to the heaviest. What is lighter than these saves hardly any time, what is heavier
/// hardly any bytes (docs/performance.md).
const LEVELS: [i32; 6] = [-1, 1, 2, 3, 6, 9];

/// Where [`Compression::Adaptive`] begins.
const FIRST: usize = 1;

/// Frames after which it is decided anew.
const WINDOW: u32 = 32;

/// What frames waited for counts from this part of the time on, if it is twice as long as what they waited for else.
const PART: u32 = 8;

/// A level that was too heavy is tried again after this many windows at most.
const PATIENCE: u32 = 64;

/// How the configuration writes [`Compression::Adaptive`].
pub const ADAPTIVE: &str = "adaptive";

/// `compression` in the configuration: `"adaptive"` or a zstd level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// What suits the link and the CPUs at each time.
    Adaptive,
    /// Always this zstd level; 0 does not compress.
    Level(i32),
}

impl fmt::Display for Compression {
    /// As it stands in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adaptive => write!(f, "\"{ADAPTIVE}\""),
            Self::Level(level) => write!(f, "{level}"),
        }
    }
}

impl Serialize for Compression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Adaptive => serializer.serialize_str(ADAPTIVE),
            Self::Level(level) => serializer.serialize_i32(*level),
        }
    }
}

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Compression;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"adaptive\" or a zstd level from 0 (none) to 19")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Compression, E> {
                if text == ADAPTIVE {
                    Ok(Compression::Adaptive)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }

            fn visit_i64<E: de::Error>(self, level: i64) -> Result<Compression, E> {
                match i32::try_from(level) {
                    Ok(level @ 0..=19) => Ok(Compression::Level(level)),
                    _ => Err(E::invalid_value(de::Unexpected::Signed(level), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Where the time went from one frame to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// All of it.
    pub in_all: Duration,
    /// Until it was packed, when it could have gone.
    pub for_packing: Duration,
    /// Until there was room in the window.
    pub for_room: Duration,
}

/// Chooses the level of the frames that come next.
#[derive(Debug)]
pub struct Chooser {
    /// `None` if there is nothing to choose.
    adaptive: Option<Adaptive>,
    fixed: i32,
}

#[derive(Debug)]
struct Adaptive {
    /// Into [`LEVELS`].
    at: usize,
    frames: u32,
    waited: Waited,
    /// Windows until a heavier level is tried again, and after the next time that it is too heavy.
    rest: u32,
    patience: u32,
}

impl Chooser {
    /// One that does what the configuration says.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        let first = Adaptive { at: FIRST, frames: 0, waited: Waited::default(), rest: 0, patience: 1 };
        match compression {
            Compression::Adaptive => Self { adaptive: Some(first), fixed: 0 },
            Compression::Level(fixed) => Self { adaptive: None, fixed },
        }
    }

    /// The level of the next frame.
    #[must_use]
    pub fn level(&self) -> i32 {
        self.adaptive.as_ref().map_or(self.fixed, |adaptive| LEVELS[adaptive.at])
    }

    /// Learns from a frame that was sealed.
    pub fn note(&mut self, waited: Waited) {
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.note(waited);
        }
    }
}

impl Adaptive {
    fn note(&mut self, waited: Waited) {
        self.frames += 1;
        self.waited.in_all += waited.in_all;
        self.waited.for_packing += waited.for_packing;
        self.waited.for_room += waited.for_room;
        if self.frames < WINDOW {
            return;
        }
        let Waited { in_all, for_packing, for_room } = self.waited;
        if for_packing * PART >= in_all && for_packing > 2 * for_room {
            self.at = self.at.saturating_sub(1);
            self.rest = self.patience;
            self.patience = (2 * self.patience).min(PATIENCE);
        } else if for_room * PART >= in_all && for_room > 2 * for_packing {
            if self.rest == 0 {
                self.at = (self.at + 1).min(LEVELS.len() - 1);
            }
            self.rest = self.rest.saturating_sub(1);
        }
        (self.frames, self.waited) = (0, Waited::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn waited(for_packing: u64, for_room: u64) -> Waited {
        let millis = Duration::from_millis;
        Waited { in_all: millis(10), for_packing: millis(for_packing), for_room: millis(for_room) }
    }

    /// A world in which packing at `LEVELS[..=fits]` is quick enough.
    fn run(chooser: &mut Chooser, fits: usize, windows: u32) -> Vec<i32> {
        let step = |_| {
            let level = chooser.level();
            let late = LEVELS.iter().position(|l| *l == level).unwrap() > fits;
            (0..WINDOW).for_each(|_| chooser.note(if late { waited(6, 1) } else { waited(1, 6) }));
            level
        };
        (0..windows).map(step).collect()
    }

    #[test]
    fn it_finds_the_heaviest_level_that_fits_and_seldom_tries_more() {
        for (fits, fitting) in LEVELS.iter().enumerate() {
            let mut chooser = Chooser::new(Compression::Adaptive);
            let levels = run(&mut chooser, fits, 300);
            let right = levels[10..].iter().filter(|level| level == &fitting).count();
            assert!(right > 270, "{fits}: {levels:?}");
        }
    }

    #[test]
    fn it_follows_a_link_that_becomes_faster_or_slower() {
        let mut chooser = Chooser::new(Compression::Adaptive);
        run(&mut chooser, 5, 20);
        assert_eq!(chooser.level(), 9);
        run(&mut chooser, 0, 10);
        assert_eq!(chooser.level(), -1);
        run(&mut chooser, 3, 2 * PATIENCE);
        assert_eq!(chooser.level(), 3);
    }

    #[test]
    fn balance_and_a_slow_disk_change_nothing() {
        let mut chooser = Chooser::new(Compression::Adaptive);
        for waited in [waited(0, 0), waited(1, 1), waited(4, 5), waited(5, 4)] {
            (0..100 * WINDOW).for_each(|_| chooser.note(waited));
            assert_eq!(chooser.level(), 1);
        }
        let mut fixed = Chooser::new(Compression::Level(0));
        (0..100 * WINDOW).for_each(|_| fixed.note(waited(0, 9)));
        assert_eq!(fixed.level(), 0);
    }
}
