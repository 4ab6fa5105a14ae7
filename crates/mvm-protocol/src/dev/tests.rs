use super::*;
use crate::answer::ErrorCode;
use crate::request::DEV_REQUEST_TYPES;
use crate::signal::Signal;
use proptest::prelude::*;

fn read(body: &str) -> DevRequest {
    ParsedDevRequest::read(body.as_bytes()).request.unwrap()
}

fn refused(body: &str, message: &str) {
    let error = ParsedDevRequest::read(body.as_bytes()).request.unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest, "{body}: {error:?}");
    assert!(error.message.contains(message), "{body}: {error:?}");
}

#[test]
fn every_listed_type_is_read_and_written_alike() {
    for kind in DEV_REQUEST_TYPES {
        let fields = match kind {
            "exec" => r#","argv":["true"]"#,
            "put" | "get" => r#","path":"/tmp/x""#,
            "attach" | "job-signal" => r#","job":3"#,
            "forward" => r#","port":80"#,
            _ => "",
        };
        let body = format!(r#"{{"type":"{kind}","id":7{fields}}}"#);
        let request = read(&body);
        assert_eq!(request.type_name(), kind);
        let frame = DevRequestFrame {
            request,
            id: Some(7),
        };
        let again = ParsedDevRequest::read(&serde_json::to_vec(&frame).unwrap());
        assert_eq!((again.id, again.request), (Some(7), Ok(frame.request)));
    }
}

#[test]
fn an_exec_has_every_field() {
    let DevRequest::Exec(exec) = read(
        r#"{"type":"exec","argv":["ls","-l"],"env":{"K":"V"},"cwd":"/","user":"nobody",
            "tty":{"cols":80,"rows":24},"stdin":true,"timeout_secs":1.5,"detach":true}"#,
    ) else {
        panic!()
    };
    assert_eq!(
        (exec.argv.words(), exec.argv.program()),
        (["ls", "-l"].map(String::from).as_slice(), "ls")
    );
    assert_eq!(exec.env.iter().collect::<Vec<_>>(), [("K", "V")]);
    assert_eq!(exec.tty, Some(exec::Window { cols: 80, rows: 24 }));
    assert_eq!(exec.timeout_secs.unwrap().duration().as_millis(), 1500);
    assert!(exec.stdin && exec.detach);
    let DevRequest::Exec(plain) =
        read(r#"{"type":"exec","argv":["ls"],"tty":null,"stdin":false,"timeout_secs":null}"#)
    else {
        panic!()
    };
    assert_eq!(
        plain,
        Exec::new(exec::Argv::new(vec!["ls".to_owned()]).unwrap())
    );
}

#[test]
fn refusals_name_the_field() {
    refused(r#"{"type":"exec"}"#, "`argv`");
    refused(r#"{"type":"exec","argv":[]}"#, "field `argv`: no program");
    refused(r#"{"type":"exec","argv":[""]}"#, "field `argv`");
    refused(
        r#"{"type":"exec","argv":["a\u0000b"]}"#,
        "field `argv`: a word has a NUL",
    );
    refused(
        r#"{"type":"exec","argv":["a"],"env":{"A=B":"c"}}"#,
        "field `env`",
    );
    refused(
        r#"{"type":"exec","argv":["a"],"env":{"A":"b","\u0041":"c"}}"#,
        "field `env`: `A` is given twice",
    );
    refused(
        r#"{"type":"exec","argv":["a"],"env":{"A":1}}"#,
        "field `env`",
    );
    refused(
        r#"{"type":"exec","argv":["a"],"cwd":"tmp"}"#,
        "field `cwd`: a path",
    );
    refused(
        r#"{"type":"exec","argv":["a"],"tty":{"cols":80}}"#,
        "field `tty`",
    );
    refused(
        r#"{"type":"exec","argv":["a"],"tty":{"cols":80,"rows":70000}}"#,
        "field `tty`",
    );
    refused(
        r#"{"type":"exec","argv":["a"],"timeout_secs":0}"#,
        "field `timeout_secs`",
    );
    refused(
        r#"{"type":"exec","argv":["a"],"argv":["b"]}"#,
        "given twice",
    );
    refused(r#"{"type":"exec","argv":["a"],"cmd":1}"#, "`cmd`");
    refused(r#"{"type":"put","path":"x"}"#, "field `path`");
    refused(r#"{"type":"put","path":"/x","mode":4096}"#, "field `mode`");
    refused(
        r#"{"type":"put","path":"/x","name":"../y"}"#,
        "field `name`",
    );
    refused(
        r#"{"type":"put","path":"/x","archive":"zip"}"#,
        "field `archive`",
    );
    refused(
        r#"{"type":"job-signal","job":1,"signal":"SIGTERM"}"#,
        "field `signal`",
    );
    refused(r#"{"type":"forward","port":0}"#, "field `port`");
}

#[test]
fn controls_are_read_and_written_alike() {
    let all = [
        (r#"{"type":"stdin-close"}"#, Control::StdinClose),
        (
            r#"{"type":"signal","signal":"TERM"}"#,
            Control::Signal(exec::Send {
                signal: Signal::TERM,
            }),
        ),
        (
            r#"{"type":"resize","cols":1,"rows":2}"#,
            Control::Resize(exec::Window { cols: 1, rows: 2 }),
        ),
        (r#"{"type":"put-end"}"#, Control::PutEnd),
        (r#"{"type":"forward-end"}"#, Control::ForwardEnd),
    ];
    for (text, control) in all {
        assert_eq!(ParsedControl::read(text.as_bytes()).request, Ok(control));
        let frame = ControlFrame {
            request: control,
            id: None,
        };
        assert_eq!(serde_json::to_string(&frame).unwrap(), text);
    }
    let refusal = ParsedControl::read(br#"{"type":"signal","signal":"9x"}"#)
        .request
        .unwrap_err();
    assert!(refusal.message.contains("field `signal`"), "{refusal:?}");
}

#[test]
fn answers_are_read_leniently() {
    let answer = DevAnswerFrame::read(
        br#"{"type":"exec-exited","exit_code":null,"signal":"SEGV","timed_out":false,"truncated":false,"new":1,"id":4}"#,
    )
    .unwrap();
    let DevAnswer::ExecExited(exited) = answer.answer else {
        panic!()
    };
    assert_eq!(
        (exited.signal.as_deref(), answer.id),
        (Some("SEGV"), Some(4))
    );
    let error = br#"{"type":"error","code":"not-found","message":"m","retryable":false}"#;
    let DevAnswer::Error(error) = DevAnswerFrame::read(error).unwrap().answer else {
        panic!()
    };
    assert_eq!(error.code, ErrorCode::NotFound);
    let done = DevAnswerFrame {
        answer: DevAnswer::ForwardEnd,
        id: None,
    };
    assert_eq!(
        serde_json::to_string(&done).unwrap(),
        r#"{"type":"forward-end"}"#
    );
}

proptest! {
    #[test]
    fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = ParsedDevRequest::read(&body);
        let _ = ParsedControl::read(&body);
        let _ = DevAnswerFrame::read(&body);
    }
}
