//! Both ends over a real socket.

use std::{
    io::{Seek, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener as StdListener},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::service::shutdown::Shutdown;

/// What the handler below understands.
#[derive(Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
enum Request {
    Echo {
        value: Value,
    },
    Repeat {
        times: usize,
    },
    Count {
        to: u64,
    },
    Refuse,
    Panic,
    /// Writes to the file that came along.
    Write {
        text: String,
    },
}

struct Service {
    _dir: TempDir,
    path: PathBuf,
    shutdown: Shutdown,
    serving: tokio::task::JoinHandle<()>,
}

async fn handle(request: Request, reporter: Reporter) -> Result<Value, Failure> {
    match request {
        Request::Echo { value } => Ok(value),
        Request::Repeat { times } => Ok("x".repeat(times).into()),
        Request::Count { to } => {
            (1..=to).for_each(|done| reporter.report("counting", done, to));
            Ok(to.into())
        }
        Request::Refuse => Err(Failure { message: "no".into(), code: Code::Refused }),
        Request::Panic => panic!("a bug in a handler"),
        Request::Write { text } => {
            Ok(reporter.file().is_some_and(|file| (&*file).write_all(text.as_bytes()).is_ok()).into())
        }
    }
}

fn start() -> Service {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("admin.sock");
    let shutdown = Shutdown::manual();
    let serving = tokio::spawn(AdminServer::bind(&path).unwrap().serve(handle, shutdown.clone()));
    Service { _dir: dir, path, shutdown, serving }
}

async fn ask(
    path: &Path,
    request: impl Serialize + Send + 'static,
) -> (Result<Value, AdminError>, Vec<Step>) {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut steps = Vec::new();
        let answer = call(&path, &request, |step| steps.push(step));
        (answer, steps)
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn answers_with_progress_on_the_way_and_cleans_up() {
    let service = start();
    let mode = std::fs::metadata(&service.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let (answer, steps) = ask(&service.path, Request::Echo { value: json!({ "a": [1, "ü\n"] }) }).await;
    assert_eq!(answer.unwrap(), json!({ "a": [1, "ü\n"] }));
    assert!(steps.is_empty());

    let (answer, steps) = ask(&service.path, Request::Count { to: 3 }).await;
    assert_eq!(answer.unwrap(), 3);
    let seen: Vec<u64> = steps.iter().map(|step| step.done).collect();
    assert_eq!(seen, [1, 2, 3]);

    service.shutdown.request();
    service.serving.await.unwrap();
    assert!(!service.path.exists());
    let (answer, _) = ask(&service.path, Request::Refuse).await;
    assert!(matches!(answer, Err(AdminError::NotRunning { .. })));
}

#[tokio::test]
async fn too_many_reports_are_dropped_not_waited_for() {
    let service = start();
    let (answer, steps) = ask(&service.path, Request::Count { to: 10_000 }).await;
    assert_eq!(answer.unwrap(), 10_000);
    assert!(!steps.is_empty() && steps.len() < 10_000, "{}", steps.len());
}

#[tokio::test]
async fn failures_keep_message_and_code() {
    let service = start();
    let (answer, _) = ask(&service.path, Request::Refuse).await;
    let Err(AdminError::Failed(failure)) = answer else { panic!("{answer:?}") };
    assert_eq!(failure, Failure { message: "no".into(), code: Code::Refused });

    let (answer, _) = ask(&service.path, json!({ "command": "dance" })).await;
    let Err(AdminError::Failed(failure)) = answer else { panic!("{answer:?}") };
    assert!(failure.message.contains("dance"), "{failure}");

    let (answer, _) = ask(&service.path, Request::Panic).await;
    assert!(matches!(answer, Err(AdminError::Failed(_))), "{answer:?}");
    let (answer, _) = ask(&service.path, Request::Echo { value: 1.into() }).await;
    assert_eq!(answer.unwrap(), 1);
}

#[tokio::test]
async fn a_file_comes_along_with_short_and_long_requests() {
    let service = start();
    for length in [1, 100_000] {
        let text = "x".repeat(length);
        let (path, request) = (service.path.clone(), Request::Write { text: text.clone() });
        let written = tokio::task::spawn_blocking(move || {
            let mut file = tempfile::tempfile().unwrap();
            let answer: Value = call_with_file(&path, &request, Some(&file), |_| {}).unwrap();
            assert_eq!(answer, true);
            let mut written = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut written).unwrap();
            written
        });
        assert!(written.await.unwrap() == text, "{length} bytes");
        let (answer, _) = ask(&service.path, Request::Write { text }).await;
        assert_eq!(answer.unwrap(), false, "no file came along");
    }
}

#[tokio::test]
async fn long_lines_are_refused_in_both_directions() {
    let service = start();
    // What stands around the value: `{"command":"echo","value":""}`, and a line feed.
    let longest = limits::ADMIN_LINE - 30;
    let (answer, _) = ask(&service.path, Request::Echo { value: "x".repeat(longest).into() }).await;
    assert_eq!(answer.unwrap().as_str().map(str::len), Some(longest));
    let (answer, _) = ask(&service.path, Request::Echo { value: "x".repeat(longest + 1).into() }).await;
    assert!(matches!(answer, Err(AdminError::TooLong { .. })), "{answer:?}");

    // A client that does not check: exactly as much as the service will read, without an end.
    let mut stream = BlockingStream::connect(&service.path).unwrap();
    let answer = tokio::task::spawn_blocking(move || {
        stream.write_all(&vec![b'x'; limits::ADMIN_LINE]).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("{\"error\"") && answer.contains("one line"), "{answer}");

    // And an answer longer than that.
    let (answer, _) = ask(&service.path, Request::Repeat { times: limits::ADMIN_ANSWER }).await;
    let Err(AdminError::Failed(failure)) = answer else { panic!("let through") };
    assert!(failure.message.contains("too long"), "{failure}");
}

#[tokio::test]
async fn a_second_service_is_refused_and_a_dead_ones_socket_replaced() {
    let service = start();
    let error = AdminServer::bind(&service.path).unwrap_err();
    assert!(matches!(error, AdminError::AlreadyRunning { .. }), "{error}");

    let stale = service.path.with_extension("stale");
    drop(StdListener::bind(&stale).unwrap());
    assert!(stale.exists());
    AdminServer::bind(&stale).unwrap();
}

#[tokio::test]
async fn nothing_but_a_socket_is_ever_removed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    let error = AdminServer::bind(&path).unwrap_err();
    assert!(matches!(error, AdminError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}

#[tokio::test]
async fn an_answer_cut_off_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("admin.sock");
    let listener = StdListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        stream.write_all(b"{\"ok\":").unwrap();
    });
    let (answer, _) = ask(&path, 1).await;
    assert!(matches!(answer, Err(AdminError::BadAnswer { .. })), "{answer:?}");
    server.join().unwrap();
}
