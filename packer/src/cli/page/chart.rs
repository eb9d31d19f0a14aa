//! Bars of layers as SVG.

use std::fmt::Write;

/// A layer in a chart.
pub(super) struct Bar {
    /// What is shown when it is pointed at; escaped.
    pub title: String,
    /// Chooses its colour.
    pub bits: u8,
    /// How wide it is, in any unit.
    pub width: f64,
    /// How high it is.
    pub value: f64,
    /// Another value to compare it with.
    pub beside: Option<f64>,
}

const WIDTH: f64 = 1120.0;
const STRIP: f64 = 48.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
/// Decades that a chart shows at most.
const DECADES: i32 = 6;

/// The colour of a width: warm where few bits are.
pub(super) fn colour(bits: u8) -> &'static str {
    match bits {
        0..=2 => "#c0392b",
        3 => "#e67e22",
        4 => "#d4ac0d",
        5 => "#58a55c",
        6 => "#2e9e8f",
        7..=8 => "#2f7fc1",
        9..=16 => "#7d6bb0",
        _ => "#8a8a8a",
    }
}

/// Layers side by side, each as wide as it is large.
pub(super) fn strip(bars: &[Bar]) -> String {
    let total: f64 = bars.iter().map(|b| b.width).sum::<f64>().max(1.0);
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {STRIP}\" role=\"img\">\n");
    let mut x = 0.0;
    for bar in bars {
        let width = bar.width / total * WIDTH;
        layer(&mut out, bar, [x, 0.0, (width - 0.3).max(width * 0.5), STRIP]);
        x += width;
    }
    out + "</svg>\n"
}

/// Layers as bars of equal width, their values on a logarithmic scale.
pub(super) fn chart(bars: &[Bar]) -> String {
    let values = || bars.iter().flat_map(|b| [Some(b.value), b.beside]).flatten().filter(|v| *v > 0.0);
    let decade = |v: f64| v.log10();
    let top = values().map(decade).fold(f64::NEG_INFINITY, f64::max).ceil() as i32;
    let bottom = (values().map(decade).fold(f64::INFINITY, f64::min).floor() as i32).max(top - DECADES).min(top - 1);
    let y = |v: f64| {
        let share = (decade(v) - f64::from(bottom)) / f64::from(top - bottom);
        HEIGHT * (1.0 - if v > 0.0 { share.clamp(0.0, 1.0) } else { 0.0 })
    };
    let mut out = format!("<svg viewBox=\"0 -10 {WIDTH} {}\" role=\"img\">\n", HEIGHT + 20.0);
    for power in bottom..=top {
        let (at, percent) = (y(10f64.powi(power)), 10f64.powi(power + 2));
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{percent} %</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    let each = (WIDTH - LEFT) / bars.len().max(1) as f64;
    for (i, bar) in bars.iter().enumerate() {
        let (x, width) = (LEFT + i as f64 * each, (each * 0.8).min(each - 0.2));
        layer(&mut out, bar, [x, y(bar.value), width, HEIGHT - y(bar.value)]);
        if let Some(beside) = bar.beside {
            let at = y(beside);
            let _ = writeln!(
                out,
                "<line class=\"near\" x1=\"{x:.2}\" x2=\"{:.2}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
                x + width
            );
        }
    }
    out + "</svg>\n"
}

fn layer(out: &mut String, bar: &Bar, [x, y, width, height]: [f64; 4]) {
    let _ = writeln!(
        out,
        "<rect class=\"layer\" x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height:.1}\" fill=\"{}\"><title>{}</title></rect>",
        colour(bar.bits),
        bar.title
    );
}
