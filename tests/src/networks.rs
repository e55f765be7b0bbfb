//! Network namespaces: one in the middle with a bridge, and others that see only that. Needs root, and
//! [`homeward::lab::isolate`] before it, with which they end in any case.

use std::{net::Ipv4Addr, path::PathBuf};

use homeward::lab::{LabError, tool::Tool};

/// Address in the middle.
pub const MIDDLE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// A star of namespaces, deleted when it is dropped.
pub struct Networks {
    names: Vec<String>,
}

impl Networks {
    /// One in the middle and `around` others. Nothing is changed in the namespace of the caller.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn create(around: u8) -> Result<Self, LabError> {
        let name = |index| format!("homeward-{}-{index}", std::process::id());
        let mut networks = Self { names: Vec::new() };
        for index in 0..=around {
            networks.add(name(index))?;
        }
        let middle = &networks.names[0];
        in_namespace(middle, "link add bridge type bridge")?;
        in_namespace(middle, &format!("address add {MIDDLE}/24 dev bridge"))?;
        in_namespace(middle, "link set bridge up")?;
        for (index, name) in networks.names.iter().enumerate().skip(1) {
            in_namespace(middle, &format!("link add to{index} type veth peer name eth0 netns {name}"))?;
            in_namespace(middle, &format!("link set to{index} master bridge up"))?;
            in_namespace(name, &format!("address add 10.77.0.{}/24 dev eth0", index + 1))?;
            in_namespace(name, "link set eth0 up")?;
        }
        Ok(networks)
    }

    fn add(&mut self, name: String) -> Result<(), LabError> {
        ip(&format!("netns add {name}"))?;
        self.names.push(name.clone());
        in_namespace(&name, "link set lo up")
    }

    /// The one in the middle.
    #[must_use]
    pub fn middle(&self) -> PathBuf {
        self.path(0)
    }

    /// One of the others, counted from 0.
    #[must_use]
    pub fn around(&self, index: usize) -> PathBuf {
        self.path(index + 1)
    }

    fn path(&self, index: usize) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.names[index])
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = ip(&format!("netns delete {name}")) {
                println!("left behind: {error}");
            }
        }
    }
}

fn in_namespace(name: &str, words: &str) -> Result<(), LabError> {
    ip(&format!("-n {name} {words}"))
}

fn ip(words: &str) -> Result<(), LabError> {
    Tool::new("ip").args(words.split(' ')).run().map(drop)
}
