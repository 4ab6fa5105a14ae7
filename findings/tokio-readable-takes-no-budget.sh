#!/bin/sh
# tokio 1.54.1 (crates.io).
#
# Seen:     a task that reads by the loop of tokio's own documentation, `readable().await` and `try_read`,
#           is never made to yield while there are bytes: of another task on the same thread, and of its
#           timers, nothing is polled in 10,000 reads. `AsyncReadExt::read` on the same socket ends its
#           turn each 128 reads. `AsyncFd::readable` is as the former.
# Guessed:  that whatever waits for a socket takes from the task's budget (tokio::task::coop), as `read` does.
# Matters:  on a runtime with one thread, and a machine with one CPU, a peer that writes whenever it is read
#           from keeps that thread: a timeout in the same `select!` does not come either.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "turns"
version = "0.0.0"
edition = "2021"
[dependencies]
tokio = { version = "=1.54.1", features = ["io-util", "macros", "net", "rt"] }
[workspace]
TOML
cat >src/main.rs <<'RUST'
use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;
use tokio::io::unix::AsyncFd;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::{spawn_local, yield_now, LocalSet};

const READS: usize = 10_000;

/// A socket with a byte for each read, and what counts the turns of another task.
async fn begin() -> (std::os::unix::net::UnixStream, std::os::unix::net::UnixStream, Rc<Cell<u32>>) {
    let (reader, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
    writer.write_all(&[0; READS]).unwrap();
    reader.set_nonblocking(true).unwrap();
    let turns = Rc::new(Cell::new(0));
    let others = Rc::clone(&turns);
    spawn_local(async move {
        loop {
            others.set(others.get() + 1);
            yield_now().await;
        }
    });
    yield_now().await;
    turns.set(0);
    (reader, writer, turns)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let story = async {
        let (reader, _writer, turns) = begin().await;
        let reader = UnixStream::from_std(reader).unwrap();
        reader.readable().await.unwrap();
        turns.set(0);
        for _ in 0..READS {
            reader.readable().await.unwrap();
            assert_eq!(reader.try_read(&mut [0]).unwrap(), 1);
        }
        println!("readable and try_read: {} turns of others", turns.get());

        let (reader, _writer, turns) = begin().await;
        // SAFETY: it owns its descriptor, and gives the same one each time.
        let reader = unsafe { AsyncFd::register(reader) }.unwrap();
        drop(reader.readable().await.unwrap());
        turns.set(0);
        for _ in 0..READS {
            let mut guard = reader.readable().await.unwrap();
            let read = guard.try_io(|fd| std::io::Read::read(&mut fd.get_ref(), &mut [0]));
            assert_eq!(read.unwrap().unwrap(), 1);
        }
        println!("AsyncFd::readable and try_io: {} turns of others", turns.get());

        let (reader, _writer, turns) = begin().await;
        let mut reader = UnixStream::from_std(reader).unwrap();
        reader.readable().await.unwrap();
        turns.set(0);
        for _ in 0..READS {
            assert_eq!(reader.read(&mut [0]).await.unwrap(), 1);
        }
        println!("AsyncReadExt::read: {} turns of others", turns.get());
    };
    LocalSet::new().run_until(story).await;
}
RUST
seen=$(CARGO_TARGET_DIR=$dir/target cargo run --quiet)
echo "$seen"
[ "$(echo "$seen" | head -n 2)" = "readable and try_read: 0 turns of others
AsyncFd::readable and try_io: 0 turns of others" ]
turns=$(echo "$seen" | sed -n 's/^AsyncReadExt::read: \([0-9]*\) turns of others$/\1/p')
[ "$turns" -gt 50 ]
