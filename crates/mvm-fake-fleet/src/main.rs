//! `mvm-fake-fleet HOME NAME BEHAVIOUR COUNT [NAME BEHAVIOUR COUNT…]`: agents of that behaviour, named
//! `NAME-1` and so on, until standard input ends. Says `ready` once all listen. Each line of standard
//! input is `NAME BEHAVIOUR`. `HOSTILE=1` makes all text of theirs hostile.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "for tests alone"
)]

use mvm_fake_fleet::{FakeFleet, Guests};
use std::io::BufRead as _;
use std::path::Path;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let guests = Guests {
        pool: None,
        is_hostile: std::env::var_os("HOSTILE").is_some(),
    };
    let mut fleet = FakeFleet::start(Path::new(&args[0]), guests);
    for group in args[1..].chunks(3) {
        for number in 1..=group[2].parse::<usize>().unwrap() {
            fleet.set(&format!("{}-{number}", group[0]), group[1].parse().unwrap());
        }
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        if let Some((name, behaviour)) = line.split_once(' ') {
            fleet.set(name, behaviour.parse().unwrap());
            println!("{line}");
        }
    }
}
