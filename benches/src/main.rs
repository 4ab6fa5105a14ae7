//! Measures the agent, all in one run on one machine: what depends on the machine is given as a
//! ratio to something bare that is measured in turn with it.
//!
//! `cargo xtask bench` builds the agent as it goes into a guest and starts this. Nothing here is a
//! test: a figure over its goal is reported, not failed.

mod agent;
mod bare;
mod busy;
mod checks;
mod clones;
mod copy;
mod cores;
mod exec;
mod fleet;
mod guest;
mod idle;
mod output;
mod ping;
mod serve;
mod start;
mod still;

use cores::Cores;
use mvm_guest_tests::Parts;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    // It is the stand-in as well.
    mvm_fake_vmm::run_if_called();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match *args.as_slice() {
        // The bare counterparts run in processes of their own, as the agent does.
        [bare::ECHO, socket] => bare::echo(Path::new(socket)),
        [bare::SPAWN, seconds, a_second] => bare::spawn(seconds, a_second),
        [bare::WRITE, bytes] => bare::write(bytes),
        [bare::RELAY, bytes] => bare::relay(bytes),
        [busy::BUSY, socket, at_most, ref loads @ ..] => busy::hosts(socket, at_most, loads),
        [serve::AGENTS, home, ref groups @ ..] => serve::agents(home, groups),
        [serve::ASK, home] => serve::ask(Path::new(home)),
        [serve::SERVE, file] => serve::serve(Path::new(file)),
        ["--fleet"] => measure_fleet(),
        ["--serve", mvmctl] => measure_serve(Path::new(mvmctl), SERVED),
        ["--serve", mvmctl, vms] => vms
            .parse()
            .map_err(Into::into)
            .and_then(|vms| measure_serve(Path::new(mvmctl), vms)),
        ["--dev", dev, mvmctl] => measure_dev(Path::new(dev), Path::new(mvmctl)),
        ["--starts", agent, dev] => measure_starts(Path::new(agent), Path::new(dev)),
        ["--busy", agent, dev, ref secs @ ..] => busy::report(agent, dev, secs),
        ["--guest", mvmctl] => measure_guest(Path::new(mvmctl)),
        ["--clones", mvmctl, other] => {
            clones::report(Path::new(mvmctl), Path::new(other), None)
        }
        ["--clones", mvmctl, other, image] => {
            clones::report(Path::new(mvmctl), Path::new(other), Some(Path::new(image)))
        }
        ["--other", agent, ref dev @ .., mvmctl] if dev.len() < 2 => {
            let dev = dev.first().map(Path::new);
            measure(Whose::Other, Path::new(agent), dev, Path::new(mvmctl))
        }
        [agent, ref dev @ .., mvmctl] if dev.len() < 2 => {
            let dev = dev.first().map(Path::new);
            measure(Whose::Own, Path::new(agent), dev, Path::new(mvmctl))
        }
        _ => Err(
            "usage: mvm-benches [--other] AGENT [DEV-AGENT] MVMCTL, or --dev DEV-AGENT MVMCTL, or --starts AGENT DEV-AGENT, or --busy AGENT DEV-AGENT [SECS], or --guest MVMCTL, or --fleet, or --serve MVMCTL [VMS], or --clones MVMCTL OTHER-MVMCTL [IMAGE] (or `cargo xtask bench`, which builds them)".into(),
        ),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mvm-benches: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whose programs are measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Those of the revision that this program is of.
    Own,
    /// Those of another one: what they cannot do is said, and left out.
    Other,
}

impl Whose {
    /// What came of one part of the measurements.
    fn part(self, what: &str, done: Result<()>) -> Result<()> {
        match done {
            Err(error) if self == Self::Other => {
                eprintln!("mvm-benches: not measured: {what}: {error}");
                Ok(())
            }
            done => done,
        }
    }
}

fn measure(whose: Whose, agent: &Path, dev: Option<&Path>, mvmctl: &Path) -> Result<()> {
    let size = std::fs::metadata(agent)?.len();
    eprintln!("Measuring {}, which takes three minutes.", agent.display());
    println!("| what | agent | bare | figure | goal |");
    println!("| --- | --- | --- | --- | --- |");

    for cores in [Cores::One, Cores::Two] {
        let ping::Figures { agent_us, bare_us } = ping::measure(agent, cores)?;
        let ratio = agent_us.p50 / bare_us.p50;
        row(
            &format!("ping, p50, to a blocking echo server, {cores}"),
            &format!("{:.1} µs (p99 {:.1})", agent_us.p50, agent_us.p99),
            &format!("{:.1} µs (p99 {:.1})", bare_us.p50, bare_us.p99),
            &format!("{ratio:.2}"),
            "at most 1.3",
        );

        let start::Figures { agent_ms, true_ms } = start::measure(agent, cores)?;
        row(
            &format!("start to first pong, p50, to `/bin/true`, {cores}"),
            &format!("{agent_ms:.2} ms"),
            &format!("{true_ms:.2} ms"),
            &format!("{:.2} ms more", agent_ms - true_ms),
            "at most 5 ms more",
        );
        measure_checks(agent, cores)?;
    }

    whose.part("its guest", measure_guest(mvmctl))?;
    if let Some(dev) = dev {
        whose.part("its dev build", measure_dev(dev, mvmctl))?;
    }
    if whose == Whose::Own {
        // It is part of this program.
        measure_fleet()?;
    }
    whose.part("its fleet", measure_serve(mvmctl, SERVED))?;

    let idle = idle::measure(agent)?;
    let kb = |bytes: u64| format!("{} KB", bytes / 1000);
    row("binary, static, prod", &kb(size), "", "", "at most 1600 KB");
    let rss = kb(idle.rss_bytes);
    row("idle, resident memory", &rss, "", "", "at most 1800 KB");
    let threads = idle.threads.to_string();
    row("idle, threads", &threads, "", "", "1");
    row(
        "idle, wakeups a minute",
        &format!("{:.1}", idle.wakeups_a_minute),
        &format!("{:.1} samples", idle.samples_a_minute),
        "",
        &format!("at most {:.0}", 2.0 * idle.samples_a_minute),
    );
    Ok(())
}

/// What starts programs, and nothing else.
fn measure_starts(agent: &Path, dev: &Path) -> Result<()> {
    for cores in [Cores::One, Cores::Two] {
        measure_checks(agent, cores)?;
        measure_exec(dev, cores)?;
    }
    Ok(())
}

fn measure_checks(agent: &Path, cores: Cores) -> Result<()> {
    let checks::Figures { agent_ms, bare_ms } = checks::measure(agent, cores)?;
    row(
        &format!("100 checks a second, CPU time a check, to spawn and wait, {cores}"),
        &format!("{agent_ms:.2} ms"),
        &format!("{bare_ms:.2} ms"),
        &format!("{:.2}", agent_ms / bare_ms),
        "at most 1.15",
    );
    Ok(())
}

fn measure_exec(dev: &Path, cores: Cores) -> Result<()> {
    let exec::Figures { agent_us, bare_us } = exec::measure(dev, cores)?;
    row(
        &format!("`exec true` of a dev build, p50, to spawn and wait, {cores}"),
        &format!("{agent_us:.0} µs"),
        &format!("{bare_us:.0} µs"),
        &format!("{:.2}", agent_us / bare_us),
        "at most 1.45",
    );
    Ok(())
}

/// What only a guest can show.
fn measure_guest(mvmctl: &Path) -> Result<()> {
    let parts = Parts::find().ok_or("no guest can be had")?;
    let freezes = guest::freezes(&parts.agent)?;
    let guest::Figures {
        bare_ms,
        sleep_ms,
        freeze,
        accepted_ms,
        status_ms,
    } = guest::measure(&parts, freezes)?;
    row(
        "`sleep-prep` in a guest, p50, to bare syncfs and drop",
        &format!("{sleep_ms:.1} ms"),
        &format!("{bare_ms:.1} ms"),
        &format!(
            "{:.2}, {:.1} ms more",
            sleep_ms / bare_ms,
            sleep_ms - bare_ms
        ),
        "at most 10 ms more",
    );
    if let Some(guest::Freeze { bare_ms, agent_ms }) = freeze {
        row(
            "`freeze` of 200 processes in 20 cgroups, p50, to the bare writes and reads",
            &format!("{agent_ms:.0} ms"),
            &format!("{bare_ms:.1} ms"),
            &format!("{:.1} ms more", agent_ms - bare_ms),
            "at most 15 ms more",
        );
    }
    row(
        "restore to first status, p50, to first connection",
        &format!("{status_ms:.0} ms"),
        &format!("{accepted_ms:.0} ms"),
        &format!("{:.3}", status_ms / accepted_ms),
        "at most 1.2",
    );

    if !freezes {
        return Ok(());
    }
    let still::Figures {
        source_ms,
        clone_ms,
    } = still::measure(&parts, mvmctl)?;
    for (what, (p50, most)) in [
        ("a snapshot, of the VM that runs on", source_ms),
        ("a snapshot and its restore, of a clone", clone_ms),
    ] {
        row(
            &format!("the guest's work stands still around {what}, p50"),
            &format!("{p50:.0} ms (longest {most:.0})"),
            "",
            "",
            "",
        );
    }
    Ok(())
}

/// What dev builds have beyond others.
fn measure_dev(dev: &Path, mvmctl: &Path) -> Result<()> {
    for cores in [Cores::One, Cores::Two] {
        measure_exec(dev, cores)?;
    }

    let figures = output::measure(dev)?;
    for (what, bare_mb) in [
        (
            "a process that carries them from a pipe to a socket",
            figures.relay,
        ),
        ("the command with the socket itself", figures.socket),
    ] {
        row(
            &format!("1 GB of output of a dev build, to {what}"),
            &format!("{:.0} MB/s", figures.agent),
            &format!("{bare_mb:.0} MB/s"),
            &format!("{:.2}", figures.agent / bare_mb),
            "at least 0.8",
        );
    }

    let figures = copy::measure(dev, mvmctl)?;
    for (which, mb) in [("into", figures.into), ("out of", figures.out)] {
        row(
            &format!("`mvmctl vm cp` of 512 MiB {which} a dev build, to socat"),
            &format!("{mb:.0} MB/s"),
            &format!("{:.0} MB/s", figures.socat),
            &format!("{:.2}", mb / figures.socat),
            "at least 0.8",
        );
    }
    Ok(())
}

/// The pure part of a fleet of 10,000 VMs: there is nothing bare to compare it with.
fn measure_fleet() -> Result<()> {
    let figures = fleet::measure()?;
    let ms = |times: &fleet::Times| {
        format!(
            "{:.2} ms (p99 {:.2}), {:.2} ms of CPU time",
            times.p50, times.p99, times.cpu
        )
    };
    for (what, figure, goal) in [
        (
            "a decision over 10,000 VMs, p50",
            ms(&figures.decision),
            "at most 5 ms",
        ),
        (
            "`/metrics` of 10,000 VMs as text, rendering alone, p50",
            ms(&figures.text),
            "at most 100 ms",
        ),
        (
            "the same as OpenMetrics",
            ms(&figures.open_metrics),
            "at most 100 ms",
        ),
        (
            "the same without each VM's series",
            ms(&figures.no_per_vm),
            "",
        ),
        (
            "a heartbeat into a view of 10,000 VMs",
            format!("{:.2} µs", figures.heartbeat_us),
            "",
        ),
        (
            "a view of 10,000 VMs, memory a VM",
            format!("{:.0} bytes", figures.bytes_a_vm),
            "",
        ),
        (
            "`/metrics` of 10,000 VMs, size and samples",
            format!("{:.1} MB, {}", figures.text_mb, figures.samples),
            "",
        ),
    ] {
        row(what, &figure, "", "", goal);
    }
    Ok(())
}

/// How many guests are served.
const SERVED: usize = 10_000;

/// What serves and asks a fleet, over fake guests.
fn measure_serve(mvmctl: &Path, vms: usize) -> Result<()> {
    let ms = |times: &serve::Times| {
        let (p50, most, cpu) = (times.p50 * 1e3, times.most * 1e3, times.cpu * 1e3);
        format!("{p50:.1} ms (longest {most:.0}), {cpu:.1} ms of CPU time")
    };
    let s = |times: &serve::Times| {
        let (p50, most, cpu) = (times.p50, times.most, times.cpu);
        format!("{p50:.2} s (longest {most:.2}), {cpu:.2} s of CPU time")
    };
    let mut fleet = serve::Fleet::new(mvmctl, vms, vms / 100)?;
    let bad = fleet.bad()?;
    let what = format!("`vm status` over {vms} guests, 1 % dead and 1 % stalled");
    let figure = format!("{:.1} s", bad.status);
    row(&what, &figure, "", "", "within the stalled ones' deadline");
    let figure = format!("{:.1} s", bad.limited);
    let what = format!("the same with 256 descriptors (\"{}\")", bad.note);
    row(&what, &figure, "", "", "");

    let serving = fleet.serving()?;
    drop(fleet);
    for (what, figure, goal) in [
        (
            "`fleet serve` over them, until its view is complete",
            format!("{:.1} s", serving.complete_s),
            "",
        ),
        (
            "its CPU while nothing changes",
            format!("{:.2} % of a core", serving.quiet * 100.0),
            "below 1 %",
        ),
        (
            "its resident memory, before any scrape",
            format!("{:.0} MB", serving.rss_mb),
            "at most 120 MB",
        ),
        (
            "its resident memory, after 20 scrapes",
            format!("{:.0} MB", serving.rss_scraped_mb),
            "at most 120 MB",
        ),
        (
            "its resident memory with `--no-per-vm`",
            format!("{:.0} MB", serving.rss_no_per_vm_mb),
            "",
        ),
        ("`/v1/pools/NAME`, p50", ms(&serving.pool), ""),
        (
            "until a VM is unknown whose connection is closed",
            format!("{:.2} s", serving.dead_s),
            "its deadline",
        ),
        (
            "until a VM is unknown that falls silent",
            format!("{:.1} s", serving.silent_s),
            "three heartbeats, 45 s",
        ),
    ] {
        row(what, &figure, "", "", goal);
    }
    row(
        &format!(
            "`/metrics`, {:.1} MB, p50, to a server that has the bytes",
            serving.metrics_mb
        ),
        &ms(&serving.metrics),
        &ms(&serving.bare),
        &format!(
            "{:.1} ms more",
            (serving.metrics.p50 - serving.bare.p50) * 1e3
        ),
        "at most 100 ms",
    );

    let mut fleet = serve::Fleet::new(mvmctl, vms, 0)?;
    let asking = fleet.asking()?;
    row(
        &format!("`vm status` over {vms} guests that all answer, to a bare client"),
        &s(&asking.status),
        &s(&asking.bare),
        &format!(
            "{:.2}; {:.2} of CPU time",
            asking.status.p50 / asking.bare.p50,
            asking.status.cpu / asking.bare.cpu
        ),
        "at most 1.3",
    );
    let peak = format!("{:.0} MB", asking.peak_mb);
    row("its memory at most", &peak, "", "", "at most 100 MB");
    let top = fleet.top()?;
    let figure = format!("{:.2} % of a core, {:.0} MB", top.quiet * 100.0, top.rss_mb);
    row(
        "`vm top` over them, a refresh each second",
        &figure,
        "",
        "",
        "at most 5 %",
    );
    let left = fleet.left()?;
    let figure = format!(
        "{} descriptors, {} series, {:.1?} MB",
        left.descriptors, left.series, left.rss_mb
    );
    let what = "left in `fleet serve` after a tenth as many came and went, three times";
    row(what, &figure, "", "", "nothing");
    Ok(())
}

fn row(what: &str, agent: &str, bare: &str, figure: &str, goal: &str) {
    println!("| {what} | {agent} | {bare} | {figure} | {goal} |");
}
