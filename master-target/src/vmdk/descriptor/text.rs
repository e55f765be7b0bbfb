//! The text of a new disk's descriptor, as ESXi writes it, the blank after "Data Base" included.

use std::fmt;

use rand::Rng;

use super::CreateType;
use crate::vmdk::{
    content_id::ContentId,
    geometry::{AdapterType, Capacity, DiskUuid, Geometry},
};

/// What the text says. [`fmt::Display`] is the text.
#[derive(Clone, Debug)]
pub struct NewText<'a> {
    /// The kind of disk.
    pub create_type: CreateType,
    /// Access and type of the extent, as in `RW` and `VMFS`.
    pub extent: (&'a str, &'a str),
    /// The extent's file, without quotes.
    pub file: &'a str,
    /// Size.
    pub capacity: Capacity,
    /// Controller it is made for.
    pub adapter: AdapterType,
    /// Says that space is taken as blocks are written.
    pub thin: bool,
    /// Identity, for a disk that is to have one of its own.
    pub uuid: Option<DiskUuid>,
    /// The content id.
    pub content_id: ContentId,
    /// The 96 bits of `ddb.longContentID` before the content id.
    pub long_prefix: u128,
}

/// Random bits for [`NewText::long_prefix`].
pub fn random_long_prefix(rng: &mut (impl Rng + ?Sized)) -> u128 {
    u128::from(rng.next_u64()) << 32 | u128::from(rng.next_u32())
}

impl fmt::Display for NewText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Geometry { cylinders, heads, sectors } = Geometry::of(self.capacity, self.adapter);
        let (access, extent_type) = self.extent;
        write!(
            f,
            "# Disk DescriptorFile\n\
             version=1\n\
             encoding=\"UTF-8\"\n\
             CID={cid}\n\
             parentCID={no_parent}\n\
             createType=\"{create_type}\"\n\
             \n\
             # Extent description\n\
             {access} {length} {extent_type} \"{file}\"\n\
             \n\
             # The Disk Data Base \n\
             #DDB\n\
             \n\
             ddb.adapterType = \"{adapter}\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"{heads}\"\n\
             ddb.geometry.sectors = \"{sectors}\"\n\
             ddb.longContentID = \"{long_prefix:024x}{cid}\"\n",
            cid = self.content_id,
            no_parent = ContentId::NO_PARENT,
            create_type = self.create_type.as_str(),
            length = self.capacity.sectors(),
            file = self.file,
            adapter = self.adapter.as_str(),
            long_prefix = self.long_prefix,
        )?;
        if self.thin {
            f.write_str("ddb.thinProvisioned = \"1\"\n")?;
        }
        if let Some(uuid) = self.uuid {
            writeln!(f, "ddb.uuid = \"{uuid}\"")?;
        }
        f.write_str("ddb.virtualHWVersion = \"14\"\n")
    }
}
