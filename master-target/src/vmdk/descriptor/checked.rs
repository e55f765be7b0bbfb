//! The checked form of a descriptor: the values that decide what may be done with a disk.

use super::{
    CID, Entry, LONG_CONTENT_ID, RawDescriptor,
    error::{DescriptorError, excerpt},
};
use crate::vmdk::{content_id::ContentId, geometry::DiskUuid};

/// What a descriptor says about its disk. Keys that decide nothing (geometry, tools version) are not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// 1: plain. 2: encrypted by a hosted product. 3: changed blocks are tracked. 4: vSAN snapshot.
    pub version: u32,
    /// Changes with every change of content.
    pub content_id: ContentId,
    /// That of the parent when this link was made; [`ContentId::NO_PARENT`] on a base disk.
    pub parent_content_id: ContentId,
    /// The parent's descriptor, on a snapshot.
    pub parent_hint: Option<String>,
    /// The kind of disk.
    pub create_type: CreateType,
    /// Content is encrypted.
    pub encrypted: bool,
    /// The file in which ESXi tracks changed blocks.
    pub change_tracking: Option<String>,
    /// The storage array holds the parent.
    pub native_snapshot: bool,
    /// An I/O filter (replication, caching, encryption) sits between ESXi and the extent.
    pub filtered: bool,
    /// Where the bytes are, in order.
    pub extents: Vec<Extent>,
    /// Identity of the disk.
    pub uuid: Option<DiskUuid>,
    /// Created thin.
    pub thin: bool,
}

/// `createType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the format, listed in CREATE_TYPES")]
pub enum CreateType {
    Vmfs,
    VmfsSparse,
    SeSparse,
    VsanSparse,
    VmfsRawDeviceMap,
    VmfsPassthroughRawDeviceMap,
    VmfsRaw,
    MonolithicFlat,
    MonolithicSparse,
    TwoGbMaxExtentFlat,
    TwoGbMaxExtentSparse,
    StreamOptimized,
    FullDevice,
    PartitionedDevice,
    Custom,
}

const CREATE_TYPES: [(&str, CreateType); 15] = [
    ("vmfs", CreateType::Vmfs),
    ("vmfsSparse", CreateType::VmfsSparse),
    ("seSparse", CreateType::SeSparse),
    ("vsanSparse", CreateType::VsanSparse),
    ("vmfsRawDeviceMap", CreateType::VmfsRawDeviceMap),
    ("vmfsPassthroughRawDeviceMap", CreateType::VmfsPassthroughRawDeviceMap),
    ("vmfsRaw", CreateType::VmfsRaw),
    ("monolithicFlat", CreateType::MonolithicFlat),
    ("monolithicSparse", CreateType::MonolithicSparse),
    ("twoGbMaxExtentFlat", CreateType::TwoGbMaxExtentFlat),
    ("twoGbMaxExtentSparse", CreateType::TwoGbMaxExtentSparse),
    ("streamOptimized", CreateType::StreamOptimized),
    ("fullDevice", CreateType::FullDevice),
    ("partitionedDevice", CreateType::PartitionedDevice),
    ("custom", CreateType::Custom),
];

/// What may be done with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `RW`.
    ReadWrite,
    /// `RDONLY`.
    ReadOnly,
    /// `NOACCESS`.
    None,
}

const ACCESS: [(&str, Access); 3] =
    [("RW", Access::ReadWrite), ("RDONLY", Access::ReadOnly), ("NOACCESS", Access::None)];

/// How the bytes of an extent are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the format, listed in EXTENT_TYPES")]
pub enum ExtentType {
    Vmfs,
    VmfsSparse,
    SeSparse,
    VsanSparse,
    VmfsRdm,
    VmfsRaw,
    Flat,
    Sparse,
    Zero,
}

const EXTENT_TYPES: [(&str, ExtentType); 9] = [
    ("VMFS", ExtentType::Vmfs),
    ("VMFSSPARSE", ExtentType::VmfsSparse),
    ("SESPARSE", ExtentType::SeSparse),
    ("VSANSPARSE", ExtentType::VsanSparse),
    ("VMFSRDM", ExtentType::VmfsRdm),
    ("VMFSRAW", ExtentType::VmfsRaw),
    ("FLAT", ExtentType::Flat),
    ("SPARSE", ExtentType::Sparse),
    ("ZERO", ExtentType::Zero),
];

/// A stretch of the disk and the file that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What may be done with it.
    pub access: Access,
    /// Length in sectors of 512 bytes.
    pub sectors: u64,
    /// How it is stored.
    pub kind: ExtentType,
    /// The file, as written there; only `ZERO` has none. Not checked: it may name anything.
    pub file: Option<String>,
    /// Sector of the file at which it starts; only with `FLAT`.
    pub offset: Option<u64>,
}

impl TryFrom<&RawDescriptor> for Descriptor {
    type Error = DescriptorError;

    fn try_from(raw: &RawDescriptor) -> Result<Self, DescriptorError> {
        Ok(Self {
            version: required(raw, "version", "a small number", |text| number(text)?.try_into().ok())?,
            content_id: required(raw, CID, "eight hexadecimal digits", ContentId::parse)?,
            parent_content_id: required(raw, "parentCID", "eight hexadecimal digits", ContentId::parse)?,
            parent_hint: optional(raw, "parentFileNameHint", "a file name", owned)?,
            create_type: required(raw, "createType", "a type that VMware documents", |text| {
                look_up(&CREATE_TYPES, text)
            })?,
            encrypted: raw.get("encryptionKeys").is_some(),
            change_tracking: optional(raw, "changeTrackPath", "a file name", owned)?,
            native_snapshot: optional(raw, "isNativeSnapshot", "yes or no", yes_or_no)?.unwrap_or(false),
            filtered: raw.get("ddb.iofilters").is_some(),
            extents: raw.extent_lines().map(|(line, bytes)| extent(line, bytes)).collect::<Result<_, _>>()?,
            uuid: optional(raw, "ddb.uuid", "32 hexadecimal digits", |text| text.parse().ok())?,
            thin: optional(raw, "ddb.thinProvisioned", "0 or 1", zero_or_one)?.unwrap_or(false),
        })
    }
}

impl CreateType {
    /// As in the descriptor.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        CREATE_TYPES.iter().find(|(_, found)| *found == self).map_or("", |(name, _)| name)
    }
}

impl Access {
    /// As in the descriptor.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        ACCESS.iter().find(|(_, found)| *found == self).map_or("", |(name, _)| name)
    }
}

impl ExtentType {
    /// As in the descriptor.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        EXTENT_TYPES.iter().find(|(_, found)| *found == self).map_or("", |(name, _)| name)
    }
}

/// Checks the value of `ddb.longContentID`: ASCII, and long enough for a CID at its end.
pub(super) fn long_content_id(entry: Entry<'_>) -> Result<&str, DescriptorError> {
    let text = std::str::from_utf8(entry.value).ok().filter(|text| text.is_ascii() && text.len() >= 8);
    text.ok_or_else(|| bad(LONG_CONTENT_ID, entry, "32 hexadecimal digits"))
}

fn required<T>(
    raw: &RawDescriptor,
    key: &'static str,
    expected: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, DescriptorError> {
    optional(raw, key, expected, read)?.ok_or(DescriptorError::Missing { key })
}

fn optional<T>(
    raw: &RawDescriptor,
    key: &'static str,
    expected: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, DescriptorError> {
    let Some(entry) = raw.get(key) else { return Ok(None) };
    let value = std::str::from_utf8(entry.value).ok().and_then(read);
    value.map(Some).ok_or_else(|| bad(key, entry, expected))
}

fn bad(key: &'static str, entry: Entry<'_>, expected: &'static str) -> DescriptorError {
    DescriptorError::BadValue { line: entry.line, key, value: excerpt(entry.value), expected }
}

#[expect(clippy::unnecessary_wraps, reason = "the readers of values all have this shape")]
fn owned(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn yes_or_no(text: &str) -> Option<bool> {
    look_up(&[("yes", true), ("no", false)], text)
}

fn zero_or_one(text: &str) -> Option<bool> {
    look_up(&[("1", true), ("0", false)], text)
}

fn look_up<T: Copy>(table: &[(&str, T)], text: &str) -> Option<T> {
    table.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, value)| *value)
}

/// Reads `RW|RDONLY|NOACCESS sectors TYPE ["file"] [offset]`.
fn extent(line: usize, bytes: &[u8]) -> Result<Extent, DescriptorError> {
    let wrong = |what| DescriptorError::BadExtent { line, what, text: excerpt(bytes.trim_ascii()) };
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("a name that is not UTF-8"))?;
    let (words, file, offset) = match text.split('"').collect::<Vec<_>>()[..] {
        [words] => (words, None, ""),
        [words, file, offset] => (words, Some(file.to_owned()), offset.trim()),
        _ => return Err(wrong("unpaired quotes")),
    };
    let [access, sectors, kind] = words.split_ascii_whitespace().collect::<Vec<_>>()[..] else {
        return Err(wrong("other than an access mode, a length and a type"));
    };
    let extent = Extent {
        access: look_up(&ACCESS, access).ok_or_else(|| wrong("an unknown access mode"))?,
        sectors: number(sectors).ok_or_else(|| wrong("a length that is not a number of sectors"))?,
        kind: look_up(&EXTENT_TYPES, kind).ok_or_else(|| wrong("an unknown type"))?,
        file,
        offset: match offset {
            "" => None,
            digits => Some(number(digits).ok_or_else(|| wrong("an offset that is not a number"))?),
        },
    };
    match (extent.kind, &extent.file, extent.offset) {
        (ExtentType::Flat, Some(_), None) => Err(wrong("no offset")),
        (ExtentType::Flat, Some(_), Some(_)) => Ok(extent),
        (_, _, Some(_)) => Err(wrong("an offset, which only FLAT has")),
        // Some writers name a file that ZERO does not use.
        (ExtentType::Zero, ..) | (_, Some(_), None) => Ok(extent),
        (_, None, None) => Err(wrong("no file name")),
    }
}

/// Digits only; `parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}
