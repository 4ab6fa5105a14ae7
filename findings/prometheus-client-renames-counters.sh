#!/bin/sh
# prometheus_client 0.26.0 (PyPI): the parser of Prometheus's text format.
#
# Seen:     text_string_to_metric_families reads the sample `boots 1` as `boots_total`, if the text has
#           `# TYPE boots counter`, and as `boots`, if it has no such line or says gauge. generate_latest then
#           writes boots_total. A counter `boots` beside another one, `boots_total`, is the same name twice.
# Guessed:  a sample has the name in the text: `_total` is OpenMetrics's rule, which has a parser of its own
#           in this library, and counters without it are valid in the text format.
# Matters:  what sits between an exporter and Prometheus (adds a label, merges two pages) renames time series,
#           when the exporter adds a line of metadata. A check that looks for `boots` does not find it.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check prometheus_client==0.26.0
cat >names.py <<'PYTHON'
import importlib.metadata

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse

print("prometheus_client", importlib.metadata.version("prometheus_client"))


class Text:
    def __init__(self, text):
        self.text = text

    def collect(self):
        return parse(self.text)


for text in (
    "boots 1\n",
    "# TYPE boots gauge\nboots 1\n",
    "# TYPE boots counter\nboots 1\n",
    "# TYPE boots counter\nboots 1\n# TYPE boots_total counter\nboots_total 7\n",
):
    registry = CollectorRegistry()
    registry.register(Text(text))
    written = [line for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]
    read = [sample.name for family in parse(text) for sample in family.samples]
    print(text.replace("\n", "; "), "->", read, "->", written)
PYTHON
seen=$(venv/bin/python names.py)
echo "$seen"
[ "$seen" = "prometheus_client 0.26.0
boots 1;  -> ['boots'] -> ['boots 1.0']
# TYPE boots gauge; boots 1;  -> ['boots'] -> ['boots 1.0']
# TYPE boots counter; boots 1;  -> ['boots_total'] -> ['boots_total 1.0']
# TYPE boots counter; boots 1; # TYPE boots_total counter; boots_total 7;  -> ['boots_total', 'boots_total'] -> ['boots_total 1.0', 'boots_total 7.0']" ]
