//! `packer compare --html`: ways to spend the same bytes, as a page.

use super::{STYLE, escape};
use crate::cli::search::{LATENTS, Outcome};
use crate::cli::table::{bytes, percent};
use crate::error::Result;
use crate::search::archive::Additivity;
use crate::search::contest::Way;
use aquatint::raw::whole_file;
use aquatint_evaluation::stats::Estimate;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 50.0;

/// Writes the page of `outcome` to `to`.
///
/// # Errors
/// If it cannot be written.
pub(in crate::cli) fn write(outcome: &Outcome, to: &Path) -> Result<()> {
    Ok(whole_file::write(to, |file| file.write_all(page(outcome).as_bytes()))?)
}

/// The colour of a way.
fn colour(way: Way) -> &'static str {
    match way {
        Way::Search => "#2f7fc1",
        Way::Refined => "#2e9e8f",
        Way::Uniform => "#8a8a8a",
        Way::WeightErrors => "#c0392b",
        Way::BestRandom => "#d4ac0d",
        Way::Predictor => "#7d6bb0",
    }
}

/// A logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// One that holds all positive `values`, from `from` to `to` on the page.
    fn of(values: impl Iterator<Item = f64>, [from, to]: [f64; 2]) -> Self {
        let (low, high) = values.filter(|v| *v > 0.0).fold((f64::INFINITY, 0.0), |(l, h), v| (v.min(l), v.max(h)));
        let (low, high) = if low < high { (low / 1.1, high * 1.1) } else { (0.5, 2.0) };
        Axis { low, high, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Round numbers on it.
    fn ticks(&self) -> Vec<f64> {
        let of = |digits: &[f64]| -> Vec<f64> {
            let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let all = decades.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
            all.filter(|tick| (self.low..=self.high).contains(tick)).collect()
        };
        // Finer ones where the axis is short.
        let finer: [&[f64]; 2] = [&[1.0, 2.0, 5.0], &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0]];
        finer.into_iter().map(of).find(|ticks| ticks.len() > 2).unwrap_or_else(|| of(finer[1]))
    }
}

fn page(outcome: &Outcome) -> String {
    let name = escape(&outcome.model);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title><style>{STYLE}</style></head>\
         <body>\n<h1>{name}: ways to spend the same bytes</h1>\n<p class=\"soft\">Choices {}. {} probes for sensitivities; {} random \
         configurations of each size; up to {} moves; {} configurations for the predictor.</p>\n\
         <h2>Error of final latents</h2>\n<p class=\"soft\">Of the median of {} images that nothing was chosen by, against bytes of \
         layers, with 95 % intervals.</p>\n{}",
        escape(&outcome.choices.join(", ")),
        outcome.probes,
        outcome.effort[0],
        outcome.effort[1],
        outcome.archive,
        outcome.report.conditions.images,
        latents(outcome)
    );
    if let Some(additivity) = &outcome.additivity {
        let Estimate { value, low, high } = additivity.rank_correlation;
        let _ = write!(
            out,
            "<h2>Do errors of layers add up?</h2>\n<p class=\"soft\">Each dot is a random configuration: to the right the error that \
             the sum of sensitivities predicts, upwards the measured one. Rank correlation {value:.4} [{low:.4}, {high:.4}], median \
             ratio {:.3}; the line is equality.</p>\n{}",
            additivity.median_ratio,
            scatter(additivity)
        );
    }
    let _ = write!(out, "<h2>Numbers</h2>\n{}</body></html>\n", numbers(outcome));
    out
}

/// Errors of latents against bytes, a line per way.
fn latents(outcome: &Outcome) -> String {
    let of = |i: usize| outcome.file(i).figures.iter().find(|(name, _)| *name == LATENTS).map(|&(_, e)| e);
    let points: Vec<(Way, f64, Estimate)> = outcome
        .entrants
        .iter()
        .enumerate()
        .filter_map(|(i, entrant)| Some((entrant.way, entrant.bytes as f64, of(i)?)))
        .collect();
    let x = Axis::of(points.iter().map(|point| point.1), [LEFT, WIDTH - 20.0]);
    let y = Axis::of(points.iter().flat_map(|point| [point.2.low, point.2.high]), [HEIGHT - BOTTOM, 10.0]);
    let mut out = frame(&x, &y, &|v| bytes(v as u64), &|v| format!("{v}"));
    let mut key = String::from("<p class=\"key\">");
    for (place, way) in Way::ALL.into_iter().enumerate() {
        let own: Vec<_> = points.iter().filter(|point| point.0 == way).collect();
        if own.is_empty() {
            continue;
        }
        let _ = write!(key, "<i style=\"background:{}\"></i>{}", colour(way), way.name());
        // Beside each other, so that intervals can be told apart.
        let shift = (place as f64 - 2.5) * 5.0;
        let line: Vec<String> =
            own.iter().map(|(_, size, e)| format!("{:.1},{:.1}", x.at(*size) + shift, y.at(e.value))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" opacity=\".5\"/>",
            line.join(" "),
            colour(way)
        );
        for (_, size, e) in own {
            let at = x.at(*size) + shift;
            let _ = writeln!(
                out,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{2}\" stroke-width=\"2\"/>\
                 <circle cx=\"{at:.1}\" cy=\"{3:.1}\" r=\"4\" fill=\"{2}\"><title>{4}: {5:.4} [{6:.4}, {7:.4}]</title></circle>",
                y.at(e.low),
                y.at(e.high),
                colour(way),
                y.at(e.value),
                way.name(),
                e.value,
                e.low,
                e.high
            );
        }
    }
    format!("{key}</p>\n{out}</svg>\n")
}

/// Predicted and measured errors.
fn scatter(additivity: &Additivity) -> String {
    let root = |v: &f64| v.sqrt();
    let all = || additivity.points.iter().flatten().map(root);
    let x = Axis::of(all(), [LEFT, WIDTH - 20.0]);
    let y = Axis::of(all(), [HEIGHT - BOTTOM, 10.0]);
    let mut out = frame(&x, &y, &percent, &percent);
    let _ = writeln!(
        out,
        "<line class=\"near\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        x.from, y.from, x.to, y.to
    );
    for [predicted, measured] in &additivity.points {
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"#2f7fc1\" opacity=\".6\"/>",
            x.at(predicted.sqrt()),
            y.at(measured.sqrt())
        );
    }
    out + "</svg>\n"
}

/// An open picture with axes.
fn frame(x: &Axis, y: &Axis, say_x: &dyn Fn(f64) -> String, say_y: &dyn Fn(f64) -> String) -> String {
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n");
    for tick in y.ticks() {
        let at = y.at(tick);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            x.to,
            LEFT - 8.0,
            at + 4.0,
            say_y(tick)
        );
    }
    for tick in x.ticks() {
        let at = x.at(tick);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/><text x=\"{at:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\">{}</text>",
            y.to,
            y.from,
            HEIGHT - BOTTOM + 20.0,
            say_x(tick)
        );
    }
    out
}

fn numbers(outcome: &Outcome) -> String {
    let mut out = String::from(
        "<table><tr><th>configuration</th><th>layers</th><th>bits</th><th>predicted</th><th>measured</th><th>latents</th>\
         <th>less search</th></tr>\n",
    );
    for (i, entrant) in outcome.entrants.iter().enumerate() {
        let file = outcome.file(i);
        let latents = file.figures.iter().find(|(name, _)| *name == LATENTS);
        let difference = outcome.beside_search(i, LATENTS).map(|d| d.estimate);
        let cells = [
            escape(&file.name),
            bytes(entrant.bytes),
            format!("{:.2}", entrant.average_bits),
            percent(entrant.predicted.sqrt()),
            percent(entrant.measured.sqrt()),
            latents.map_or("-".into(), |(_, e)| format!("{:.4} [{:.4}, {:.4}]", e.value, e.low, e.high)),
            difference.map_or("-".into(), |e| format!("{:+.4} [{:+.4}, {:+.4}]", e.value, e.low, e.high)),
        ];
        let _ = writeln!(out, "<tr><td>{}</td></tr>", cells.join("</td><td>"));
    }
    out + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_their_values() {
        let axis = Axis::of([0.02, 0.3].into_iter(), [100.0, 10.0]);
        assert!(axis.at(0.02) < 100.0 && axis.at(0.3) > 10.0 && axis.at(0.02) > axis.at(0.3));
        assert_eq!(axis.ticks(), [0.02, 0.05, 0.1, 0.2]);
        let short = Axis::of([8.1e5, 1.33e6].into_iter(), [10.0, 100.0]);
        assert_eq!(short.ticks(), [8e5, 1e6, 1.2e6]);
        assert!(Axis::of([].into_iter(), [0.0, 1.0]).at(1.0).is_finite());
    }
}
