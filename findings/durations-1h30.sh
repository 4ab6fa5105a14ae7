#!/bin/sh
# systemd 252 (Debian 12's 252.39-1~deb12u2), the crates humantime 2.4.0, fundu-systemd 0.4.1 and duration-str
# 0.21.0, and the npm packages parse-duration 2.1.9 and timestring 7.0.0.
#
# Seen:     1h30 is 1 h 30 s to systemd, fundu-systemd and duration-str, 1 h 30 min to parse-duration, 1 h to
#           timestring (which drops the 30), and an error to humantime alone. 1M is a month to systemd,
#           fundu-systemd and humantime, of 30.44 days with the last and 30.4375 with the others, and a
#           minute to the rest.
# Guessed:  either 1 h 30 min, as people write it, or an error.
# Matters:  the same setting passed from one program to another is a time limit of another length, without a
#           word: 60 min, 60.5 min or 90 min.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install systemd=252.39-1~deb12u2 |
    awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
npm install --silent --no-audit --no-fund --prefix . parse-duration@2.1.9 timestring@7.0.0 >/dev/null
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "durations"
version = "0.0.0"
edition = "2021"
[dependencies]
duration-str = "=0.21.0"
fundu-systemd = "=0.4.1"
humantime = "=2.4.0"
[workspace]
TOML
cat >src/main.rs <<'RUST'
fn print<T: TryInto<std::time::Duration>, E>(name: &str, parsed: Result<T, E>) {
    match parsed.ok().and_then(|span| span.try_into().ok()) {
        Some(span) => println!("{name} {}", span.as_secs()),
        None => println!("{name} error"),
    }
}
fn main() {
    let text = std::env::args().nth(1).unwrap();
    print("fundu-systemd", fundu_systemd::parse(&text, None, None));
    print("duration-str", duration_str::parse(&text));
    print("humantime", humantime::parse_duration(&text));
}
RUST
CARGO_TARGET_DIR=$dir/target cargo build --quiet
cat >parse.mjs <<'END'
import parseDuration from "parse-duration";
import timestring from "timestring";
const text = process.argv[2];
console.log("parse-duration", parseDuration(text, "s") ?? "error");
console.log("timestring", timestring(text));
END
all() {
    LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu:$dir/root/lib/systemd:$dir/root/usr/lib/x86_64-linux-gnu/systemd \
        root/usr/bin/systemd-analyze timespan "$1" | sed -n 's/^ *[^ ]*s: *\([0-9]*\)000000$/systemd \1/p'
    target/debug/durations "$1"
    node parse.mjs "$1"
}
hours=$(all 1h30)
months=$(all 1M)
echo "1h30, in seconds:"
echo "$hours"
echo "1M, in seconds:"
echo "$months"
[ "$hours" = "systemd 3630
fundu-systemd 3630
duration-str 3630
humantime error
parse-duration 5400
timestring 3600" ]
[ "$months" = "systemd 2629800
fundu-systemd 2629800
duration-str 60
humantime 2630016
parse-duration 60
timestring 60" ]
