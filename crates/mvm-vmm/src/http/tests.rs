//! A server that answers well, badly, late, and not at all.

use super::*;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};

const SOON: Duration = Duration::from_secs(10);

fn deadline() -> Deadline<'static> {
    Deadline::new(SOON, None)
}

/// A VMM that reads one request, sends these bytes, in these pieces, and closes. What it read is
/// given back.
fn vmm(pieces: &'static [&'static str]) -> (tempfile::TempDir, JoinHandle<String>) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    });
    (folder, thread)
}

fn get(pieces: &'static [&'static str]) -> Result<Value, HttpError> {
    let (folder, thread) = vmm(pieces);
    let api = Api {
        folder: folder.path(),
        socket: "api.sock",
    };
    let got = api.get("/", deadline());
    thread.join().unwrap();
    got
}

#[test]
fn a_request_is_what_a_vmm_expects_and_an_answer_may_come_in_pieces() {
    let answer = &["HTTP/1.1 204 \r\nServer: Fire", "cracker API\r\n\r\n"];
    let (folder, thread) = vmm(answer);
    let api = Api {
        folder: folder.path(),
        socket: "api.sock",
    };
    api.ask(
        Method::Patch,
        "/vm",
        &json!({"state": "Paused"}),
        deadline(),
    )
    .unwrap();
    assert_eq!(
        thread.join().unwrap(),
        "PATCH /vm HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
         Content-Type: application/json\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}"
    );
    let got = get(&["HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\"", ":1}"]);
    assert_eq!(got.unwrap(), json!({"a": 1}));
}

#[test]
fn a_refusal_has_the_vmms_words() {
    let refused = |body: &'static [&'static str]| match get(body) {
        Err(HttpError::Refused { status, message }) => (status, message),
        other => panic!("{other:?}"),
    };
    let firecracker =
        &["HTTP/1.1 400 \r\nContent-Length: 29\r\n\r\n{\"fault_message\":\"no \\u001b\"}"];
    assert_eq!(refused(firecracker), (400, "no".into()));
    let cloud = &["HTTP/1.1 500 \r\nContent-Length: 18\r\n\r\n[\"It\",\"is paused\"]"];
    assert_eq!(refused(cloud), (500, "It: is paused".into()));
    let text = &["HTTP/1.1 404 \r\nContent-Length: 4\r\n\r\nnone"];
    assert_eq!(refused(text), (404, "none".into()));
    let empty = &["HTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n"];
    assert_eq!(refused(empty), (500, "it gave no reason".into()));
}

#[test]
fn words_are_cut_short_and_cannot_move_a_terminal() {
    let long = format!("[\"{}\"]", "ü".repeat(MAX_MESSAGE));
    let told = message(long.as_bytes());
    assert!(told.len() <= MAX_MESSAGE + '…'.len_utf8(), "{told}");
    assert_eq!(message(b"a\x1b[2Jb"), "a [2Jb");
}

#[test]
fn an_answer_that_is_cut_is_told_from_one_that_is_no_answer() {
    let closed = |pieces| matches!(get(pieces), Err(HttpError::Closed));
    assert!(closed(&[]), "nothing");
    assert!(closed(&["HTTP/1.1 200 OK\r\nContent-"]), "in the head");
    let half = &["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"a\""];
    assert!(closed(half), "in the body");
    let not_http = |pieces| matches!(get(pieces), Err(HttpError::NotHttp(_)));
    assert!(not_http(&["{\"QMP\":{}}\r\n"]), "QEMU's");
    let long = &["HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n"];
    assert!(not_http(long), "too much");
    let more = &["HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}"];
    assert!(not_http(more), "longer than its length");
    let two = &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} "];
    assert!(not_http(two), "two lengths");
    let chunks = &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n\r\n"];
    assert!(not_http(chunks), "no chunk");
    let text = &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"];
    assert!(matches!(get(text), Err(HttpError::Unexpected(_))));
}

#[test]
fn an_answer_in_chunks_is_whole_with_its_last_one() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let vmm = |rest: &'static str| get(vec![head, rest].leak());
    let whole = vmm("4\r\n{\"a\"\r\n3\r\n:1}\r\n0\r\n\r\n");
    assert_eq!(whole.unwrap(), json!({"a": 1}));
    let cut = vmm("4\r\n{\"a\"\r\n");
    assert!(matches!(cut, Err(HttpError::Closed)), "{cut:?}");
    let long = format!("100001\r\n{}\r\n0\r\n\r\n", " ".repeat(0x0010_0001));
    let long = vmm(long.leak());
    assert!(matches!(long, Err(HttpError::NotHttp(_))), "{long:?}");
}

#[test]
fn an_answer_without_a_length_has_no_body_though_the_connection_stays() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).unwrap();
        let answer = b"HTTP/1.1 404 \r\nConnection: keep-alive\r\n\r\n";
        stream.write_all(answer).unwrap();
        // Until the other side has enough of it.
        while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
    });
    let api = Api {
        folder: folder.path(),
        socket: "api.sock",
    };
    let got = api.act("/", deadline());
    assert!(
        matches!(&got, Err(HttpError::Refused { status: 404, message }) if message == "it gave no reason"),
        "{got:?}"
    );
    thread.join().unwrap();
}

/// Firecracker ends so after a load that failed.
#[test]
fn an_answer_counts_though_the_vmm_dies_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let answer = b"HTTP/1.1 400 \r\nContent-Length: 3\r\n\r\nbad";
        // Closed with the request unread: the other side's next look is a reset.
        rustix::event::poll(
            &mut [rustix::event::PollFd::new(
                &stream,
                rustix::event::PollFlags::IN,
            )],
            None,
        )
        .unwrap();
        stream.write_all(answer).unwrap();
    });
    let api = Api {
        folder: folder.path(),
        socket: "api.sock",
    };
    let got = api.act("/", deadline());
    thread.join().unwrap();
    assert!(
        matches!(&got, Err(HttpError::Refused { status: 400, message }) if message == "bad"),
        "{got:?}"
    );
}

#[test]
fn a_head_without_an_end_is_not_read_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
        // Ends when the other side has enough of it.
        while stream
            .write_all(b"X-Again: and again, and again\r\n")
            .is_ok()
        {}
    });
    let api = Api {
        folder: folder.path(),
        socket: "api.sock",
    };
    let got: Result<Value, _> = api.get("/", deadline());
    thread.join().unwrap();
    assert!(matches!(got, Err(HttpError::NotHttp(_))), "{got:?}");
}

#[test]
fn one_that_hangs_is_given_up_at_the_deadline_or_when_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    // It listens and never accepts: the kernel takes the request.
    let _listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
    let api = Api {
        folder: folder.path(),
        socket: "api.sock",
    };
    let short = Duration::from_millis(150);
    let got = api.get::<Value>("/", Deadline::new(short, None));
    assert!(
        matches!(got, Err(HttpError::TimedOut { after }) if after == short),
        "{got:?}"
    );
    let raised = AtomicBool::new(true);
    let got = api.get::<Value>("/", Deadline::new(SOON, Some(&raised)));
    assert!(matches!(got, Err(HttpError::Interrupted)), "{got:?}");
}

#[test]
fn a_full_queue_has_the_deadline_too() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let api = Api {
        folder: folder.path(),
        socket: "api.sock",
    };
    let _fills_it = socket::connect(folder.path(), "api.sock").unwrap();
    let got = api.get::<Value>("/", Deadline::new(Duration::from_millis(150), None));
    assert!(matches!(got, Err(HttpError::TimedOut { .. })), "{got:?}");
}

#[test]
fn a_path_too_long_for_a_socket_is_reached_and_an_absent_one_told() {
    let (folder, thread) = vmm(&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"]);
    let deep = folder.path().join("x".repeat(150));
    std::fs::create_dir(&deep).unwrap();
    let api = Api {
        folder: &deep,
        socket: "api.sock",
    };
    let got = api.get::<Value>("/", deadline());
    assert!(matches!(got, Err(HttpError::NotListening)), "{got:?}");
    std::fs::rename(folder.path().join("api.sock"), deep.join("api.sock")).unwrap();
    assert_eq!(api.get::<Value>("/", deadline()).unwrap(), json!({}));
    thread.join().unwrap();
    let got = api.get::<Value>("/", deadline());
    assert!(
        matches!(got, Err(HttpError::NotListening)),
        "nobody: {got:?}"
    );
}
