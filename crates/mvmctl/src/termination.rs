//! Signals that ask this process to terminate: INT, TERM, HUP and QUIT.
//!
//! A thread of its own waits for them, since the one that runs the command may stand still in the
//! middle of writing to a pipe that nobody reads.
//!
//! ```text
//! the command handles them:  first ──► the command;  second ──► the command, and 3 s at most;  third ──► the end
//! it does not:               first ──► the end
//! HUP where it means to read settings anew:  the command, each time; it is none of those above
//! the end:                   the handshakes that are under way are seen to, and the signal does what it does by default
//! ```

use crate::handshakes::FinishHandshakes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level::emulate_default_handler;
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};
use tokio::sync::broadcast::{self, error::RecvError};

/// How long a command may take to end after the second signal.
const AFTER_THE_SECOND: Duration = Duration::from_secs(3);

/// How many signals may wait for a command. No more than three matter.
const WAITING: usize = 8;

/// Hands the signals to the command that runs, if it handles them.
#[derive(Debug)]
pub(crate) struct Termination {
    requests: broadcast::Sender<i32>,
    hup_reloads: Arc<AtomicBool>,
}

/// The signals, as long as this is there; none of them ends the process by itself then.
#[derive(Debug)]
pub(crate) struct TerminationRequests(broadcast::Receiver<i32>);

impl TerminationRequests {
    /// The number of the next one.
    pub(crate) async fn next(&mut self) -> i32 {
        loop {
            match self.0.recv().await {
                Ok(number) => return number,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }
}

impl Termination {
    /// Begins to listen. A signal that is ignored when this program starts, as HUP is under `nohup`,
    /// stays so.
    pub(crate) fn watch(handshakes: Arc<FinishHandshakes>) -> io::Result<Self> {
        let ignored = ignored();
        let mut signals = Vec::new();
        for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            if ignored & (1 << (number - 1)) == 0 {
                let (received, sent) = UnixStream::pair()?;
                received.set_nonblocking(true)?;
                // A byte for each, so that three in a moment are three.
                signal_hook::low_level::pipe::register(number, sent)?;
                signals.push((number, received));
            }
        }
        // A file that would grow over its limit (RLIMIT_FSIZE) is an error like a disk that is full, and
        // no end of this program. What it starts has the default again.
        let too_large = rustix::process::Signal::XFSZ.as_raw();
        signal_hook::flag::register(too_large, Arc::default())?;
        let (requests, _) = broadcast::channel(WAITING);
        let hup_reloads = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            signals,
            requests: requests.clone(),
            hup_reloads: Arc::clone(&hup_reloads),
            handshakes,
        };
        Builder::new()
            .name("signals".into())
            .spawn(move || watcher.run())?;
        Ok(Self {
            requests,
            hup_reloads,
        })
    }

    /// The same, and HUP asks the command to read its settings anew, however often it comes.
    pub(crate) fn requests_and_reloads(&self) -> TerminationRequests {
        self.hup_reloads.store(true, Ordering::SeqCst);
        self.requests()
    }

    /// From now on signals are for the command.
    pub(crate) fn requests(&self) -> TerminationRequests {
        TerminationRequests(self.requests.subscribe())
    }
}

struct Watcher {
    signals: Vec<(i32, UnixStream)>,
    requests: broadcast::Sender<i32>,
    hup_reloads: Arc<AtomicBool>,
    handshakes: Arc<FinishHandshakes>,
}

impl Watcher {
    fn run(mut self) {
        let mut count = 0;
        let mut deadline: Option<(Instant, i32)> = None;
        loop {
            let left = deadline.map(|(at, _)| at.saturating_duration_since(Instant::now()));
            if let (Some(Duration::ZERO), Some((_, number))) = (left, deadline) {
                return self.end(number);
            }
            for number in self.wait(left) {
                let is_handled = self.requests.send(number).is_ok();
                if number == SIGHUP && is_handled && self.hup_reloads.load(Ordering::SeqCst) {
                    continue;
                }
                count += 1;
                match count {
                    _ if !is_handled => return self.end(number),
                    1 => {}
                    2 => deadline = Some((Instant::now() + AFTER_THE_SECOND, number)),
                    _ => return self.end(number),
                }
            }
        }
    }

    /// The signals that came, at least one unless the time is up.
    fn wait(&mut self, at_most: Option<Duration>) -> Vec<i32> {
        let at_most = at_most.and_then(|at_most| Timespec::try_from(at_most).ok());
        let mut ready: Vec<_> = self
            .signals
            .iter()
            .map(|(_, signals)| PollFd::new(signals, PollFlags::IN))
            .collect();
        // What fails but for a moment leaves nothing to read.
        let _ = poll(&mut ready, at_most.as_ref());
        let mut come = Vec::new();
        for (number, signals) in &mut self.signals {
            let mut bytes = [0; 16];
            let count = signals.read(&mut bytes).unwrap_or(0);
            come.extend(std::iter::repeat_n(*number, count));
        }
        come
    }

    /// Ends this process as the signal does by default.
    fn end(&self, number: i32) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        if let Ok(runtime) = runtime {
            runtime.block_on(self.handshakes.wait());
        }
        self.handshakes.hand_over();
        let _ = emulate_default_handler(number);
    }
}

/// Which signals are ignored, as a bit for each; none where that cannot be told.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap_or(0))
}
