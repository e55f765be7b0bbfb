//! The link: two network namespaces joined by a veth pair, with a rate where one is wanted, and a count of what passes.
//!
//! Bytes are counted by the queueing discipline of each end as they leave, with the headers of each packet that a
//! network card would make of a large one. That is what a rate limits, too.
//!
//! Namespaces belong to a process each, which dies with us: nothing is left behind however we end.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use engine::service::shutdown::Shutdown;
use homeward::lab::{
    Look,
    tool::{Running, Tool},
    wait_until,
};

/// The link's name in both namespaces.
const WIRE: &str = "wire";

/// Longest that anything here takes.
const WAIT: Duration = Duration::from_secs(20);

/// Both ends.
pub struct Link {
    /// Where the disk is.
    pub near: Side,
    /// Where its copy is made.
    pub far: Side,
}

/// One end: a network namespace.
pub struct Side {
    holder: Running,
    /// Its address on the link.
    pub address: Ipv4Addr,
}

impl Link {
    /// A link with so many bits per second each way; without a limit if `None`.
    pub fn new(rate: Option<u64>, stop: &Shutdown) -> anyhow::Result<Self> {
        let near = Side::new(Ipv4Addr::new(10, 77, 1, 1), stop)?;
        let far = Side::new(Ipv4Addr::new(10, 77, 1, 2), stop)?;
        let peer = far.holder.pid();
        near.ip(&format!("link add {WIRE} type veth peer name {WIRE} netns {peer}"))?;
        for side in [&near, &far] {
            // No traffic of the kernel's own.
            side.ip(&format!("link set dev {WIRE} addrgenmode none"))?;
            side.ip(&format!("address add {}/24 dev {WIRE}", side.address))?;
            side.ip(&format!("link set dev {WIRE} up"))?;
            let discipline = match rate {
                // A burst of a few large packets, which need not be cut then; a queue that drops nothing of one sender.
                Some(rate) => format!("tbf rate {rate}bit burst 256kb limit 8mb"),
                None => "pfifo limit 10000".into(),
            };
            side.run("tc", &format!("qdisc add dev {WIRE} root {discipline}"))?;
        }
        Ok(Self { near, far })
    }

    /// Bytes that have passed so far, both ways.
    pub fn bytes(&self) -> anyhow::Result<u64> {
        Ok(self.near.sent()? + self.far.sent()?)
    }
}

impl Side {
    fn new(address: Ipv4Addr, stop: &Shutdown) -> anyhow::Result<Self> {
        let holder = Tool::new("unshare").args(["--net", "--", "sleep", "infinity"]).start()?;
        let side = Self { holder, address };
        let ours = fs::read_link("/proc/self/ns/net")?;
        wait_until(stop, "a network namespace", WAIT, || {
            let made = fs::read_link(side.network()).is_ok_and(|theirs| theirs != ours);
            Ok(if made { Look::Done(()) } else { Look::NotYet("it is still ours".into()) })
        })?;
        side.ip("link set dev lo up")?;
        Ok(side)
    }

    /// The namespace, as a file.
    pub fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.pid()).into()
    }

    /// A port of this end.
    pub fn port(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// A program that is to run here.
    pub fn tool(&self, program: &str) -> Tool {
        Tool::new("nsenter").arg(format!("--net={}", self.network().display())).arg("--").arg(program)
    }

    /// Waits until somebody listens here.
    pub fn wait_for_listener(&self, port: u16, stop: &Shutdown) -> anyhow::Result<()> {
        let table = format!("/proc/{}/net/tcp", self.holder.pid());
        let listens = |line: &str| {
            let mut fields = line.split_whitespace().skip(1);
            let here = fields.next().is_some_and(|local| local.ends_with(&format!(":{port:04X}")));
            // TCP_LISTEN.
            here && fields.nth(1) == Some("0A")
        };
        Ok(wait_until(stop, &format!("a server on port {port}"), WAIT, || {
            let found = fs::read_to_string(&table).unwrap_or_default().lines().any(listens);
            Ok(if found { Look::Done(()) } else { Look::NotYet("nobody listens".into()) })
        })?)
    }

    /// Bytes that left this end so far.
    fn sent(&self) -> anyhow::Result<u64> {
        let said = self.run("tc", &format!("-s -j qdisc show dev {WIRE}"))?;
        let said: serde_json::Value = serde_json::from_str(&said).context("what tc says is no JSON")?;
        said[0]["bytes"].as_u64().context("tc does not say how many bytes were sent")
    }

    fn ip(&self, words: &str) -> anyhow::Result<String> {
        self.run("ip", words)
    }

    fn run(&self, program: &str, words: &str) -> anyhow::Result<String> {
        Ok(self.tool(program).args(words.split(' ')).run()?.stdout)
    }
}
