//! Curves of losses as SVG, a small chart per unit.

use super::escape;
use crate::reconstruct::Curve;
use std::fmt::Write;

const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 120.0;
const GAP: f64 = 56.0;
const COLUMNS: usize = 4;

/// The losses of units over their iterations, each beside the loss that it began and ended with (grey and blue): a
/// logarithmic scale of its own for every unit, as wide as its losses are.
pub(in crate::cli) fn curves(units: &[(&str, &Curve)]) -> String {
    let rows = units.len().div_ceil(COLUMNS);
    let (width, height) = (COLUMNS as f64 * (WIDTH + GAP) + GAP, rows as f64 * (HEIGHT + GAP) + GAP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (i, (name, curve)) in units.iter().enumerate() {
        let at = [i % COLUMNS, i / COLUMNS].map(|n| n as f64);
        chart(&mut out, name, curve, [GAP + at[0] * (WIDTH + GAP), GAP + at[1] * (HEIGHT + GAP)]);
    }
    out + "</svg>\n"
}

fn chart(out: &mut String, name: &str, curve: &Curve, [left, top]: [f64; 2]) {
    let all = || curve.points.iter().copied().chain([curve.begin, curve.end]).filter(|v| *v > 0.0);
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    let span = (high / low).ln();
    let y = |loss: f64| match span > 0.0 {
        true => top + HEIGHT * (1.0 - (loss.max(low) / low).ln() / span),
        false => top + HEIGHT / 2.0,
    };
    let last = curve.points.len().saturating_sub(1).max(1) as f64;
    let points: Vec<String> = curve
        .points
        .iter()
        .enumerate()
        .map(|(i, &loss)| format!("{:.1},{:.1}", left + WIDTH * i as f64 / last, y(loss)))
        .collect();
    let _ = writeln!(
        out,
        "<g><text x=\"{left}\" y=\"{:.1}\">{}</text>\
         <rect x=\"{left}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#f6f6f6\"/>\
         <polyline points=\"{}\" fill=\"none\" stroke=\"#e67e22\" stroke-width=\"1.5\"/>",
        top - 6.0,
        escape(name),
        points.join(" ")
    );
    for (loss, colour) in [(curve.begin, "#8a8a8a"), (curve.end, "#2f7fc1")] {
        let at = y(loss);
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{colour}\">{loss:.2e}</text>",
            left + WIDTH,
            left - 3.0,
            at + 4.0
        );
    }
    let _ = writeln!(out, "</g>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_has_a_curve_inside_its_frame() {
        let curve = Curve { begin: 2.0, end: 0.5, points: vec![4.0, 1.0, 0.25] };
        let flat = Curve { begin: 0.0, end: 0.0, points: vec![0.0] };
        let svg = curves(&[("a<b", &curve), ("flat", &flat)]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a&lt;b") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        // The greatest loss at the top, the least at the bottom.
        assert!(svg.contains(&format!("{GAP:.1},{GAP:.1} ")), "{svg}");
        assert!(svg.contains(&format!("{:.1},{:.1}\"", GAP + WIDTH, GAP + HEIGHT)), "{svg}");
    }
}
