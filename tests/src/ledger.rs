//! A database's record of acknowledged commits, kept outside of it: what a restored copy must have, and may have.

use std::{
    io::{BufRead, BufReader, Read, Write},
    ops::RangeInclusive,
    process::Child,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use homeward::lab::LabError;

/// The tables of a [`Ledger`].
pub const TABLES: &str = "CREATE TABLE cause (writer int, n int); CREATE TABLE effect (writer int, n int)";

/// A server that a [`Ledger`] writes to.
pub trait Database {
    /// A client that runs the statements it reads.
    ///
    /// # Errors
    /// If it cannot be started.
    fn session(&self) -> Result<Session, LabError>;

    /// The answer to a query, without headings.
    ///
    /// # Errors
    /// What the server says.
    fn query(&self, sql: &str) -> Result<String, LabError>;
}

/// A client at a server.
pub struct Session {
    /// Its process, with a piped stdin.
    pub client: Client,
    /// What it says when told to by [`Self::echo`].
    pub answers: Box<dyn Read + Send>,
    /// The input that makes it say a number, once it has run all that came before.
    pub echo: fn(usize) -> String,
}

/// A client at work.
pub struct Client(pub Child);

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
    /// If a client cannot be started.
    pub fn start(server: &dyn Database, writers: usize) -> Result<Self, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let entries = Arc::new((0..writers).map(|_| Mutex::default()).collect::<Vec<_>>());
        let mut ledger = Self { stop, entries, writers: Vec::new() };
        for writer in 0..writers {
            let session = server.session()?;
            let (stop, entries) = (Arc::clone(&ledger.stop), Arc::clone(&ledger.entries));
            ledger.writers.push(thread::spawn(move || write(session, writer, &entries[writer], &stop)));
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
    pub fn check(&self, server: &dyn Database, when: RangeInclusive<Instant>) -> Result<usize, String> {
        let query = |sql: &str| server.query(sql).map_err(|error| error.to_string());
        let half = query(
            "(SELECT writer, n FROM cause EXCEPT ALL SELECT writer, n FROM effect) UNION ALL \
             (SELECT writer, n FROM effect EXCEPT ALL SELECT writer, n FROM cause) ORDER BY 1, 2",
        )?;
        if !half.is_empty() {
            return Err(format!("half transactions: {half}"));
        }
        let mut all = 0;
        for (writer, entries) in self.entries.iter().enumerate() {
            let found = query(&format!(
                "SELECT concat(count(*), '|', coalesce(max(n), 0)) FROM cause WHERE writer = {writer}"
            ))?;
            let (count, newest) =
                found.split_once('|').ok_or("the database speaks otherwise than expected")?;
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

fn write(session: Session, writer: usize, entries: &Mutex<Vec<Entry>>, stop: &AtomicBool) {
    let Session { client: mut process, answers, echo } = session;
    let mut stdin = process.0.stdin.take().expect("is piped");
    let mut answers = BufReader::new(answers).lines();
    let mut n = 0;
    while !stop.load(Relaxed) {
        n += 1;
        entries.lock().unwrap().push(Entry { began: Instant::now(), acknowledged: None });
        let rows = ["cause", "effect"].map(|table| format!("INSERT INTO {table} VALUES ({writer}, {n});"));
        writeln!(stdin, "BEGIN; {} COMMIT;\n{}", rows.concat(), echo(n)).expect("the client listens");
        let answer = answers.next().expect("the client answers").expect("the client answers");
        assert_eq!(answer, n.to_string());
        entries.lock().unwrap()[n - 1].acknowledged = Some(Instant::now());
    }
}
