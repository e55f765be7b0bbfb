//! What the running agent answers to the operator's commands.

use std::sync::Arc;

use engine::{
    point::{Consistency, Point},
    service::{admin::Failure, exit::Code},
};
use serde::{Deserialize, Serialize};

use crate::{config::Config, driver::Driver, node::NodeStatus, setup::Prepared};

/// A question to the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// How it stands.
    Status,
    /// A recovery point of what the disks hold from now on.
    Point {
        /// Answer only when it is durable.
        wait: bool,
        /// Applications are held for it: it is to be application-consistent.
        #[serde(default)]
        application: bool,
    },
}

/// Its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<AgentStatus>),
    /// To [`Request::Point`] without waiting.
    Requested,
    /// To [`Request::Point`].
    Durable(Point),
}

/// How the agent stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The node's part.
    #[serde(flatten)]
    pub node: NodeStatus,
    /// The process server's address.
    pub server: String,
    /// Seconds from one point to the next.
    pub point_interval_s: f64,
    /// The disks.
    pub disks: Vec<DiskStatus>,
}

/// One disk, as found at the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its name at home.
    pub name: String,
    /// Its device here.
    pub device: String,
    /// Size.
    pub bytes: u64,
    /// `proven`, or `lost` and why: whether every write since the agent before was known at the start.
    pub continuity: String,
}

/// Answers requests.
pub struct Admin {
    driver: Driver,
    server: String,
    point_interval_s: f64,
    disks: Vec<DiskStatus>,
}

impl Admin {
    /// For the node that `driver` runs.
    #[must_use]
    pub fn new(driver: Driver, config: &Config, disks: Vec<DiskStatus>) -> Self {
        let point_interval_s = config.point_interval.0.as_secs_f64();
        Self { driver, server: config.process_server.clone(), point_interval_s, disks }
    }

    /// Answers one.
    ///
    /// # Errors
    /// If there is no point, and why.
    pub async fn answer(self: Arc<Self>, request: Request) -> Result<Response, Failure> {
        match request {
            Request::Status => Ok(Response::Status(Box::new(self.status()))),
            Request::Point { wait, application } => {
                let wanted = match application {
                    true => Consistency::ApplicationConsistent,
                    false => Consistency::CrashConsistent,
                };
                let answer = self.driver.request_point(wanted).await;
                if !wait {
                    return Ok(Response::Requested);
                }
                let failed = |message| Failure { message, code: Code::Failed };
                match answer.await {
                    Ok(Ok(point)) => Ok(Response::Durable(point)),
                    Ok(Err(reason)) => Err(failed(format!("no point was made: {reason}"))),
                    Err(_) => Err(failed("the agent is stopping".into())),
                }
            }
        }
    }

    /// How the agent stands.
    #[must_use]
    pub fn status(&self) -> AgentStatus {
        AgentStatus {
            node: self.driver.status(),
            server: self.server.clone(),
            point_interval_s: self.point_interval_s,
            disks: self.disks.clone(),
        }
    }

    /// What is wrong, for the health check.
    ///
    /// # Errors
    /// In a few words.
    pub fn health(&self) -> Result<(), String> {
        if self.driver.has_ended() {
            return Err("the node has ended".into());
        }
        let NodeStatus { connected_s, connection, connection_error, hold, trouble, point_failure, .. } =
            self.driver.status();
        if connected_s.is_none() {
            return Err(connection_error.unwrap_or(connection));
        }
        hold.or(trouble).or(point_failure).map_or(Ok(()), Err)
    }

    /// The driver, to stop it.
    #[must_use]
    pub fn driver(&self) -> &Driver {
        &self.driver
    }
}

/// The disks as the configuration names them and as they were found.
#[must_use]
pub fn disks_of(config: &Config, prepared: &Prepared) -> Vec<DiskStatus> {
    let found = config.disk.iter().zip(&prepared.stream.disks).zip(&prepared.continuity);
    found
        .map(|((disk, info), continuity)| DiskStatus {
            name: disk.name.clone(),
            device: disk.device.display().to_string(),
            bytes: info.bytes,
            continuity: continuity.clone(),
        })
        .collect()
}
