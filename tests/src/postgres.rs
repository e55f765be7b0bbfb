//! Debian's PostgreSQL, run as the user `postgres` from a data directory of the test's.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    ops::RangeInclusive,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use engine::service::shutdown::Shutdown;
use homeward::lab::{LabError, Look, tool::Tool, wait_until};
use rustix::process::{Pid, Signal, kill_process};

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
        server.query("CREATE TABLE cause (writer int, n int); CREATE TABLE effect (writer int, n int)")?;
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

    fn tool(&self, program: &str) -> Tool {
        as_postgres(&self.bin.join(program)).arg("-h").arg(&self.dir)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fast shutdown: clients are cut off.
        let _ = kill_process(Pid::from_child(&self.postmaster), Signal::INT);
        let _ = self.postmaster.wait();
    }
}

/// A client at work.
pub struct Client(Child);

impl Client {
    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writers of transactions, each of two rows in two tables, and their record of what was acknowledged.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    /// By writer, its transactions in order.
    entries: Arc<Vec<Mutex<Vec<Entry>>>>,
    writers: Vec<JoinHandle<()>>,
}

#[derive(Clone, Copy)]
struct Entry {
    began: Instant,
    acknowledged: Option<Instant>,
}

impl Ledger {
    /// Starts writers.
    ///
    /// # Errors
    /// If `psql` cannot be started.
    pub fn start(server: &Server, writers: usize) -> Result<Self, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let entries = Arc::new((0..writers).map(|_| Mutex::default()).collect::<Vec<_>>());
        let mut ledger = Self { stop, entries, writers: Vec::new() };
        for writer in 0..writers {
            let mut psql = spawning_as_postgres(&server.bin.join("psql"));
            psql.arg("-h").arg(&server.dir).args(["-qAtX", "-v", "ON_ERROR_STOP=1", "postgres"]);
            psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            let psql = psql.spawn().map(Client).map_err(LabError::io("run", "psql"))?;
            let (stop, entries) = (Arc::clone(&ledger.stop), Arc::clone(&ledger.entries));
            ledger.writers.push(thread::spawn(move || write(psql, writer, &entries[writer], &stop)));
        }
        Ok(ledger)
    }

    /// Ends the writers; what they did stays known.
    ///
    /// # Panics
    /// If a writer has.
    pub fn stop(&mut self) {
        self.stop.store(true, Relaxed);
        self.writers.drain(..).for_each(|writer| writer.join().expect("a writer panicked"));
    }

    /// Transactions acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        let all = self.entries.iter().map(|entries| entries.lock().unwrap().clone());
        all.flatten().filter(|entry| entry.acknowledged.is_some()).count()
    }

    /// Checks that `server`, from a copy of the disk, has all that was acknowledged before `when`, nothing that began
    /// after it, and no half transaction. Returns how many transactions it has.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, server: &Server, when: RangeInclusive<Instant>) -> Result<usize, String> {
        let query = |sql: &str| server.query(sql).map_err(|error| error.to_string());
        let half = query(
            "(TABLE cause EXCEPT ALL TABLE effect) UNION ALL (TABLE effect EXCEPT ALL TABLE cause) ORDER BY 1, 2",
        )?;
        if !half.is_empty() {
            return Err(format!("half transactions: {half}"));
        }
        let mut all = 0;
        for (writer, entries) in self.entries.iter().enumerate() {
            let found =
                query(&format!("SELECT count(*), coalesce(max(n), 0) FROM cause WHERE writer = {writer}"))?;
            let (count, newest) = found.split_once('|').ok_or("psql speaks otherwise than expected")?;
            let count: usize = count.parse().map_err(|_| "no number")?;
            let entries = entries.lock().unwrap();
            let must = |entry: &&Entry| entry.acknowledged.is_some_and(|at| at < *when.start());
            let must = entries.iter().take_while(must).count();
            let may = entries.iter().take_while(|entry| entry.began <= *when.end()).count();
            if newest.parse() != Ok(count) || !(must..=may).contains(&count) {
                return Err(format!(
                    "writer {writer}: {count} transactions, the newest {newest}; {must} were acknowledged before the \
                     point, {may} begun"
                ));
            }
            all += count;
        }
        Ok(all)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Their server may be about to go.
        self.writers.drain(..).for_each(|writer| drop(writer.join()));
    }
}

fn write(mut psql: Client, writer: usize, entries: &Mutex<Vec<Entry>>, stop: &AtomicBool) {
    let (stdin, stderr) = (psql.0.stdin.take(), psql.0.stderr.take());
    let (mut stdin, stderr) = (stdin.expect("is piped"), stderr.expect("is piped"));
    // `\warn` goes to stderr, which nobody buffers.
    let mut answers = BufReader::new(stderr).lines();
    let mut n = 0;
    while !stop.load(Relaxed) {
        n += 1;
        entries.lock().unwrap().push(Entry { began: Instant::now(), acknowledged: None });
        let rows = ["cause", "effect"].map(|table| format!("INSERT INTO {table} VALUES ({writer}, {n});"));
        writeln!(stdin, "BEGIN; {} COMMIT;\n\\warn {n}", rows.concat()).expect("psql listens");
        let answer = answers.next().expect("psql answers").expect("psql answers");
        assert_eq!(answer, n.to_string());
        entries.lock().unwrap()[n - 1].acknowledged = Some(Instant::now());
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
