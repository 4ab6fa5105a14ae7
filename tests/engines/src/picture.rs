//! The first story as a picture, drawn of what Prometheus has recorded and of what was seen to run.

use crate::cluster::Cluster;
use crate::conf::{HOSTS, POOL};
use crate::seen::{Running, seconds};
use plotters::prelude::*;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

/// In pixels.
const SIZE: (u32, u32) = (900, 560);
const UPPER: u32 = 300;

const FONT: (&str, u32) = ("sans-serif", 13);

/// Of what runs on host a and on host b, of what is wanted, and of the time in which b is not reached.
const ON_HOST: [RGBColor; 2] = [RGBColor(31, 119, 180), RGBColor(255, 127, 14)];
const WANTED: RGBColor = RGBColor(60, 60, 60);
const CUT_OFF: RGBColor = RGBColor(235, 235, 235);

/// A VM's process on a host (its colour), from when until when, in seconds of the story.
type Lane = (RGBColor, f64, f64);

/// Draws it into that file, as SVG.
pub(crate) fn draw(cluster: &Cluster, file: &Path) -> Result<(), String> {
    let story = Story::of(cluster)?;
    story
        .draw(file)
        .map_err(|error| format!("cannot draw {}: {error}", file.display()))
}

/// What is drawn: all times in seconds since the first VM ran.
struct Story {
    end: f64,
    wanted: Vec<(f64, f64)>,
    running: Vec<(f64, f64)>,
    lanes: BTreeMap<String, Vec<Lane>>,
    unreachable: Vec<(f64, f64)>,
}

impl Story {
    fn of(cluster: &Cluster) -> Result<Self, String> {
        let history = cluster.watch.history();
        let (begun, now) = match history.first() {
            Some((begun, _)) => (*begun, seconds()),
            None => return Err("nothing was seen to run".into()),
        };
        let sum = format!("pool:mvm_fleet_wanted:sum{{pool=\"{POOL}\"}}");
        let wanted = cluster.numbers(&sum, begun, now);
        if wanted.is_empty() {
            return Err("Prometheus has not recorded what was wanted".into());
        }
        let at = |(time, value): (f64, f64)| (time - begun, value);
        let running = history.iter().map(|(time, running)| {
            let count = u32::try_from(running.len()).unwrap_or(u32::MAX);
            (*time, f64::from(count))
        });
        let unreachable = cluster.unreachable().into_iter();
        Ok(Self {
            end: now - begun,
            wanted: steps(wanted.into_iter().map(at), now - begun),
            running: steps(running.map(at), now - begun),
            lanes: lanes(&history, begun, now),
            unreachable: unreachable
                .map(|(from, until)| (from - begun, until.unwrap_or(now) - begun))
                .collect(),
        })
    }

    fn draw(&self, file: &Path) -> Result<(), Box<dyn Error>> {
        let area = SVGBackend::new(file, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (upper, lower) = area.split_vertically(UPPER);
        self.draw_numbers(&upper)?;
        self.draw_lanes(&lower)?;
        area.present()?;
        Ok(())
    }

    fn draw_numbers(&self, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
        let all = self.wanted.iter().chain(&self.running);
        let most = all.map(|(_, count)| *count).fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .caption("VMs of the pool on both hosts", ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(10)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..self.end, 0.0..most + 1.0)?;
        chart.draw_series(self.shades(most + 1.0))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .y_label_formatter(&|count| format!("{count:.0}"))
            .x_labels(0)
            .label_style(FONT)
            .draw()?;
        for (numbers, style, text) in [
            (
                &self.running,
                ON_HOST[0].stroke_width(2),
                "run, by looking at both hosts",
            ),
            (
                &self.wanted,
                WANTED.stroke_width(2),
                "wanted, by the recording rule",
            ),
        ] {
            chart
                .draw_series(LineSeries::new(numbers.iter().copied(), style))?
                .label(text)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .background_style(WHITE)
            .border_style(CUT_OFF)
            .label_font(FONT)
            .draw()?;
        Ok(())
    }

    fn draw_lanes(&self, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
        let names: Vec<&String> = self.lanes.keys().collect();
        let count = u32::try_from(names.len()).map(f64::from)?;
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..self.end, 0.0..count)?;
        chart.draw_series(self.shades(count))?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc(
                "seconds; grey: host b is not reached by anybody; blue: on host a, orange: on b",
            )
            .x_label_formatter(&|time| format!("{time:.0}"))
            .y_labels(0)
            .label_style(FONT)
            .draw()?;
        for (row, lanes) in (0_u32..).map(f64::from).zip(self.lanes.values()) {
            chart.draw_series(lanes.iter().map(|(color, from, to)| {
                let bar = [(*from, row + 0.2), (*to, row + 0.8)];
                Rectangle::new(bar, color.filled())
            }))?;
        }
        for (row, name) in (0_u32..).map(f64::from).zip(names) {
            let (_, y) = chart.backend_coord(&(0.0, row + 0.7));
            let (left, top) = area.get_base_pixel();
            area.draw(&Text::new(name.clone(), (left + 12, y - top), FONT))?;
        }
        Ok(())
    }

    fn shades(&self, height: f64) -> impl Iterator<Item = Rectangle<(f64, f64)>> {
        let shade = move |(from, to): &(f64, f64)| {
            Rectangle::new([(*from, 0.0), (*to, height)], CUT_OFF.filled())
        };
        self.unreachable.iter().map(shade)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// A value holds until the next one.
fn steps(values: impl Iterator<Item = (f64, f64)>, end: f64) -> Vec<(f64, f64)> {
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for (time, value) in values {
        if let Some((_, last)) = steps.last().copied() {
            steps.push((time, last));
        }
        steps.push((time, value));
    }
    if let Some((_, last)) = steps.last().copied() {
        steps.push((end, last));
    }
    steps
}

/// Each VM's processes. One that ends and begins on the same host is two.
fn lanes(history: &[(f64, Running)], begun: f64, now: f64) -> BTreeMap<String, Vec<Lane>> {
    let mut lanes: BTreeMap<String, Vec<Lane>> = BTreeMap::new();
    let ends = history.iter().skip(1).map(|(time, _)| *time).chain([now]);
    let mut before = &Running::new();
    for ((from, running), to) in history.iter().zip(ends) {
        for (key, pid) in running {
            let (host, vm) = key;
            let color = HOSTS
                .iter()
                .zip(ON_HOST)
                .find(|(known, _)| known.name == host);
            let Some((_, color)) = color else {
                continue;
            };
            let lane = lanes.entry(vm.clone()).or_default();
            let last = lane.iter_mut().rev().find(|lane| lane.0 == color);
            match last {
                Some(last) if before.get(key) == Some(pid) => last.2 = to - begun,
                _ => lane.push((color, from - begun, to - begun)),
            }
        }
        before = running;
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_holds_until_the_next() {
        let values = [(0.0, 2.0), (1.0, 2.0), (3.0, 4.0)];
        let drawn = [
            (0.0, 2.0),
            (1.0, 2.0),
            (1.0, 2.0),
            (3.0, 2.0),
            (3.0, 4.0),
            (9.0, 4.0),
        ];
        assert_eq!(steps(values.into_iter(), 9.0), drawn);
    }

    #[test]
    fn a_lane_is_one_process_on_one_host() {
        let run = |host: &str, vm: &str, pid| ((host.to_owned(), vm.to_owned()), pid);
        let history = [
            (10.0, Running::from([run("a", "web-1", 1)])),
            (
                11.0,
                Running::from([run("a", "web-1", 1), run("b", "web-2", 2)]),
            ),
            (12.0, Running::from([run("b", "web-2", 2)])),
            (
                13.0,
                Running::from([run("b", "web-1", 3), run("b", "web-2", 4)]),
            ),
        ];
        let lanes = lanes(&history, 10.0, 15.0);
        let [a, b] = ON_HOST;
        assert_eq!(lanes["web-1"], [(a, 0.0, 2.0), (b, 3.0, 5.0)]);
        assert_eq!(lanes["web-2"], [(b, 1.0, 3.0), (b, 3.0, 5.0)]);
    }
}
