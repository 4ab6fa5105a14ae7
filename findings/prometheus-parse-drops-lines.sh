#!/bin/sh
# prometheus-parse 0.2.5 (crates.io), which reads what Prometheus's text format is written in.
#
# Seen:     a label's value with a comma is cut at the comma, and one with "=" is lost with its label: two
#           series become one. A sample with "}" in a label's value, with empty braces, or with a colon in
#           its name is left out. Backslashes stay as they are written. `parse` is Ok each time. The client
#           library of Python (prometheus_client 0.26.0) reads all of them.
# Guessed:  an error for what a parser does not know, or else the sample as it was written.
# Matters:  `mount="a,b"`, `args="--x=1"` and recording rules (`job:up:sum`) are what exporters and
#           federation write. Who sums or compares what was parsed has fewer series, and no error to look for.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "samples"
version = "0.0.0"
edition = "2021"
[dependencies]
prometheus-parse = "=0.2.5"
[workspace]
TOML
cat >src/main.rs <<'RUST'
fn main() {
    let lines = std::io::stdin().lines();
    let scrape = prometheus_parse::Scrape::parse(lines).expect("it is Ok");
    for sample in scrape.samples {
        let mut labels: Vec<_> = sample.labels.iter().map(|(name, value)| format!("{name}=[{value}]")).collect();
        labels.sort();
        println!("{} {} {:?}", sample.metric, labels.join(" "), sample.value);
    }
}
RUST
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check prometheus_client==0.26.0
cat >samples.py <<'PYTHON'
import sys
from prometheus_client.parser import text_string_to_metric_families as parse

for family in parse(sys.stdin.read()):
    for sample in family.samples:
        print(sample.name, " ".join(f"{name}=[{value}]" for name, value in sorted(sample.labels.items())), sample.value)
PYTHON
cat >samples.txt <<'TEXT'
plain{a="x"} 1
comma{a="x,y"} 2
equals{a="x=y",b="z"} 3
brace{a="x}y"} 4
braces{} 5
job:up:sum{a="x"} 6
escaped{a="x\\y\"z"} 7
TEXT
rust=$(CARGO_TARGET_DIR=$dir/target cargo run --quiet <samples.txt)
python=$(venv/bin/python samples.py <samples.txt)
printf 'prometheus-parse:\n%s\nprometheus_client:\n%s\n' "$rust" "$python"
[ "$rust" = 'plain a=[x] Untyped(1.0)
comma a=[x] Untyped(2.0)
equals b=[z] Untyped(3.0)
escaped a=[x\\y\"z] Untyped(7.0)' ]
[ "$python" = 'plain a=[x] 1
comma a=[x,y] 2
equals a=[x=y] b=[z] 3
brace a=[x}y] 4
braces  5
job:up:sum a=[x] 6
escaped a=[x\y"z] 7' ]
