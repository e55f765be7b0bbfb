//! Debian's PostgreSQL, run as the user `postgres` from a data directory of the test's.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use engine::service::shutdown::Shutdown;
use homeward::lab::{LabError, Look, tool::Tool, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use crate::ledger::{Client, Database, Session};

const START: Duration = Duration::from_secs(60);

const SETTINGS: [&str; 8] = [
    "listen_addresses=",
    "shared_buffers=16MB",
    "max_wal_size=64MB",
    "min_wal_size=32MB",
    "checkpoint_timeout=30s",
    "log_checkpoints=off",
    // As they are shipped; said here because everything rests on them.
    "fsync=on",
    "synchronous_commit=on",
];

/// A running server; dropping it ends it.
pub struct Server {
    bin: PathBuf,
    /// With its socket and its log.
    dir: PathBuf,
    postmaster: Child,
}

impl Server {
    /// Makes a data directory `data`, and in it the tables of pgbench and of the [`Ledger`].
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn create(data: &Path, dir: &Path) -> Result<Self, LabError> {
        let bin = bin()?;
        fs::create_dir_all(data).map_err(LabError::io("create", data))?;
        own(data)?;
        as_postgres(&bin.join("initdb"))
            .args(["--auth=trust", "--data-checksums", "--locale=C.UTF-8", "--wal-segsize=4", "--pgdata"])
            .arg(data)
            .run()?;
        let server = Self::start(data, dir)?;
        server.tool("pgbench").args(["--initialize", "--quiet", "--scale=2", "postgres"]).run()?;
        server.query(crate::ledger::TABLES)?;
        Ok(server)
    }

    /// Starts a server on the data directory `data`; its socket and log go into the new folder `dir`. Waits until it
    /// answers, however long recovery takes.
    ///
    /// # Errors
    /// What it logs, if it ends.
    pub fn start(data: &Path, dir: &Path) -> Result<Self, LabError> {
        let bin = bin()?;
        fs::create_dir(dir).map_err(LabError::io("create", dir))?;
        own(dir)?;
        let log_path = dir.join("log");
        let log = fs::File::create(&log_path).map_err(LabError::io("create", &log_path))?;
        let settings = SETTINGS.iter().flat_map(|setting| ["-c", setting]);
        let postmaster = spawning_as_postgres(&bin.join("postgres"))
            .arg("-D")
            .arg(data)
            .arg("-k")
            .arg(dir)
            .args(settings)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(LabError::io("start", bin.join("postgres")))?;
        let mut server = Self { bin, dir: dir.into(), postmaster };
        wait_until(&Shutdown::manual(), "PostgreSQL answers", START, || {
            if let Ok(Some(status)) = server.postmaster.try_wait() {
                let (log, tail) = (log_path.clone(), server.log());
                return Err(LabError::Died {
                    service: "PostgreSQL".into(),
                    status: status.to_string(),
                    log,
                    tail,
                });
            }
            let answer = server.query("SELECT 1");
            Ok(answer.map_or_else(|error| Look::NotYet(error.to_string()), |_| Look::Done(())))
        })?;
        Ok(server)
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The answer to a query, without headings.
    ///
    /// # Errors
    /// What `psql` says.
    pub fn query(&self, sql: &str) -> Result<String, LabError> {
        let psql = self.tool("psql").args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql, "postgres"]);
        Ok(psql.run()?.stdout.trim().to_owned())
    }

    /// `pg_amcheck`, with all that it can check.
    ///
    /// # Errors
    /// What it finds.
    pub fn amcheck(&self) -> Result<(), LabError> {
        let options = ["--all", "--install-missing", "--heapallindexed", "--parent-check"];
        self.tool("pg_amcheck").args(options).run().map(drop)
    }

    /// pgbench at work, until it is dropped.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn pgbench(&self) -> Result<Client, LabError> {
        let mut command = spawning_as_postgres(&self.bin.join("pgbench"));
        command.arg("-h").arg(&self.dir).args(["-n", "-c", "4", "-j", "2", "-T", "3600", "postgres"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Client).map_err(LabError::io("run", "pgbench"))
    }

    /// Folder of its socket.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn tool(&self, program: &str) -> Tool {
        as_postgres(&self.bin.join(program)).arg("-h").arg(&self.dir)
    }
}

impl Database for Server {
    fn session(&self) -> Result<Session, LabError> {
        let mut psql = spawning_as_postgres(&self.bin.join("psql"));
        psql.arg("-h").arg(&self.dir).args(["-qAtX", "-v", "ON_ERROR_STOP=1", "postgres"]);
        psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut psql = psql.spawn().map(Client).map_err(LabError::io("run", "psql"))?;
        // `\warn` goes to stderr, which nobody buffers.
        let answers = Box::new(psql.0.stderr.take().expect("is piped"));
        Ok(Session { client: psql, answers, echo: |n| format!(r"\warn {n}") })
    }

    fn query(&self, sql: &str) -> Result<String, LabError> {
        Server::query(self, sql)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fast shutdown: clients are cut off.
        let _ = kill_process(Pid::from_child(&self.postmaster), Signal::INT);
        let _ = self.postmaster.wait();
    }
}

/// The folder of PostgreSQL's programs.
fn bin() -> Result<PathBuf, LabError> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let bins = versions.map(|version| version.path().join("bin"));
    let newest = bins.filter(|bin| bin.join("initdb").is_file() && bin.join("pg_amcheck").is_file()).max();
    newest.ok_or(LabError::MissingTool { program: "initdb, pg_amcheck".into(), package: "postgresql".into() })
}

fn as_postgres(program: &Path) -> Tool {
    Tool::new("setpriv").args(SETPRIV).arg("--").arg(program)
}

/// For programs that go on: they end with the thread that starts them, at the latest.
fn spawning_as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(SETPRIV)
        .args(["--pdeathsig", "QUIT", "--"])
        .arg(program)
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

const SETPRIV: [&str; 3] = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];

fn own(path: &Path) -> Result<(), LabError> {
    let id = |option| -> Result<Option<u32>, LabError> {
        let done = Tool::new("id").args([option, "postgres"]).run()?;
        Ok(done.stdout.trim().parse().ok())
    };
    chown(path, id("-u")?, id("-g")?).map_err(LabError::io("give away", path))
}
