//! The content id (CID) of a VMDK: 32 bits that change whenever its content may have changed.
//!
//! A snapshot remembers its parent's CID, and ESXi refuses the chain when they differ. So whoever writes to a
//! disk must give it a new one. The number means nothing else; it is not a checksum.

use std::fmt;

use rand::Rng;

/// A content id. Written as eight lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId(u32);

impl ContentId {
    /// What `parentCID` says on a disk without a parent.
    pub const NO_PARENT: Self = Self(0xffff_ffff);

    /// What ESXi gives a disk that nobody has written to yet.
    pub const FRESH: Self = Self(0xffff_fffe);

    /// A content id as found; every value is possible.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Reads one to eight hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() <= 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if digits { u32::from_str_radix(text, 16).ok().map(Self) } else { None }
    }

    /// One for a disk that was `old` and has been written to: never `old`, and none of the values with a
    /// meaning of their own (0, fresh, no parent).
    #[must_use]
    pub fn after(old: Self, rng: &mut (impl Rng + ?Sized)) -> Self {
        loop {
            let new = Self(rng.next_u32());
            if new != old && new.0 != 0 && new != Self::FRESH && new != Self::NO_PARENT {
                return new;
            }
        }
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentId({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use rand::TryRng;

    use super::*;

    /// Deals out a fixed list of numbers.
    struct Dealt(std::vec::IntoIter<u32>);

    impl TryRng for Dealt {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            Ok(self.0.next().expect("a number is left"))
        }

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            unimplemented!("content ids are 32 bits")
        }

        fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), Infallible> {
            unimplemented!("content ids are 32 bits")
        }
    }

    #[test]
    fn a_new_id_skips_the_old_one_and_those_with_a_meaning() {
        let mut rng = Dealt(vec![0, 0xffff_ffff, 0xffff_fffe, 0x1234, 0xabc].into_iter());
        assert_eq!(ContentId::after(ContentId(0x1234), &mut rng), ContentId(0xabc));
    }

    #[test]
    fn text_form() {
        assert_eq!(ContentId(0xabc).to_string(), "00000abc");
        assert_eq!(ContentId::parse("FFFFFFFE"), Some(ContentId::FRESH));
        assert_eq!(ContentId::parse("7"), Some(ContentId(7)));
        for wrong in ["", "123456789", "+1", "0x12", "12 4"] {
            assert_eq!(ContentId::parse(wrong), None, "{wrong:?}");
        }
    }
}
