//! Plain text tables and numbers for people.

use aquatint::error::one_line;
use std::fmt;

/// A table of `N` columns with a heading; the first column is set left, the others right.
pub struct Table<const N: usize>(Columns);

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub fn new(heading: [&str; N]) -> Self {
        Table(Columns::new(heading.map(str::to_owned)))
    }

    /// Adds a row. Cells may be names of a file; whatever characters they have, the row stays one line.
    pub fn row(&mut self, cells: [String; N]) {
        self.0.row(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The same, of as many columns as the heading has.
pub struct Columns {
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// A table without rows.
    pub fn new(heading: impl IntoIterator<Item = String>) -> Self {
        Columns { rows: vec![heading.into_iter().collect()] }
    }

    /// Adds a row, of as many cells as the heading has.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| one_line(&cell)).collect();
        assert_eq!(cells.len(), self.rows[0].len(), "cells of a row");
        self.rows.push(cells);
    }
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (i, row) in self.rows.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let mut line = format!("{:<1$}", row[0], widths[0]);
            for (cell, &width) in row.iter().zip(&widths).skip(1) {
                line += &format!("  {cell:>width$}");
            }
            write!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A share in percent, with three significant digits: `0.0123 %`.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent == 0.0 {
        return "0 %".into();
    }
    let digits = (2 - percent.abs().log10().floor() as i32).clamp(0, 9) as usize;
    format!("{percent:.digits$} %")
}

/// A number of bytes in the largest unit that leaves at least 1: `1.43 GB`. Units are powers of 1000.
pub fn bytes(n: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["layer", "bits"]);
        table.row(["a".into(), "4".into()]);
        table.row(["longer".into(), "16".into()]);
        assert_eq!(table.to_string(), "layer   bits\na          4\nlonger    16");
        table.row(["a\nb".into(), "\r8".into()]);
        assert_eq!(table.to_string().lines().count(), 4);
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (n, text) in [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (999_600, "1.00 MB")] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(1_433_972_736), "1.43 GB");
        for (share, text) in [(0.0, "0 %"), (0.0973, "9.73 %"), (0.000123, "0.0123 %"), (0.5, "50.0 %"), (1.5, "150 %")]
        {
            assert_eq!(percent(share), text);
        }
    }
}
