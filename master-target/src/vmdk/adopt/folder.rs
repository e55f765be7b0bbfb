//! What stands beside a disk and speaks against writing to it: whatever depends on it, and whatever holds it.
//!
//! Snapshots are looked for in every place that tells of them, as orphans exist: their descriptors, their data, the VM's
//! list of snapshots (`.vmsd`) and the disks that its configuration (`.vmx`) names.

use std::path::Path;

use engine::io::Storage;

use super::Refusal;
use crate::vmdk::{
    content_id::ContentId,
    descriptor::{DescriptorError, RawDescriptor},
    flat::{FlatError, FlatErrorKind, at, read_text},
};

/// A disk and its folder.
struct Looked<'a> {
    storage: &'a dyn Storage,
    dir: &'a Path,
    names: Vec<String>,
    /// The descriptor's name, and its stem.
    own: &'a str,
    stem: &'a str,
    /// The name of the file with the bytes.
    flat: &'a str,
    content_id: ContentId,
}

/// Looks through the folder of the disk of `descriptor`, whose bytes are in `flat`.
pub(super) fn check(
    storage: &dyn Storage,
    descriptor: &Path,
    flat: &str,
    content_id: ContentId,
) -> Result<(), Refusal> {
    let dir = descriptor.parent().unwrap_or(Path::new(""));
    let own = descriptor.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = own.get(..own.len().saturating_sub(".vmdk".len())).unwrap_or(own);
    let names = storage.list(dir).map_err(at(dir, "list the folder"))?;
    let looked = Looked { storage, dir, names, own, stem, flat, content_id };
    looked.names.iter().try_for_each(|name| looked.check_use(name))?;
    looked.names.iter().try_for_each(|name| looked.check_snapshots(name))
}

impl Looked<'_> {
    /// Signs that somebody has the disk, or will go on with it.
    fn check_use(&self, name: &str) -> Result<(), Refusal> {
        // ESXi's locks on NFS cannot be told apart by disk; hosted products' can.
        let lock = name.strip_suffix(".lck").is_some_and(|of| of == self.own || of == self.flat);
        if lock || name.starts_with(".lck-") {
            return Err(Refusal::Locked(name.to_owned()));
        }
        if name.ends_with(".vswp") || name.ends_with(".vmx.lck") {
            return Err(Refusal::Running(name.to_owned()));
        }
        if name.ends_with(".vmss") {
            return Err(Refusal::Suspended(name.to_owned()));
        }
        Ok(())
    }

    fn check_snapshots(&self, name: &str) -> Result<(), Refusal> {
        let lower = name.to_ascii_lowercase();
        if lower.ends_with(".vmsd") {
            self.check_list(name)
        } else if lower.ends_with(".vmx") {
            self.check_configuration(name)
        } else if lower.len() > 5 && lower.ends_with(".vmdk") && name != self.own && name != self.flat {
            self.check_data(name)?;
            self.check_neighbour(name)
        } else {
            Ok(())
        }
    }

    /// The VM's list of snapshots: `snapshot.numSnapshots = "2"`.
    fn check_list(&self, name: &str) -> Result<(), Refusal> {
        let text = self.read(name)?;
        let values = text.lines().filter_map(|line| line.split_once('='));
        let mut numbers = values.filter(|(key, _)| key.trim().eq_ignore_ascii_case("snapshot.numSnapshots"));
        let count = numbers.next().map(|(_, value)| value.trim().trim_matches('"').parse::<u32>());
        match count {
            // A list without a number is one that never had a snapshot, or it is not what it should be.
            None if !text.contains("snapshot0.") => Ok(()),
            Some(Ok(0)) => Ok(()),
            Some(Ok(count)) => Err(Refusal::HasSnapshots { file: name.to_owned(), count }),
            None | Some(Err(_)) => Err(Refusal::UnreadableNeighbour {
                neighbour: name.to_owned(),
                error: DescriptorError::Missing { key: "snapshot.numSnapshots" },
            }),
        }
    }

    /// The VM's configuration: `scsi0:0.fileName = "web-01-000002.vmdk"`.
    fn check_configuration(&self, name: &str) -> Result<(), Refusal> {
        let text = self.read(name)?;
        let values = text.lines().filter_map(|line| line.split_once('='));
        let mut files = values.map(|(_, value)| file_name(value.trim().trim_matches('"')));
        match files.find(|file| self.is_link(file, ".vmdk")) {
            Some(link) => Err(Refusal::RunsFromSnapshot { file: name.to_owned(), link: link.to_owned() }),
            None => Ok(()),
        }
    }

    /// A snapshot's data without its descriptor, which would name its parent.
    fn check_data(&self, name: &str) -> Result<(), Refusal> {
        let data = ["-delta.vmdk", "-sesparse.vmdk"].into_iter().find(|end| self.is_link(name, end));
        let Some(end) = data else { return Ok(()) };
        let descriptor = format!("{}.vmdk", &name[..name.len() - end.len()]);
        let is_there = self.names.iter().any(|other| other.eq_ignore_ascii_case(&descriptor));
        if is_there { Ok(()) } else { Err(Refusal::Orphan { file: name.to_owned() }) }
    }

    /// Another descriptor: of a snapshot of this disk, or one that claims its bytes.
    fn check_neighbour(&self, name: &str) -> Result<(), Refusal> {
        let text = match read_text(self.storage, &self.dir.join(name)) {
            Ok(text) => text,
            // Not a descriptor but the bytes of one.
            Err(FlatError { kind: FlatErrorKind::Descriptor(_), .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let raw = match RawDescriptor::parse(&text) {
            Ok(raw) => raw,
            Err(error) if text.starts_with(b"#") => {
                return Err(Refusal::UnreadableNeighbour { neighbour: name.to_owned(), error });
            }
            Err(_) => return Ok(()),
        };
        // The hint may be a path. A parent of this name elsewhere is taken for this one, to be safe.
        let hint = raw.get("parentFileNameHint").map(|hint| String::from_utf8_lossy(hint.value));
        let by_name = hint.as_deref().is_some_and(|hint| file_name(hint) == self.own);
        // The parent may have got another name since. What is fresh has the same content id as all that is.
        let parent =
            raw.get("parentCID").and_then(|id| ContentId::parse(std::str::from_utf8(id.value).ok()?));
        let by_content = parent == Some(self.content_id)
            && ![ContentId::FRESH, ContentId::NO_PARENT, ContentId::from_bits(0)].contains(&self.content_id);
        if by_name || by_content {
            return Err(Refusal::HasChild { child: name.to_owned() });
        }
        let quoted = format!("\"{}\"", self.flat);
        let mut extents = raw.extent_lines();
        if extents.any(|(_, line)| line.windows(quoted.len()).any(|part| part == quoted.as_bytes())) {
            return Err(Refusal::SharedExtent { other: name.to_owned(), file: self.flat.to_owned() });
        }
        Ok(())
    }

    /// Whether a name is that of a snapshot of this disk, as in `web-01-000002` before `end`.
    fn is_link(&self, name: &str, end: &str) -> bool {
        let Some(rest) = name.get(..self.stem.len()).filter(|start| start.eq_ignore_ascii_case(self.stem))
        else {
            return false;
        };
        let rest = name[rest.len()..].to_ascii_lowercase();
        let number = rest.strip_prefix('-').and_then(|rest| rest.strip_suffix(end));
        number.is_some_and(|number| number.len() == 6 && number.bytes().all(|byte| byte.is_ascii_digit()))
    }

    fn read(&self, name: &str) -> Result<String, Refusal> {
        match read_text(self.storage, &self.dir.join(name)) {
            Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            Err(FlatError { kind: FlatErrorKind::Descriptor(error), .. }) => {
                Err(Refusal::UnreadableNeighbour { neighbour: name.to_owned(), error })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The last part of a path of ESXi's or of Windows'.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}
