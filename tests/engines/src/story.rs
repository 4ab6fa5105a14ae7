//! What is shown: the number of jobs follows what the hosts want, also while one of them is cut off, and
//! nothing runs twice or ends for not being seen.

use crate::cluster::Cluster;
use crate::conf::{Guests, HOSTS, Host};
use crate::picture;
use crate::record::{runs, twice};
use crate::seen::Running;
use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two rounds of the scaler.
fn period(guests: Guests) -> Duration {
    Duration::from_secs(match guests {
        Guests::Local => 3,
        Guests::Qemu => 20,
    })
}

/// Rounds of the scaler after which what has not changed does not change any more.
fn rounds(guests: Guests) -> u32 {
    match guests {
        Guests::Local => 5,
        Guests::Qemu => 3,
    }
}

const A: Host = HOSTS[0];
const B: Host = HOSTS[1];

/// The scaler's timer, driven by whoever waits for something.
struct Story<'a> {
    cluster: &'a Cluster,
    last: Cell<Option<Instant>>,
    rounds: Cell<u32>,
    /// The scaler's rounds that did nothing, for want of a number.
    idle: Cell<u32>,
}

impl<'a> Story<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            last: Cell::new(None),
            rounds: Cell::new(0),
            idle: Cell::new(0),
        }
    }

    /// Waits for something, while the scaler does its rounds.
    fn until(&self, what: &str, is_so: impl Fn(u32) -> Result<bool, String>) -> Result<(), String> {
        self.cluster.until(what, || {
            if self
                .last
                .get()
                .is_none_or(|last| last.elapsed() >= period(self.cluster.guests))
            {
                self.last.set(Some(Instant::now()));
                if self.cluster.scale().is_err() {
                    self.idle.set(self.idle.get() + 1);
                }
                self.rounds.set(self.rounds.get() + 1);
            }
            is_so(self.rounds.get())
        })
    }

    /// Waits until what is wanted and what runs are that many, and stay so.
    fn settled(&self, count: u64) -> Result<(), String> {
        let since = Cell::new(self.rounds.get());
        self.until(&format!("{count} that are wanted and run"), |round| {
            let runs = self.cluster.watch.now().len() as u64;
            if self.cluster.wanted() != Some(count) || runs != count {
                since.set(round);
            }
            Ok(round >= since.get() + rounds(self.cluster.guests))
        })?;
        let jobs = self.cluster.jobs()?;
        self.cluster.say(&format!(
            "{count} wanted, {count} run: {}",
            shown(&self.cluster.watch.now())
        ));
        let running = jobs.lines().filter(|job| job.contains(" RUNNING ")).count() as u64;
        check(running == count, || format!("of {count} jobs run\n{jobs}"))
    }

    fn on(&self, host: Host) -> Running {
        let mut now = self.cluster.watch.now();
        now.retain(|(on, _), _| on == host.name);
        now
    }

    /// Has all that run on those hosts work, or not.
    fn work(&self, hosts: &[Host], works: bool) -> Result<(), String> {
        for (host, vm) in hosts
            .iter()
            .flat_map(|host| self.on(*host))
            .map(|(key, _)| key)
        {
            self.cluster.work(&host, &vm, works)?;
        }
        Ok(())
    }
}

/// By the recipe: two hosts, one of which is cut off in the middle.
pub(crate) fn recipe(cluster: &Cluster) -> Result<(), String> {
    let story = Story::new(cluster);
    cluster.say("each host wants one at hand");
    story.settled(2)?;
    let spread = !story.on(A).is_empty() && !story.on(B).is_empty();
    check(spread, || "both are on one host".into())?;

    cluster.say("both work: each host wants one more at hand");
    story.work(&HOSTS, true)?;
    story.settled(4)?;
    let asked = HOSTS.map(|host| cluster.wanted_by(host));
    check(asked.iter().flatten().sum::<u64>() == 4, || {
        format!("the hosts want {asked:?}")
    })?;

    cut_off(&story)?;

    story.work(&HOSTS, false)?;
    cluster.say("nobody works");
    story.settled(2)?;

    lost(&story)?;
    if let Some(file) = std::env::var_os("MVM_TEST_PICTURE") {
        picture::draw(cluster, &PathBuf::from(file))?;
    }

    let (twice_seen, looks) = cluster.watch.twice();
    check(twice_seen.is_empty(), || {
        format!("ran on two hosts: {twice_seen:?}")
    })?;
    let written = written(cluster)?;
    let double = twice(&written);
    check(double.is_empty(), || {
        format!("by their own record ran twice: {double:?}")
    })?;
    cluster.say(&format!(
        "no VM ran twice, in {looks} looks at both hosts and by the record of {} runs; the scaler did {} \
         rounds, {} of which had no number and did nothing",
        written.len(),
        story.rounds.get(),
        story.idle.get(),
    ));
    Ok(())
}

/// Host b is not seen by anybody, and then joined again: what is wanted there is what was wanted last, and
/// none of its VMs ends.
fn cut_off(story: &Story<'_>) -> Result<(), String> {
    let cluster = story.cluster;
    let there = story.on(B);
    let wanted_there = cluster
        .wanted_by(B)
        .ok_or("host b does not say what it wants")?;
    cluster.say(&format!("host b is cut off, with {}", shown(&there)));
    cluster.cable(B, "down")?;
    let up = format!("up{{instance=\"{}:9152\"}}", B.address);
    story.until("Prometheus to miss host b", |_| {
        Ok(cluster.number(&up) == Some(0))
    })?;
    story.until("the engine to miss host b", |_| Ok(!cluster.answers(B)?))?;
    cluster.say("Prometheus and the engine miss it");

    // More work on a: more VMs, all of them there, since nothing can be begun on b.
    let before = story.on(A).len() as u64;
    story.work(&[A], true)?;
    story.settled(before + 1 + wanted_there)?;
    check(story.on(B) == there, || {
        "something changed on host b".into()
    })?;

    // Work on both ends, which is seen of a alone. What is wanted falls below the numbers of what runs on
    // b, which is let be.
    story.work(&HOSTS, false)?;
    story.until("host b to want less", |_| {
        Ok(cluster.wanted_by(B) == Some(1))
    })?;
    let less = 1 + wanted_there;
    let since = Cell::new(None);
    story.until(&format!("{less} that are wanted"), |round| {
        if cluster.wanted() != Some(less) {
            since.set(None);
        } else if since.get().is_none() {
            since.set(Some(round));
        }
        Ok(since
            .get()
            .is_some_and(|since| round >= since + 2 * rounds(cluster.guests)))
    })?;
    check(story.on(B) == there, || {
        format!(
            "on host b run {}, and not {}",
            shown(&story.on(B)),
            shown(&there)
        )
    })?;
    cluster.say(&format!(
        "{less} wanted, and b's are let be: {}",
        shown(&cluster.watch.now())
    ));

    // What nobody meant for b while it could not be reached does not reach it later, either.
    story.work(&[A], true)?;
    let a = story.on(A).len() as u64;
    story.settled(a + 1 + wanted_there)?;
    cluster.say("host b is joined again");
    cluster.cable(B, "up")?;
    story.until("the engine to hear of host b", |_| cluster.answers(B))?;
    cluster.say("the engine hears of it");
    story.settled(a + 1 + 1)?;
    check(story.on(B) == there, || {
        format!(
            "on host b run {}, with other processes than before",
            shown(&story.on(B))
        )
    })
}

/// Host b loses its power. That it is not cut off alone is known when somebody says so.
fn lost(story: &Story<'_>) -> Result<(), String> {
    let cluster = story.cluster;
    cluster.say(&format!("host b is off, with {}", shown(&story.on(B))));
    cluster.off(B);
    let before = story.on(A);
    let begun = story.rounds.get();
    story.until("the engine to miss host b", |round| {
        Ok(!cluster.answers(B)? && round >= begun + rounds(cluster.guests))
    })?;
    check(story.on(A) == before, || {
        format!("nobody said so, and there run {}", shown(&story.on(A)))
    })?;
    cluster.down(B)?;
    cluster.say("it is said to be off");
    story.settled(2)
}

/// By Slurm's defaults a VM of a host that is cut off runs twice: what is looked for is seen.
pub(crate) fn defaults(cluster: &Cluster) -> Result<(), String> {
    let story = Story::new(cluster);
    story.settled(2)?;
    cluster.say(&format!("host b is cut off, with {}", shown(&story.on(B))));
    cluster.cable(B, "down")?;
    story.until("a VM that runs twice", |_| {
        Ok(!cluster.watch.twice().0.is_empty())
    })?;
    let (vms, _) = cluster.watch.twice();
    cluster.say(&format!(
        "{vms:?} runs on both: {}",
        shown(&cluster.watch.now())
    ));
    // Until both have written so down.
    story.until("both to say so", |_| {
        Ok(!twice(&written(cluster)?).is_empty())
    })?;
    cluster.say("and by its own record");
    Ok(())
}

fn written(cluster: &Cluster) -> Result<Vec<crate::record::Run>, String> {
    let journal = cluster.journal();
    runs(&journal.map_err(|error| format!("the VMs' journal: {error}"))?)
}

fn shown(running: &Running) -> String {
    let vms: Vec<String> = running
        .keys()
        .map(|(host, vm)| format!("{vm} on {host}"))
        .collect();
    vms.join(", ")
}

fn check(is_so: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(otherwise()) }
}
