//! Debian's MariaDB, run as the user `mysql` from a data directory of the test's.

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

const SETTINGS: [&str; 6] = [
    "--no-defaults",
    "--skip-networking",
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=16M",
    // As they are shipped; said here because everything rests on them.
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-doublewrite=1",
];

const CLIENT: [&str; 5] = ["--no-defaults", "--user=root", "--batch", "--skip-column-names", "--unbuffered"];

/// What sysbench works on.
const SYSBENCH: [&str; 6] = [
    "oltp_write_only",
    "--db-driver=mysql",
    "--mysql-user=root",
    "--mysql-db=sbtest",
    "--tables=2",
    "--table-size=5000",
];

/// A running server; dropping it ends it.
pub struct Server {
    /// With its socket and its log.
    dir: PathBuf,
    process: Child,
}

impl Server {
    /// Makes a data directory `data`, and in it the tables of sysbench and of the [`crate::ledger::Ledger`].
    ///
    /// # Errors
    /// What MariaDB says.
    pub fn create(data: &Path, dir: &Path) -> Result<Self, LabError> {
        fs::create_dir_all(data).map_err(LabError::io("create", data))?;
        own(data)?;
        Tool::new("mariadb-install-db")
            .args([
                "--no-defaults",
                "--user=mysql",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ])
            .arg(format!("--datadir={}", data.display()))
            .run()?;
        let server = Self::start(data, dir)?;
        server.run("mysql", "CREATE DATABASE sbtest; CREATE DATABASE ledger")?;
        server.query(crate::ledger::TABLES)?;
        Tool::new("sysbench").args(SYSBENCH).arg(server.socket_option()).arg("prepare").run()?;
        Ok(server)
    }

    /// Starts a server on the data directory `data`; its socket and log go into the new folder `dir`. Waits until it
    /// answers, however long recovery takes.
    ///
    /// # Errors
    /// What it logs, if it ends.
    pub fn start(data: &Path, dir: &Path) -> Result<Self, LabError> {
        fs::create_dir(dir).map_err(LabError::io("create", dir))?;
        own(dir)?;
        let log_path = dir.join("log");
        let log = fs::File::create(&log_path).map_err(LabError::io("create", &log_path))?;
        let mut command = Command::new("setpriv");
        // It ends with the thread that starts it, at the latest.
        command.args([
            "--reuid=mysql",
            "--regid=mysql",
            "--clear-groups",
            "--pdeathsig",
            "KILL",
            "--",
            "mariadbd",
        ]);
        let process = command
            .args(SETTINGS)
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", socket(dir).display()))
            .arg(format!("--pid-file={}", dir.join("pid").display()))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(LabError::io("start", "mariadbd"))?;
        let mut server = Self { dir: dir.into(), process };
        wait_until(&Shutdown::manual(), "MariaDB answers", START, || {
            if let Ok(Some(status)) = server.process.try_wait() {
                let (log, tail) = (log_path.clone(), server.log());
                return Err(LabError::Died {
                    service: "MariaDB".into(),
                    status: status.to_string(),
                    log,
                    tail,
                });
            }
            let answer = server.run("mysql", "SELECT 1");
            Ok(answer.map_or_else(|error| Look::NotYet(error.to_string()), |_| Look::Done(())))
        })?;
        Ok(server)
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket(&self.dir)
    }

    /// Checks every table and index; returns what is wrong with them.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn check(&self) -> Result<Vec<String>, LabError> {
        let check = Tool::new("mariadb-check").args([
            "--no-defaults",
            "--user=root",
            "--all-databases",
            "--extended",
        ]);
        let said = check.arg(format!("--socket={}", self.socket().display())).run()?.stdout;
        Ok(said.lines().filter(|line| !line.ends_with("OK")).map(str::to_owned).collect())
    }

    /// sysbench at work, until it is dropped.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn sysbench(&self) -> Result<Client, LabError> {
        let mut command = Command::new("sysbench");
        command.args(SYSBENCH).arg(self.socket_option()).args(["--threads=4", "--time=3600", "run"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Client).map_err(LabError::io("run", "sysbench"))
    }

    fn socket_option(&self) -> String {
        format!("--mysql-socket={}", self.socket().display())
    }

    fn run(&self, database: &str, sql: &str) -> Result<String, LabError> {
        let client = Tool::new("mariadb").args(CLIENT).arg(format!("--socket={}", self.socket().display()));
        Ok(client.args([database, "-e", sql]).run()?.stdout.trim().to_owned())
    }
}

impl Database for Server {
    fn session(&self) -> Result<Session, LabError> {
        let mut command = Command::new("mariadb");
        command.args(CLIENT).arg(format!("--socket={}", self.socket().display())).arg("ledger");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut client = command.spawn().map(Client).map_err(LabError::io("run", "mariadb"))?;
        let answers = Box::new(client.0.stdout.take().expect("is piped"));
        Ok(Session { client, answers, echo: |n| format!("SELECT {n};") })
    }

    fn query(&self, sql: &str) -> Result<String, LabError> {
        self.run("ledger", sql)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _ = self.process.wait();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("socket")
}

fn own(path: &Path) -> Result<(), LabError> {
    let id = |option| -> Result<Option<u32>, LabError> {
        let done = Tool::new("id").args([option, "mysql"]).run()?;
        Ok(done.stdout.trim().parse().ok())
    };
    chown(path, id("-u")?, id("-g")?).map_err(LabError::io("give away", path))
}
