//! Heat maps as SVG: rows of cells whose colours are values on a logarithmic scale.

use super::escape;
use std::fmt::Write;

const WIDTH: f64 = 1120.0;
const LABELS: f64 = 316.0;
const ROW: f64 = 15.0;
const HEAD: f64 = 92.0;
const GAP: f64 = 14.0;
/// Widest and narrowest cell.
const CELL: [f64; 2] = [44.0, 3.0];
/// Decades below the greatest value that have colours of their own.
const DECADES: f64 = 4.0;
/// Most characters of a label.
const LABEL: usize = 46;
/// From the least value to the greatest: cold to warm.
const COLOURS: [[u8; 3]; 5] = [[44, 62, 112], [46, 158, 143], [212, 172, 13], [230, 126, 34], [192, 57, 43]];

/// Columns side by side under one heading.
pub(super) struct Block {
    /// What stands above; not escaped.
    pub heading: String,
    /// What stands above each column.
    pub columns: Vec<String>,
}

/// A row: its label, and a cell for each column of each block: value and what is shown when it is pointed at.
pub(super) struct Row {
    /// Not escaped.
    pub label: String,
    /// None where nothing is known.
    pub cells: Vec<Option<(f64, String)>>,
}

/// The scale of the colours: values at its ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// That of all values of `rows` that are above zero.
    pub fn of(rows: &[Row]) -> Self {
        let values = || rows.iter().flat_map(|row| &row.cells).flatten().map(|(v, _)| *v).filter(|v| *v > 0.0);
        let high = values().fold(0.0, f64::max);
        let low = values().fold(f64::INFINITY, f64::min).max(high * 10f64.powf(-DECADES));
        if high > 0.0 { Scale { low, high } } else { Scale { low: 1.0, high: 1.0 } }
    }

    /// Where a value is on it, 0 to 1.
    fn share(self, value: f64) -> f64 {
        let span = (self.high / self.low).ln();
        if span > 0.0 { ((value / self.low).ln() / span).clamp(0.0, 1.0) } else { 1.0 }
    }

    /// The colour of a value; none of zero.
    pub fn colour(self, value: f64) -> String {
        if value <= 0.0 {
            return "none".into();
        }
        let at = self.share(value) * (COLOURS.len() - 1) as f64;
        let first = (at as usize).min(COLOURS.len() - 2);
        let part = at - first as f64;
        let mix =
            |c: usize| (f64::from(COLOURS[first][c]) * (1.0 - part) + f64::from(COLOURS[first + 1][c]) * part).round();
        format!("#{:02x}{:02x}{:02x}", mix(0) as u8, mix(1) as u8, mix(2) as u8)
    }

    /// What the colours mean, as a strip with percentages.
    pub fn key(self) -> String {
        let (steps, wide, high) = (48, 420.0, 14.0);
        let mut out = format!("<svg viewBox=\"0 0 {WIDTH} 34\" role=\"img\">\n");
        let at = |share: f64| self.low * (self.high / self.low).powf(share);
        for step in 0..steps {
            let x = LABELS + wide * f64::from(step) / f64::from(steps);
            let colour = self.colour(at((f64::from(step) + 0.5) / f64::from(steps)));
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" width=\"{:.1}\" height=\"{high}\" fill=\"{colour}\"/>",
                wide / f64::from(steps) + 0.3
            );
        }
        for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let (x, text) = (LABELS + wide * share, super::percent(at(share)));
            let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"30\" text-anchor=\"middle\">{text}</text>");
        }
        out + "</svg>\n"
    }
}

/// The heat map of `rows` under the headings of `blocks`.
pub(super) fn heat(blocks: &[Block], rows: &[Row], scale: Scale) -> String {
    let columns: usize = blocks.iter().map(|block| block.columns.len()).sum();
    let room = WIDTH - LABELS - GAP * blocks.len() as f64;
    let cell = (room / columns.max(1) as f64).clamp(CELL[1], CELL[0]);
    let places = places(blocks, cell);
    let height = HEAD + ROW * rows.len() as f64;
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">\n");
    headings(&mut out, blocks, &places, cell);
    for (i, row) in rows.iter().enumerate() {
        let y = HEAD + ROW * i as f64;
        let _ = writeln!(
            out,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LABELS - 8.0,
            y + 11.0,
            escape(&short(&row.label))
        );
        for (x, cell_of) in places.iter().flatten().zip(&row.cells) {
            let Some((value, title)) = cell_of else { continue };
            let _ = writeln!(
                out,
                "<rect class=\"cell\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{}</title></rect>",
                cell - 0.6,
                ROW - 0.8,
                scale.colour(*value),
                escape(title)
            );
        }
    }
    out + "</svg>\n"
}

/// Where the columns of each block begin.
fn places(blocks: &[Block], cell: f64) -> Vec<Vec<f64>> {
    let mut x = LABELS;
    let mut places = Vec::new();
    for block in blocks {
        places.push((0..block.columns.len()).map(|column| x + cell * column as f64).collect());
        x += cell * block.columns.len() as f64 + GAP;
    }
    places
}

fn headings(out: &mut String, blocks: &[Block], places: &[Vec<f64>], cell: f64) {
    for (block, places) in blocks.iter().zip(places) {
        let Some(&left) = places.first() else { continue };
        let _ = writeln!(out, "<text x=\"{left:.1}\" y=\"12\">{}</text>", escape(&block.heading));
        // Upright letters need more room than narrow cells have: every so many columns.
        let every = (11.0 / cell).ceil().max(1.0) as usize;
        for (x, column) in places.iter().zip(&block.columns).step_by(every) {
            let (x, y) = (x + cell / 2.0 + 4.0, HEAD - 5.0);
            let _ = writeln!(
                out,
                "<text class=\"label\" x=\"{x:.1}\" y=\"{y}\" transform=\"rotate(-90 {x:.1} {y})\">{}</text>",
                escape(&short_to(column, 12))
            );
        }
    }
}

/// A label with its end, which tells more than its beginning.
pub(super) fn short(label: &str) -> String {
    let count = label.chars().count();
    if count <= LABEL {
        label.to_owned()
    } else {
        format!("…{}", label.chars().skip(count + 1 - LABEL).collect::<String>())
    }
}

/// The beginning of a text.
fn short_to(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_owned() } else { text.chars().take(most - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[Option<f64>]) -> Row {
        let cells = values.iter().map(|v| v.map(|v| (v, "a < b".to_owned()))).collect();
        Row { label: "net.<layer>".into(), cells }
    }

    #[test]
    fn colours_go_from_cold_to_warm_by_decades() {
        let scale = Scale::of(&[row(&[Some(0.0), None, Some(1e-3), Some(0.1)])]);
        assert_eq!(scale, Scale { low: 1e-3, high: 0.1 });
        assert_eq!([1e-3, 0.1, 1.0, 1e-9].map(|v| scale.colour(v)), ["#2c3e70", "#c0392b", "#c0392b", "#2c3e70"]);
        assert_eq!((scale.colour(1e-2), scale.colour(0.0)), ("#d4ac0d".into(), "none".into()));
        // What is far below the greatest value shares the coldest colour; without values there is a scale, too.
        assert_eq!(Scale::of(&[row(&[Some(1e-9), Some(1.0)])]), Scale { low: 1e-4, high: 1.0 });
        assert_eq!(Scale::of(&[]).colour(1.0), "#c0392b");
        assert!(!Scale::of(&[]).key().contains("NaN"));
    }

    #[test]
    fn every_value_has_a_cell() {
        let rows = [row(&[Some(0.1), None, Some(0.2)]), row(&[Some(0.3), Some(0.4), Some(0.0)])];
        let block = |heading: &str, columns: &[&str]| Block {
            heading: heading.into(),
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
        };
        let svg = heat(&[block("mean", &["w4a8"]), block("over time", &["1", "2"])], &rows, Scale::of(&rows));
        assert_eq!((svg.matches("<rect").count(), svg.matches("<title>a &lt; b</title>").count()), (5, 5));
        assert_eq!(svg.matches("net.&lt;layer&gt;").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(short(&"abc".repeat(30)).chars().count(), LABEL);
    }
}
