//! Sizes, rates and durations as people write them in configuration files and on command lines.
//!
//! Crates parse the numbers; here stand only our types, exact in machine-readable output, and what the errors
//! suggest. All implement `FromStr`, which is all that clap needs.

use std::{fmt, str::FromStr, time::Duration};

use bytesize::ByteSize;
use jiff::{SignedDuration, fmt::friendly::SpanPrinter};
use serde::{Deserialize, Serialize, de};
use thiserror::Error;

/// A number of bytes: `"64MiB"`, `"1.5GB"`, or a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// Bytes per second: `"25MB/s"`, `"200Mbit/s"` (eight bits to the byte).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u64);

/// A length of time: `"5s"`, `"15min"`, `"1h 30m"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

/// A text is no quantity of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// Not a [`Size`].
    #[error("{0:?} is no size; write it like \"64MiB\", \"10GB\" or 4096")]
    Size(String),
    /// Not a [`Rate`].
    #[error("{0:?} is no rate; write it like \"25MB/s\" or \"200Mbit/s\"")]
    Rate(String),
    /// Not a [`Period`].
    #[error("{0:?} is no duration; write it like \"5s\", \"500ms\", \"15min\" or \"2h\"")]
    Period(String),
}

impl FromStr for Size {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        match text.trim().parse::<ByteSize>() {
            Ok(size) => Ok(Self(size.0)),
            Err(_) => Err(QuantityError::Size(text.into())),
        }
    }
}

impl FromStr for Rate {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let wrong = || QuantityError::Rate(text.into());
        let amount = text.trim().strip_suffix("/s").ok_or_else(wrong)?;
        let (amount, per_byte) = match amount.strip_suffix("bit") {
            Some(bits) => (bits, 8),
            None => (amount, 1),
        };
        Ok(Self(amount.parse::<Size>().map_err(|_| wrong())?.0 / per_byte))
    }
}

impl FromStr for Period {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let wrong = || QuantityError::Period(text.into());
        let signed: SignedDuration = text.trim().parse().map_err(|_| wrong())?;
        Ok(Self(Duration::try_from(signed).map_err(|_| wrong())?))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ByteSize(self.0).display().iec().fmt(f)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&SpanPrinter::new().unsigned_duration_to_string(&self.0))
    }
}

/// Exact: bytes, as a number.
impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;

        impl de::Visitor<'_> for NumberOrText {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size like \"64MiB\", or a number of bytes")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map(Size)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(NumberOrText)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("4096", 4096), ("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("10GB", 10_000_000_000)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "GiB", "-1", "1 parsec", "1GiB/s"] {
            assert_eq!(bad.parse::<Size>(), Err(QuantityError::Size(bad.into())));
        }
        assert_eq!(Size(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(serde_json::from_str::<Size>("7").unwrap(), Size(7));
        assert_eq!(serde_json::to_string(&Size(1 << 40)).unwrap(), "1099511627776");
        assert!(serde_json::from_str::<Size>("-7").is_err());
    }

    #[test]
    fn rates() {
        for (text, bytes) in
            [("25MB/s", 25_000_000), ("200Mbit/s", 25_000_000), ("1GiB/s", 1 << 30), ("8bit/s", 1)]
        {
            assert_eq!(text.parse(), Ok(Rate(bytes)), "{text}");
        }
        for bad in ["25MB", "fast", "/s", "bit/s", "1Mbit"] {
            assert_eq!(bad.parse::<Rate>(), Err(QuantityError::Rate(bad.into())));
        }
        assert_eq!(Rate(1 << 20).to_string(), "1.0 MiB/s");
    }

    #[test]
    fn periods() {
        for (text, ms) in [("5s", 5000), ("15min", 900_000), ("500ms", 500), ("1h 30m", 5_400_000)] {
            assert_eq!(text.parse(), Ok(Period(Duration::from_millis(ms))), "{text}");
        }
        for bad in ["", "5", "-5s", "soon"] {
            assert_eq!(bad.parse::<Period>(), Err(QuantityError::Period(bad.into())));
        }
        assert_eq!(Period(Duration::from_secs(90)).to_string(), "1m 30s");
    }
}
