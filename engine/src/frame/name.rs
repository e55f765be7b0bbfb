//! Names that peers may give to things: they become names of files and folders.

/// Whether something may be the name of a VM, a disk or a group: 1 to 63 letters, digits, '.', '_', '-', not beginning
/// with '.' or '-'.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
