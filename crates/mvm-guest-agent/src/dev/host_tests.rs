//! Hosts that keep a request waiting: who is cut off, and who is not.

use super::Dev;
use crate::machine::stream::pair;
use crate::ports::Ports;
use crate::ports::host::{FULL, Host};
use crate::serve::connection::{Ending, Handshake, Timeouts};
use crate::serve::session::tests::{self, PATIENT, SHORT, connection, story};
use mvm_protocol::dev::{Control, DevAnswer};
use mvm_protocol::frame::{encode_data, encode_json};
use mvm_protocol::{Decoder, Frame};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const MINUTE: Duration = Duration::from_secs(60);

/// Tells a story of one request's host, in which time passes only where something waits for it.
macro_rules! story {
    ($host:ident, $theirs:ident, $tell:block) => {
        story(async {
            let (ours, theirs) = pair();
            theirs.set_nonblocking(true).unwrap();
            let mut connection = connection(ours, Timeouts::default());
            let mut $host = Host::<Control>::new(&mut connection, None, true);
            #[allow(unused_mut, reason = "some hosts do nothing")]
            let mut $theirs = theirs;
            $tell
        })
        .await
    };
}

/// Serves as a request does, with nothing to do with what comes; gives how it ended, and when.
async fn serve(host: &mut Host<'_, Control>, listens: bool) -> (Ending, Duration) {
    let began = Instant::now();
    loop {
        let served = async {
            if listens {
                while host.sent().await?.is_some() {}
            }
            host.send().await?;
            host.next(listens).await
        };
        if let Err(ending) = served.await {
            return (ending, began.elapsed());
        }
    }
}

/// A host at a session that serves what dev builds do.
fn dev_host(handshake: Handshake, timeouts: Timeouts) -> tests::Host {
    tests::Host::connect_to(handshake, timeouts, |launcher| {
        Rc::new(Dev::new(Rc::clone(launcher), Ports::new(&[])))
    })
}

/// Whether it was cut off after so long.
fn cut_off((ending, after): &(Ending, Duration), expected: Duration) -> bool {
    let late = expected + Duration::from_secs(1);
    matches!(ending, Ending::TooSlow) && (expected..late).contains(after)
}

#[tokio::test(start_paused = true)]
async fn a_host_that_stalls_within_a_frame_is_cut_off() {
    story!(host, theirs, {
        theirs.write_all(&[0, 0, 0, 9, b'{']).unwrap();
        let ended = serve(&mut host, true).await;
        assert!(cut_off(&ended, Duration::from_secs(10)), "{ended:?}");
    });
    // And to come to its end: a byte now and then is not enough.
    story!(host, theirs, {
        let trickle = async {
            let frame = encode_data(0, &vec![b'x'; 10_000]).unwrap();
            for byte in frame {
                theirs.write_all(&[byte]).unwrap();
                sleep(Duration::from_secs(9)).await;
            }
        };
        let ended = tokio::select! {
            ended = serve(&mut host, true) => ended,
            () = trickle => panic!("it was let"),
        };
        assert!(cut_off(&ended, 10 * MINUTE), "{ended:?}");
    });
    // While the guest does not take more, the host is not to blame.
    story!(host, theirs, {
        theirs.write_all(&[0, 0, 0, 9, b'{']).unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(1), serve(&mut host, true)).await;
        tokio::select! {
            ended = serve(&mut host, false) => panic!("{ended:?}"),
            () = sleep(600 * MINUTE) => {}
        }
        let ended = serve(&mut host, true).await;
        assert!(cut_off(&ended, Duration::from_secs(10)), "{ended:?}");
    });
}

#[tokio::test(start_paused = true)]
async fn a_host_that_need_not_send_may_be_silent() {
    story!(host, theirs, {
        tokio::select! {
            ended = serve(&mut host, true) => panic!("{ended:?}"),
            () = sleep(600 * MINUTE) => {}
        }
        host.awaits_input = true;
        let sends = async {
            for _ in 0..5 {
                sleep(9 * MINUTE).await;
                theirs.write_all(&encode_data(3, b"x").unwrap()).unwrap();
            }
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            ended = serve(&mut host, true) => ended,
            () = sends => return,
        };
        assert!(cut_off(&ended, 55 * MINUTE), "{ended:?}");
    });
}

#[tokio::test(start_paused = true)]
async fn a_host_that_reads_slowly_is_waited_for() {
    // Much at once, and so little that the socket does not tell of it by itself.
    for taken in [300_000, 50_000] {
        story!(host, theirs, {
            for _ in 0..20 {
                host.out.push(encode_data(1, &vec![b'x'; 100_000]).unwrap());
            }
            let reads = async {
                for _ in 0..5 {
                    sleep(9 * MINUTE).await;
                    let mut left = taken;
                    while left > 0 {
                        left -= theirs.read(&mut vec![0; left]).unwrap_or(0);
                        tokio::task::yield_now().await;
                    }
                }
                std::future::pending::<()>().await;
            };
            let (ending, after) = tokio::select! {
                ended = serve(&mut host, true) => ended,
                () = reads => return,
            };
            assert!(matches!(ending, Ending::TooSlow), "{ending:?}");
            assert!(after >= 55 * MINUTE, "{after:?}");
            assert!(after <= 65 * MINUTE, "{after:?}");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_frames_without_end_take_no_memory_and_none_is_forgotten() {
    story!(host, theirs, {
        let wrong = [0x80, 0, 0, 0].repeat(10_000);
        let mut sent = 0;
        let flood = async {
            // More than the sockets hold: it is let when something was taken.
            for _ in 0..200 {
                let mut rest: &[u8] = &wrong;
                while !rest.is_empty() {
                    match theirs.write(rest) {
                        Ok(count) => {
                            sent += count;
                            rest = &rest[count..];
                        }
                        Err(_) => sleep(MINUTE).await,
                    }
                }
            }
        };
        let ended = tokio::select! {
            ended = serve(&mut host, true) => ended,
            () = flood => panic!("it was let"),
        };
        assert!(cut_off(&ended, 10 * MINUTE), "{ended:?}");
        assert!(host.out.in_memory() < 2 * FULL, "{}", host.out.in_memory());
    });
    story!(host, theirs, {
        theirs.write_all(&[0x80, 0, 0, 0].repeat(5000)).unwrap();
        let mut decoder = Decoder::default();
        let mut answers = 0;
        let reads = async {
            while answers < 5000 {
                let mut buffer = [0; 4096];
                match theirs.read(&mut buffer) {
                    Ok(read) => decoder.push(&buffer[..read]),
                    Err(_) => sleep(Duration::from_millis(1)).await,
                }
                while decoder.next_frame().unwrap().is_some() {
                    answers += 1;
                }
            }
        };
        tokio::select! {
            ended = serve(&mut host, true) => panic!("{ended:?}"),
            () = reads => {}
        }
    });
}

/// Reads so many frames on a thread of its own, then closes.
#[expect(clippy::disallowed_methods, reason = "a test has threads")]
fn reader(mut theirs: UnixStream, frames: usize) -> JoinHandle<Vec<Frame>> {
    std::thread::spawn(move || {
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        while seen.len() < frames {
            let mut buffer = vec![0; 100_000];
            let read = theirs.read(&mut buffer).unwrap();
            assert!(read > 0, "closed after {seen:?}");
            decoder.push(&buffer[..read]);
            seen.extend(std::iter::from_fn(|| decoder.next_frame().unwrap()));
        }
        seen
    })
}

#[tokio::test]
async fn nothing_comes_after_the_last_answer() {
    story(async {
        let (ours, mut theirs) = pair();
        let mut connection = connection(ours, PATIENT);
        let mut host = Host::<Control>::new(&mut connection, None, true);
        // More than fits at once, so that the host is heard before all is sent.
        host.out.push(encode_data(1, &vec![b'x'; 250_000]).unwrap());
        host.answer(DevAnswer::ForwardEnd);
        host.send().await.unwrap();
        assert!(!host.out.is_empty(), "so that the test can fail");
        theirs.write_all(&[0x80, 0, 0, 0]).unwrap();
        let told = host.out.in_memory();
        host.over = true;
        host.next(true).await.unwrap();
        assert!(host.sent().await.unwrap().is_none());
        assert_eq!(host.out.in_memory(), told);
        let reads = reader(theirs, 2);
        host.finish().await.unwrap();
        let frames = reads.join().unwrap();
        assert!(matches!(
            frames.as_slice(),
            [Frame::Data { .. }, Frame::Json(_)]
        ));
    })
    .await;
}

#[tokio::test]
async fn a_framing_error_is_answered_after_the_frame_in_progress() {
    story(async {
        let (ours, mut theirs) = pair();
        let mut connection = connection(ours, PATIENT);
        let mut host = Host::<Control>::new(&mut connection, None, true);
        host.out.push(encode_data(1, &vec![b'x'; 250_000]).unwrap());
        host.send().await.unwrap();
        assert!(!host.out.is_empty(), "so that the test can fail");
        theirs.write_all(&[0, 0xff, 0, 0]).unwrap();
        let reads = reader(theirs, 2);
        let (ending, _) = serve(&mut host, true).await;
        assert!(matches!(ending, Ending::Broken), "{ending:?}");
        let frames = reads.join().unwrap();
        let [Frame::Data { .. }, Frame::Json(body)] = frames.as_slice() else {
            panic!("{frames:?}");
        };
        let answer: Value = serde_json::from_slice(body).unwrap();
        assert_eq!(answer["code"], "frame-too-large");
    })
    .await;
}

/// A host of a whole session, with a request under way that was answered.
async fn begun(request: &Value, timeouts: Timeouts) -> (tests::Host, Value) {
    let mut host = dev_host(Handshake::ByVmm, timeouts);
    host.request(&request.to_string()).await;
    let answer = host.json().await;
    (host, answer)
}

fn exec(argv: &[&str]) -> Value {
    json!({"type": "exec", "argv": argv, "stdin": true})
}

fn is_there(pid: &Value) -> bool {
    std::fs::exists(format!("/proc/{pid}")).unwrap()
}

#[tokio::test]
async fn a_host_that_stalls_is_cut_off_and_what_it_asked_for_is_ended() {
    let stalls_within = Timeouts {
        within_frame: SHORT,
        ..PATIENT
    };
    let idles = Timeouts {
        idle: SHORT * 4,
        ..PATIENT
    };
    let put = json!({"type": "put", "path": "/x"});
    let get = json!({"type": "get", "path": "/x"});
    let half = &encode_data(3, &[b'x'; 100]).unwrap()[..50];
    let whole = &encode_data(3, &[b'x'; 100]).unwrap()[..];
    story(async {
        for (request, sent, timeouts) in [
            (
                exec(&["sleep", "1050.5"]),
                &[0, 0, 0, 9, b'{'][..],
                stalls_within,
            ),
            (put.clone(), half, stalls_within),
            (get.clone(), &[0, 0], stalls_within),
            (put.clone(), whole, idles),
            (get, &[], idles),
            (exec(&["yes"]), &[], idles),
        ] {
            let (mut host, started) = begun(&request, timeouts).await;
            assert_ne!(started["type"], "error", "{started}");
            host.send(sent).await;
            let ending = host.ending().await;
            assert!(matches!(ending, Ending::TooSlow), "{request}: {ending:?}");
            assert!(!is_there(&started["pid"]), "{started}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_silent_command_is_not_cut_off() {
    story(async {
        let hasty = Timeouts {
            idle: SHORT,
            within_frame: SHORT,
            ..PATIENT
        };
        let (mut host, _) = begun(&exec(&["sh", "-c", "read line; exit 3"]), hasty).await;
        for _ in 0..3 {
            let idle = dev_host(
                Handshake::ByVmm,
                Timeouts {
                    first_frame: SHORT,
                    ..hasty
                },
            );
            assert!(matches!(idle.ending().await, Ending::TooSlow));
        }
        host.send(&encode_data(0, b"\n").unwrap()).await;
        let exited = host.json().await;
        assert_eq!(exited["exit_code"], 3, "{exited}");
    })
    .await;
}

#[tokio::test]
async fn a_slow_disk_does_not_cut_off_the_host() {
    story(async {
        let hasty = Timeouts {
            idle: SHORT,
            ..PATIENT
        };
        let mut host = dev_host(Handshake::ByVmm, hasty);
        let request = |body: &[u8]| encode_json(body).unwrap();
        // All at once: the awaited input is there before it is waited for.
        let all = [
            request(br#"{"type":"put","path":"/x"}"#),
            encode_data(3, b"x").unwrap(),
            request(br#"{"type":"put-end"}"#),
        ];
        host.send(&all.concat()).await;
        assert_eq!(host.json().await["type"], "put-ready");
        assert_eq!(host.json().await["type"], "put-done");
    })
    .await;
}

#[tokio::test]
async fn others_have_their_turn_with_each_piece() {
    story!(host, theirs, {
        let had = Rc::new(std::cell::Cell::new(0));
        let counter = Rc::clone(&had);
        tokio::task::spawn_local(async move {
            loop {
                counter.set(counter.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        for piece in 1..=20 {
            host.out.push(encode_data(1, &[b'x'; 1000]).unwrap());
            host.send().await.unwrap();
            assert!(had.get() >= piece, "{} of {piece}", had.get());
            let mut read = [0; 1005];
            theirs.read_exact(&mut read).unwrap();
        }
    });
}
