//! Puts the agent together from its settings, and runs it until it is told to stop.

use crate::config::Config;
use crate::core::worker::BusyPolicy;
use crate::core::{Core, Settings};
use crate::machine::clock::{self, Timer};
use crate::machine::console::{self, say};
use crate::machine::drop_in_watch::{Watch, dirs};
use crate::machine::end_mark::EndMark;
use crate::machine::hypervisor_clock::HypervisorClock;
use crate::machine::inhibit::Inhibitors;
use crate::machine::journal::Files;
use crate::machine::kernel_log::{ForkWatch, Way, Words};
use crate::machine::local::LocalMachine;
use crate::machine::marks::{MarkReader, VmclockWatch};
use crate::machine::process::Launcher;
use crate::machine::program::protect_from_oom;
use crate::machine::run_dir::RunDir;
use crate::machine::samples::Sampler;
use crate::machine::uevents::VmgenidWatch;
use crate::machine::vsock::{VsockKey, may_demand};
use crate::ports::Ports;
use crate::serve::driver::Driver;
use crate::serve::extension::Extension;
use crate::serve::facts::{Facts, VERSION};
use crate::serve::handle::Handle;
use crate::serve::listener::{ListenAddress, Listener, explain};
use mvm_protocol::answer::Profile;
use std::cell::{Cell, RefCell};
use std::hash::BuildHasher;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// What this build adds to serving.
#[cfg(feature = "dev")]
type Build = Rc<crate::dev::Dev>;
#[cfg(not(feature = "dev"))]
type Build = Ports;

#[cfg(feature = "dev")]
fn extension(launcher: &Rc<Launcher>, ports: Ports) -> Build {
    tokio::task::spawn_local(crate::dev::remove_left(Rc::clone(launcher)));
    Rc::new(crate::dev::Dev::new(Rc::clone(launcher), ports))
}
#[cfg(not(feature = "dev"))]
fn extension(_: &Rc<Launcher>, ports: Ports) -> Build {
    ports
}

/// The name of this build's profile.
pub(crate) fn profile() -> &'static str {
    match Build::PROFILE {
        Profile::Prod => "prod",
        Profile::Dev => "dev",
    }
}

/// Runs an agent. An error is a sentence for whoever starts it.
pub(crate) async fn run(config: Config) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot start: {error}");
    let run_dir = RunDir::take(&config.run_dir)?;
    let protected = config.system_effects && protect_from_oom();
    let facts = Facts::new(config.exec, !config.expose.is_empty());
    if !config.allow_vsock {
        keep_from_vsock(facts.vsock);
    }
    let launcher = Launcher::new(run_dir.path(), protected);
    say!(
        "{VERSION} ({}), ends commands by {}",
        profile(),
        launcher.kill_method()
    );
    let now = clock::now();
    let settings = Settings {
        max_concurrent_checks: config.max_concurrent_checks,
        sample_interval: config.sample_interval,
        busy: BusyPolicy {
            threshold: config.busy_threshold,
            signals: config.busy_signals.clone(),
        },
        seed: facts.hasher.hash_one(0),
        since_boot: clock::uptime(),
    };
    let files = Files::new(run_dir.path());
    files.make_reserve();
    let mut journal = files.read();
    let end_mark = EndMark::settle(&files, &mut journal, || launcher.end_leftovers()).await;
    if journal.asleep || !journal.owed.is_empty() || journal.frozen {
        let owed = journal.owed.len();
        say!("the guest was not running: {owed} restore commands are owed");
    }
    let core = Core::new(settings, journal, now);
    let sampler = Sampler::new(
        config.busy_signals.clone(),
        Inhibitors::new(run_dir.busy_d()),
    );
    let marks = mark_reader(&config);
    let launcher = Rc::new(launcher);
    let extension = extension(&launcher, Ports::new(&config.expose));
    let machine = LocalMachine {
        timer: Timer::new().map_err(failed)?,
        launcher,
        sampler: RefCell::new(sampler),
        files,
        end_mark,
        folders: (config.integrations_dir.clone(), config.probes_dir.clone()),
        effects: config.system_effects,
        freeze: config.freeze.clone(),
        outside: RefCell::default(),
        hypervisor_clock: HypervisorClock::of_guest(),
        marks: marks.clone(),
    };
    let files = machine.files.clone();
    let driver = Driver::new(core, facts, machine, extension.clone(), config.notify_port);
    let handle = driver.handle();
    follow_signals(&handle).map_err(failed)?;
    follow_drop_ins(&config, &handle);
    follow_restores(&config, marks, &handle);
    listen(&config, &handle, &extension).await?;
    // Told to systemd alone: without NOTIFY_SOCKET this does nothing.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let result = driver
        .run()
        .await
        .map_err(|error| format!("stopped: {error}"));
    say_what_is_owed(&files);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    result
}

/// Whoever stops the agent of a guest that is asleep learns that services are left as they are.
fn say_what_is_owed(files: &Files) {
    let owed = files.read().owed;
    if !owed.is_empty() {
        say!(
            "stopped while the guest is asleep: restore commands of {} are owed until it is started",
            owed.join(", ")
        );
    }
}

/// How often an address that is taken is tried: what an agent that was killed has just forked holds
/// its sockets for an instant longer.
const BIND_TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(25);

async fn bind(address: &ListenAddress, key: VsockKey) -> Result<Listener, String> {
    let mut left = BIND_TRIES;
    loop {
        match Listener::bind(address, key) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && left > 0 => left -= 1,
            bound => return bound.map_err(|error| explain(address, &error)),
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}

async fn listen(config: &Config, handle: &Handle, extension: &Build) -> Result<(), String> {
    let open = Rc::new(Cell::new(0));
    let dialled = Rc::new(Cell::new(false));
    for address in &config.listen {
        let listener = bind(address, handle.facts().vsock).await?;
        say!("listening on {address}");
        let serving = listener.run(
            handle.clone(),
            extension.clone(),
            Rc::clone(&open),
            config.max_connections,
            Rc::clone(&dialled),
        );
        tokio::task::spawn_local(serving);
    }
    if config.system_effects && !console::has_log() {
        tokio::task::spawn_local(announce(config.listen.clone(), dialled));
    }
    Ok(())
}

/// When the agent's line is said again on a console that others write to: in the middle of a boot and
/// after it.
const AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(8)];

/// Says on the guest's console what the log says elsewhere, a journal for one: whoever starts a VM
/// waits for this line there before it dials. What else is written there may tear it (the kernel) or
/// take it back before it is out (a getty that hangs the terminal up), so it is said again until
/// somebody has dialled.
async fn announce(addresses: Vec<ListenAddress>, dialled: Rc<Cell<bool>>) {
    for pause in [Duration::ZERO].into_iter().chain(AGAIN) {
        tokio::time::sleep(pause).await;
        if dialled.get() {
            return;
        }
        for address in &addresses {
            console::write_to_console(format_args!("listening on {address}"));
        }
    }
}

fn follow_signals(handle: &Handle) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let handle = handle.clone();
    tokio::task::spawn_local(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => handle.reload(),
                _ = terminate.recv() => handle.stop(),
                _ = interrupt.recv() => handle.stop(),
            }
        }
    });
    Ok(())
}

/// Without inotify the drop-ins are still read at start, on SIGHUP and on request.
fn follow_drop_ins(config: &Config, handle: &Handle) {
    let mut watch = match Watch::new(dirs(&config.integrations_dir, &config.probes_dir)) {
        Ok(watch) => watch,
        Err(error) => {
            say!("changes of drop-ins are not noticed: inotify: {error}");
            return;
        }
    };
    let handle = handle.clone();
    tokio::task::spawn_local(async move {
        loop {
            if let Err(error) = watch.changed().await {
                say!("changes of drop-ins are not noticed any more: inotify: {error}");
                return;
            }
            handle.drop_ins_changed();
        }
    });
}

/// Outside of a guest there is nothing to be restored.
fn mark_reader(config: &Config) -> MarkReader {
    let is_vsock = |address: &ListenAddress| matches!(address, ListenAddress::Vsock(_));
    if config.system_effects {
        MarkReader::of_guest(config.listen.iter().any(is_vsock))
    } else {
        MarkReader::none()
    }
}

/// Has the core told at once that the guest was restored, where the kernel tells; what it does not
/// tell is read with each sample.
fn follow_restores(config: &Config, marks: MarkReader, handle: &Handle) {
    if !config.system_effects {
        return;
    }
    let words = Rc::new(RefCell::new(Words::default()));
    let told = |way: Way| {
        let (words, handle) = (Rc::clone(&words), handle.clone());
        move || {
            if words.borrow_mut().is_new(way) {
                handle.vmgenid_changed();
            }
        }
    };
    match ForkWatch::new(Path::new("/dev/kmsg")) {
        Ok(watch) => at_each_change(async move || watch.changed().await, told(Way::Log)),
        Err(error) => say!("VMGENID is not noticed: /dev/kmsg: {error}"),
    }
    if let Ok(watch) = VmgenidWatch::new() {
        at_each_change(async move || watch.changed().await, told(Way::Uevent));
    }
    let device = marks.vmclock.as_deref();
    if let Some(watch) = device.and_then(|device| VmclockWatch::new(device).ok()) {
        let handle = handle.clone();
        let read = move || handle.marks_read(marks.read());
        at_each_change(async move || watch.changed().await, read);
    }
}

/// Until there will be no more.
fn at_each_change(changed: impl AsyncFn() -> io::Result<()> + 'static, told: impl Fn() + 'static) {
    tokio::task::spawn_local(async move {
        while changed().await.is_ok() {
            told();
        }
    });
}

/// Keeps all that the agent starts from sockets to the host. That it cannot be, or what it costs, is said
/// once.
fn keep_from_vsock(key: VsockKey) {
    let may = may_demand();
    match key.demand() {
        Ok(()) if may => {}
        Ok(()) => say!(
            "no CAP_SYS_ADMIN: what is started here is kept from AF_VSOCK with no_new_privs, \
             so that sudo and the like give it no rights; \"allow_vsock\": true leaves it both"
        ),
        Err(error) => {
            say!("what is started here may open AF_VSOCK sockets: no seccomp filters: {error}");
        }
    }
}
