//! The agents of a fleet's guests, in processes of their own.

use crate::Result;
use mvm_fake_fleet::{Behaviour, FakeFleet, Guests};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

/// How this program is called to be the agents of guests.
pub(crate) const AGENTS: &str = "--agents";

/// Each half of them is of one process: an agent takes two descriptors.
const HALVES: [&str; 2] = ["a", "b"];

/// In how many pools each half of the guests that answer is.
const POOLS: usize = 50;

/// The agents of guests until standard input ends; each line of it is a name and a behaviour.
pub(crate) fn agents(home: &str, groups: &[&str]) -> Result<()> {
    let mut fleet = FakeFleet::start(Path::new(home), Guests::default());
    for group in groups.chunks(3) {
        let [name, behaviour, count] = group else {
            return Err("NAME BEHAVIOUR COUNT, each time".into());
        };
        let behaviour: Behaviour = behaviour.parse()?;
        for number in 1..=count.parse::<usize>()? {
            fleet.set(&format!("{name}-{number}"), behaviour);
        }
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if let Some((name, behaviour)) = line.split_once(' ') {
            fleet.set(name, behaviour.parse()?);
            println!("{line}");
        }
    }
    Ok(())
}

/// All agents of a fleet.
pub(super) struct Agents(Vec<Process>);

impl Agents {
    /// `good` that answer, `dead` and `stalled` ones.
    pub(super) fn start(home: &Path, good: usize, dead: usize, stalled: usize) -> Result<Self> {
        let halves = HALVES.iter().enumerate().map(|(number, half)| {
            // What does not divide is the first half's.
            let share = |count: usize| (count + HALVES.len() - 1 - number) / HALVES.len();
            let mut groups = Vec::new();
            for pool in 0..POOLS {
                let count = (share(good) + pool) / POOLS;
                groups.extend([format!("{half}{pool}"), "idle:60".into(), count.to_string()]);
            }
            for (behaviour, count) in [("dead", dead), ("stalled", stalled)] {
                let count = share(count).to_string();
                groups.extend([format!("{half}{behaviour}"), behaviour.into(), count]);
            }
            Process::start(home, &groups)
        });
        Ok(Self(halves.collect::<Result<_>>()?))
    }

    /// Has a guest behave otherwise, or come. Always the same process has it.
    pub(super) fn set(&mut self, number: usize, name: &str, behaviour: &str) -> Result<()> {
        let half = number % self.0.len();
        let process = self.0.get_mut(half).ok_or("no agents")?;
        process.order(&format!("{name} {behaviour}"))
    }
}

/// A process of agents.
struct Process {
    child: Child,
    orders: Option<ChildStdin>,
    done: BufReader<ChildStdout>,
}

impl Process {
    fn start(home: &Path, groups: &[String]) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut child = super::on_core(super::OTHERS, &program)
            .arg(AGENTS)
            .arg(home)
            .args(groups)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let done = BufReader::new(child.stdout.take().ok_or("no output")?);
        let orders = child.stdin.take();
        let mut agents = Self {
            child,
            orders,
            done,
        };
        agents.wait()?;
        Ok(agents)
    }

    fn order(&mut self, line: &str) -> Result<()> {
        let orders = self.orders.as_mut().ok_or("no input")?;
        writeln!(orders, "{line}")?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let mut line = String::new();
        if self.done.read_line(&mut line)? == 0 {
            return Err("the agents have ended".into());
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}
