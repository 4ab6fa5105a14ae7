#!/bin/sh
# parse-prometheus-text-format 1.1.1 (npm).
#
# Seen:     all histograms of one name become one: its buckets have no labels but `le`, and the numbers of the
#           last series in the text. So with summaries. Where the series have labels, `sum` and `count` are
#           missing altogether. Counters and gauges keep their labels, series by series.
# Guessed:  an entry for each set of labels, as for counters.
# Matters:  a histogram without labels is the rare one. The latencies of all VMs of a host are those of the
#           VM that comes last, and look well-formed.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm install --silent --no-audit --no-fund --prefix . parse-prometheus-text-format@1.1.1 >/dev/null
cat >parse.mjs <<'END'
import parse from "parse-prometheus-text-format";
import { readFileSync } from "node:fs";
for (const { name, metrics } of parse(readFileSync(0, "utf8"))) console.log(name, JSON.stringify(metrics));
END
cat >samples.txt <<'TEXT'
# TYPE boots counter
boots{vm="a"} 1
boots{vm="b"} 10
# TYPE seconds histogram
seconds_bucket{vm="a",le="1"} 1
seconds_bucket{vm="a",le="+Inf"} 2
seconds_sum{vm="a"} 3
seconds_count{vm="a"} 2
seconds_bucket{vm="b",le="1"} 10
seconds_bucket{vm="b",le="+Inf"} 20
seconds_sum{vm="b"} 30
seconds_count{vm="b"} 20
# TYPE age summary
age{vm="a",quantile="0.5"} 1
age_sum{vm="a"} 2
age_count{vm="a"} 3
age{vm="b",quantile="0.5"} 10
age_sum{vm="b"} 20
age_count{vm="b"} 30
# TYPE alone histogram
alone_bucket{le="1"} 4
alone_bucket{le="+Inf"} 5
alone_sum 6
alone_count 5
TEXT
seen=$(node parse.mjs <samples.txt)
echo "$seen"
[ "$seen" = 'boots [{"value":"1","labels":{"vm":"a"}},{"value":"10","labels":{"vm":"b"}}]
seconds [{"buckets":{"1":"10","+Inf":"20"}}]
age [{"quantiles":{"0.5":"10"}}]
alone [{"buckets":{"1":"4","+Inf":"5"},"count":"5","sum":"6"}]' ]
