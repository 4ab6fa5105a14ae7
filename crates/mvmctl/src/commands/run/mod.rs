//! `mvmctl vm run NAME`
//!
//! ```text
//!            begin                      follow                            end
//!  (any) ───────────► the guest answers ──────► TERM, INT, HUP or QUIT ───────► asleep, or stopped   0
//!    │                                    │ └─► put to sleep or stopped by another mvmctl            0
//!    │ failed                             ├───► powered off by itself                                0
//!    ▼                                    └───► died                                                 1
//!    1                                          a second signal: its VMM is killed             128 + n
//! ```
//!
//! `beginning` decides what to do with what is left of a VM of that name, and does it. `following`
//! watches the guest and the VM, and says what the supervisor is to know. `ending` puts the VM away.
//! Beside all three the console is copied and the watchdog fed: neither may stand still because the
//! other does.
//!
//! How this could go wrong:
//!
//! - **Two supervise one VM.** Each would end it under the other. A lock is held as long as this runs,
//!   one for each VM; the kernel gives it back however this program ends.
//! - **This program is killed with -9.** The VM runs on, or its start, sleep or stop is broken off.
//!   Whatever it is, the next run finds it in `vm.json`: it takes over what runs and answers, ends what
//!   does not, goes on from what sleeps. Under a supervisor that ends the whole group of processes, as
//!   systemd does, the VM has ended too, and is begun anew.
//! - **The guest stands still.** Its heartbeats stop, and so does the watchdog; the supervisor ends this
//!   program. A VM that another `mvmctl` snapshots or that something has paused stands still in order:
//!   the watchdog is fed.
//! - **Standard output stands still.** A thread writes it, and the console is read no further meanwhile.
//! - **The guest says what it likes.** What of it gets into `STATUS=` is one line, cleaned and cut: a
//!   newline in a name would be another assignment to the supervisor.

mod beginning;
mod console;
mod ending;
mod following;
mod supervisor;
mod telling;

use super::Context;
use super::machine::{Wanted, name, not_of_another};
use super::payload::PayloadArg;
use super::restore;
use super::start;
use super::wait::Goal;
use crate::report::{Failure, Outcome};
use crate::termination::TerminationRequests;
use crate::vm_name::{Marks, complete};
use crate::vm_state::VmStates;
use beginning::{Asked, Beginning};
use clap_complete::engine::ArgValueCompleter;
use console::Console;
use ending::{OnTerm, Put, put_away};
use following::{Follower, Over};
use mvm_registry::{Ending, Error as RegistryError, Home, VmName};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use supervisor::Supervisor;
use tokio::time::timeout;

/// How long the end of the console may take to be written to a standard output that stands still.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Run a VM in the foreground, for a supervisor such as systemd, Nomad or Kubernetes
///
/// Its console goes to standard output. The exit code is 0 when the guest has powered off or was put
/// away, 1 when it has died. TERM and INT put it to sleep or stop it, as --on-term says; a second
/// signal ends it at once. A supervisor that gives NOTIFY_SOCKET is told READY=1, STATUS= and
/// WATCHDOG=1. A VM of that name that sleeps goes on where it was; one that runs without a supervisor
/// is taken over. --timeout says how long it may take to begin (else 1m, or 5m from a snapshot) and
/// to be put away (else 1m).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VM's name: letters, digits, '.', '_' and '-'
    #[arg(add = ArgValueCompleter::new(complete))]
    name: String,

    /// The snapshot from which it begins, in place of an image
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["image", "backend", "cpus", "memory", "agent", "etc"]
    )]
    snapshot: Option<PathBuf>,

    #[command(flatten)]
    machine: start::Machine,

    /// What to do when this program is asked to end
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    on_term: OnTerm,

    /// When the supervisor is told that it is ready
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    notify: Notify,

    /// Begin anew if it is asleep, and give up what it was doing
    #[arg(long)]
    discard_state: bool,

    /// Give a guest from --snapshot an identity of its own: machine-id, host name, boot id
    #[arg(long, requires = "snapshot")]
    clone: bool,

    /// Whether the snapshot's files are read to see that they are what they were
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    verify: restore::When,

    #[command(flatten)]
    marks: Marks,

    #[command(flatten)]
    payload: PayloadArg,
}

/// When the supervisor is told that the VM is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Notify {
    /// The guest answers, and runs
    #[default]
    Ready,
    /// Every integration is healthy
    Healthy,
}

impl From<Notify> for Goal {
    fn from(notify: Notify) -> Self {
        match notify {
            Notify::Ready => Self::Ready,
            Notify::Healthy => Self::Healthy,
        }
    }
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let vm = name(&self.name)?;
        let inventory = context.inventory()?;
        not_of_another(&inventory, &self.name, Wanted::Start)?;
        let home = inventory.home().clone();
        // Standard output is the guest's.
        context.ui.give_stdout_away();
        let requests = context.termination_requests();
        let _alone = supervise_alone(&home, &vm)?;
        let asked = Asked {
            snapshot: self.snapshot,
            clone: self.clone,
            verify: self.verify.into(),
            payload: self.payload.read()?,
            spec: self.machine.spec(context, self.marks, self.discard_state),
        };
        let states = VmStates::new(context);
        let run = Run {
            context,
            home: &home,
            vm: &vm,
            supervisor: Supervisor::from_env(),
            on_term: self.on_term,
            notify: self.notify.into(),
            states: &states,
        };
        let mut console = Console::of(&states, &home.vm(&vm), &context.ui)?;
        let outcome = tokio::select! {
            outcome = run.supervise(asked, requests) => outcome,
            never = console.copy() => match never {},
            never = run.supervisor.feed_watchdog() => match never {},
        };
        let _ = timeout(LAST_WORDS, console.finish()).await;
        outcome
    }
}

/// Takes the place of the one that supervises this VM.
fn supervise_alone(home: &Home, vm: &VmName) -> Result<mvm_registry::Lock, Failure> {
    home.lock_supervision(vm).map_err(|error| match error {
        RegistryError::Locked { by } => {
            let by = by.map_or(String::new(), |pid| format!(", process {pid}"));
            Failure::failed(format!("another `mvmctl vm run` supervises it{by}"))
                .of(vm.as_str())
                .hint("end that one first: a TERM puts the VM away")
        }
        error => Failure::registry(vm.as_str(), &error),
    })
}

/// One VM under supervision.
struct Run<'a> {
    context: &'a Context,
    home: &'a Home,
    vm: &'a VmName,
    supervisor: Supervisor,
    on_term: OnTerm,
    notify: Goal,
    states: &'a VmStates<'a>,
}

impl Run<'_> {
    async fn supervise(
        &self,
        asked: Asked,
        mut requests: TerminationRequests,
    ) -> Result<Outcome, Failure> {
        let name = self.vm.as_str();
        let mut state = self.states.of(name)?;
        if !Box::pin(self.begin(asked, &mut requests)).await? {
            self.context
                .ui
                .note(&format!("{name} was ended before it was up, as asked"));
            return Ok(Outcome::Done);
        }
        // Its folder may be new.
        if !state.is_told() {
            state = self.states.of(name)?;
        }
        let follower = Follower {
            context: self.context,
            supervisor: &self.supervisor,
            notify: self.notify.clone(),
        };
        let over = tokio::select! {
            over = follower.follow(&mut state) => over?,
            _ = requests.next() => return self.end(&mut requests).await,
        };
        self.supervisor.stopping(&over.to_string());
        self.clear_up().await;
        match over {
            Over::PutAway(_) | Over::Ended(Ending::PoweredOff, _) => {
                self.context.ui.note(&format!("{name}: {over}"));
                Ok(Outcome::Done)
            }
            Over::Ended(_, failure) => Err(Failure {
                kind: crate::report::Kind::Failed,
                ..failure
            }),
        }
    }

    /// Whether it is up; not if that was given up because this program is to end.
    async fn begin(
        &self,
        asked: Asked,
        requests: &mut TerminationRequests,
    ) -> Result<bool, Failure> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let beginning = Beginning {
            context: self.context,
            home: self.home,
            vm: self.vm,
            supervisor: &self.supervisor,
            cancelled: Arc::clone(&cancelled),
        };
        let begun = beginning.begin(&asked, self.states);
        tokio::pin!(begun);
        loop {
            tokio::select! {
                begun = &mut begun => return match begun {
                    Ok(()) if !cancelled.load(Ordering::Relaxed) => Ok(true),
                    // It was up already, or just then.
                    Ok(()) => self.end(requests).await.map(|_| false),
                    Err(_) if cancelled.load(Ordering::Relaxed) => Ok(false),
                    Err(failure) => Err(failure),
                },
                number = requests.next() => {
                    if cancelled.swap(true, Ordering::Relaxed) {
                        self.kill();
                        return Err(self.killed(number));
                    }
                    self.supervisor.stopping("giving up its start");
                }
            }
        }
    }

    /// Puts the VM away; a second signal kills it.
    async fn end(&self, requests: &mut TerminationRequests) -> Result<Outcome, Failure> {
        let name = self.vm.as_str();
        let doing = match self.on_term {
            OnTerm::Sleep => "putting it to sleep",
            OnTerm::Stop => "stopping it",
        };
        self.supervisor.stopping(doing);
        self.context.ui.note(&format!("{name}: {doing}"));
        let cancelled = Arc::new(AtomicBool::new(false));
        let ending = put_away(
            self.context,
            self.home,
            self.vm,
            self.on_term,
            Arc::clone(&cancelled),
        );
        tokio::pin!(ending);
        let put = tokio::select! {
            put = &mut ending => put,
            number = requests.next() => {
                cancelled.store(true, Ordering::Relaxed);
                self.kill();
                // What is under way sees that the VMM is gone, and cleans up.
                let _ = ending.await;
                self.clear_up().await;
                return Err(self.killed(number));
            }
        };
        let told = match put? {
            Put::Asleep(folder) => format!("it sleeps in {}", folder.display()),
            Put::Stopped(how) => how.to_owned(),
        };
        self.context.ui.note(&format!("{name}: {told}"));
        Ok(Outcome::Done)
    }

    /// Ends the VM's own process, whoever holds its lock.
    fn kill(&self) {
        let record = self.home.vm(self.vm).record();
        let alive = record.and_then(|record| record.alive()).unwrap_or_default();
        for process in alive.iter().filter(|process| process.role.is_main()) {
            // It is gone already, or is another's by now: nothing is left to be done.
            let _ = process.signal(rustix::process::Signal::KILL);
        }
    }

    fn killed(&self, number: i32) -> Failure {
        let consequence = "the second one: the VM was killed";
        Failure::signalled(number, consequence).of(self.vm.as_str())
    }

    /// Ends what is left of a VM whose own process has ended.
    async fn clear_up(&self) {
        let (home, vm) = (self.home.clone(), self.vm.clone());
        let ended =
            super::machine::blocking(move || mvm_vmm::machine::end_left_over(&home, &vm)).await;
        if let Err(error) = ended {
            let name = self.vm.as_str();
            self.context
                .ui
                .warning(&format!("{name}: what is left of it: {error}"));
        }
    }
}
