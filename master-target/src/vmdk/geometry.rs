//! The numbers on a VMDK's label: capacity, cylinders, adapter type and uuid.
//!
//! It only computes and spells; nothing here reads or writes a file.

use std::{fmt, str::FromStr};

use engine::limits::DISK_BYTES;
use rand::Rng;

/// Bytes in one sector, the unit of every count in a VMDK.
pub const SECTOR_BYTES: u64 = 512;

/// What new disks are rounded up to. VMware counts in KiB at the coarsest; whole MiB also suit every partitioner.
const ROUND_TO: u64 = 1 << 20;

/// Size of a virtual disk: whole sectors, at least one, at most 62 TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capacity {
    sectors: u64,
}

/// A size that no VMDK can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapacityError {
    /// Nothing to store.
    #[error("a disk of 0 bytes cannot be made a VMDK")]
    Zero,
    /// Over VMware's limit. The number is in bytes, saturated.
    #[error("{0} bytes are more than the {DISK_BYTES} bytes (62 TiB) that a VMDK can hold")]
    TooLarge(u64),
}

impl Capacity {
    /// The capacity of a new VMDK that has room for `bytes`: rounded up to whole MiB. The caller remembers the
    /// true size; the bytes between read as zeros.
    pub fn for_bytes(bytes: u64) -> Result<Self, CapacityError> {
        if bytes > DISK_BYTES {
            return Err(CapacityError::TooLarge(bytes));
        }
        Self::from_sectors(bytes.next_multiple_of(ROUND_TO) / SECTOR_BYTES)
    }

    /// The capacity of an existing VMDK.
    pub fn from_sectors(sectors: u64) -> Result<Self, CapacityError> {
        match sectors.saturating_mul(SECTOR_BYTES) {
            0 => Err(CapacityError::Zero),
            bytes if bytes > DISK_BYTES => Err(CapacityError::TooLarge(bytes)),
            _ => Ok(Self { sectors }),
        }
    }

    /// In sectors of 512 bytes.
    #[must_use]
    pub const fn sectors(self) -> u64 {
        self.sectors
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.sectors * SECTOR_BYTES
    }
}

/// The controller family a disk was made for. A disk on a paravirtual (PVSCSI) controller also says `lsilogic`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterType {
    /// SCSI; right for LSI Logic and PVSCSI controllers.
    #[default]
    LsiLogic,
    /// The old SCSI controller.
    BusLogic,
    /// IDE.
    Ide,
}

impl AdapterType {
    /// As in `ddb.adapterType`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LsiLogic => "lsilogic",
            Self::BusLogic => "buslogic",
            Self::Ide => "ide",
        }
    }
}

/// Cylinders, heads and sectors per track. Guests address by block; this is for old firmware only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Whole cylinders that fit; at least 1. Not capped, as on ESXi.
    pub cylinders: u64,
    /// Heads.
    pub heads: u64,
    /// Sectors per track.
    pub sectors: u64,
}

impl Geometry {
    /// What ESXi writes for a disk of this size.
    #[must_use]
    pub fn of(capacity: Capacity, adapter: AdapterType) -> Self {
        let (heads, sectors) = match adapter {
            AdapterType::Ide => (16, 63),
            AdapterType::LsiLogic | AdapterType::BusLogic => (255, 63),
        };
        Self { cylinders: (capacity.sectors / (heads * sectors)).max(1), heads, sectors }
    }
}

/// Identity of a VMDK. The guest sees it as the disk's serial number, vCenter as `backing.uuid`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskUuid([u8; 16]);

/// VMware's own range, written with this odd mixture of cases.
const VMWARE_PREFIX: [u8; 3] = [0x60, 0x00, 0xc2];

impl DiskUuid {
    /// A new one in VMware's range (`60 00 C2 9…`).
    #[must_use]
    pub fn random(rng: &mut (impl Rng + ?Sized)) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        bytes[..3].copy_from_slice(&VMWARE_PREFIX);
        bytes[3] = 0x90 | bytes[3] & 0x0f;
        Self(bytes)
    }

    /// The 32 lower-case digits that a guest sees as the serial number.
    #[must_use]
    pub fn serial(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Text that is not a disk uuid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a disk uuid (32 hexadecimal digits, grouped by spaces and hyphens)")]
pub struct UuidError(String);

impl FromStr for DiskUuid {
    type Err = UuidError;

    /// Reads every form in use: the descriptor's, vCenter's, the guest's.
    fn from_str(text: &str) -> Result<Self, UuidError> {
        let wrong = || UuidError(text.chars().take(80).collect());
        let mut bytes = [0; 16];
        let mut digits = 0;
        for letter in text.chars().filter(|letter| !matches!(letter, ' ' | '-')) {
            let value = letter.to_digit(16).ok_or_else(wrong)? as u8;
            *bytes.get_mut(digits / 2).ok_or_else(wrong)? |= if digits % 2 == 0 { value << 4 } else { value };
            digits += 1;
        }
        if digits == 32 { Ok(Self(bytes)) } else { Err(wrong()) }
    }
}

/// The descriptor's form: `60 00 C2 9f 28 1e 65 bf-3d cc 5e f0 f5 42 1e f6`.
impl fmt::Display for DiskUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            f.write_str(match i {
                0 => "",
                8 => "-",
                _ => " ",
            })?;
            if i < 3 && self.0.starts_with(&VMWARE_PREFIX) {
                write!(f, "{byte:02X}")?;
            } else {
                write!(f, "{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for DiskUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskUuid({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn new_disks_are_whole_mebibytes() {
        for (bytes, sectors) in
            [(1, 2048), (1 << 20, 2048), ((1 << 20) + 1, 4096), (62 << 40, 133_143_986_176)]
        {
            assert_eq!(Capacity::for_bytes(bytes).map(Capacity::sectors), Ok(sectors), "{bytes}");
        }
        assert_eq!(Capacity::for_bytes(0), Err(CapacityError::Zero));
        assert_eq!(Capacity::for_bytes((62 << 40) + 1), Err(CapacityError::TooLarge((62 << 40) + 1)));
        assert_eq!(Capacity::for_bytes(u64::MAX), Err(CapacityError::TooLarge(u64::MAX)));
        assert_eq!(Capacity::from_sectors(u64::MAX / 2), Err(CapacityError::TooLarge(u64::MAX)));
    }

    #[test]
    fn geometry_is_that_of_esxi() {
        let of = |sectors, adapter| Geometry::of(Capacity::from_sectors(sectors).expect("a size"), adapter);
        // A public ESXi descriptor: 36 GiB on IDE.
        assert_eq!(of(75_497_472, AdapterType::Ide), Geometry { cylinders: 74_898, heads: 16, sectors: 63 });
        assert_eq!(of(83_886_080, AdapterType::LsiLogic).cylinders, 5_221);
        assert_eq!(of(2_048, AdapterType::LsiLogic).cylinders, 1);
    }

    #[test]
    fn every_spelling_of_a_uuid_is_the_same_disk() {
        let text = "60 00 C2 9f 28 1e 65 bf-3d cc 5e f0 f5 42 1e f6";
        let uuid: DiskUuid = text.parse().expect("the descriptor's form");
        assert_eq!("6000C29f-281e-65bf-3dcc-5ef0f5421ef6".parse(), Ok(uuid));
        assert_eq!("6000c29f281e65bf3dcc5ef0f5421ef6".parse(), Ok(uuid));
        assert_eq!(uuid.to_string(), text);
        assert_eq!(uuid.serial(), "6000c29f281e65bf3dcc5ef0f5421ef6");
        for wrong in ["", "6000c29f", &format!("{text} 00"), "6000c29f281e65bf3dcc5ef0f5421eg6"] {
            assert!(wrong.parse::<DiskUuid>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn new_uuids_are_in_the_range_of_vmware() {
        let text = DiskUuid::random(&mut StdRng::seed_from_u64(1)).to_string();
        assert!(text.starts_with("60 00 C2 9"), "{text}");
    }

    proptest! {
        #[test]
        fn uuids_survive_printing(bytes: [u8; 16]) {
            let uuid = DiskUuid(bytes);
            prop_assert_eq!(uuid.to_string().parse(), Ok(uuid));
            prop_assert_eq!(uuid.serial().parse(), Ok(uuid));
        }
    }
}
