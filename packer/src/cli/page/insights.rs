//! `packer insights --html`: kinds of layers and depths as a page.

use super::{STYLE, escape};
use crate::cli::search::wants;
use crate::cli::table::percent;
use crate::error::Result;
use crate::search::insights::{Group, Insights};
use aquatint::raw::whole_file;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

const WIDTH: f64 = 1120.0;
const LABEL: f64 = 330.0;
const ROW: f64 = 22.0;

/// Writes the page of what `origin` says to `to`.
///
/// # Errors
/// If it cannot be written.
pub(in crate::cli) fn write(origin: &str, insights: &Insights, to: &Path) -> Result<()> {
    Ok(whole_file::write(to, |file| file.write_all(page(origin, insights).as_bytes()))?)
}

fn page(origin: &str, insights: &Insights) -> String {
    let name = escape(origin);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title><style>{STYLE}</style></head>\
         <body>\n<h1>{name}: which layers matter</h1>\n"
    );
    for (title, groups) in [("Kinds of layers", &insights.kinds), ("Depths", &insights.depths)] {
        let _ = write!(
            out,
            "<h2>{title}</h2>\n<p class=\"soft\">Blue: the share of the squared error of the output, the mean over choices; the line in \
             each row goes from the least to the most that a choice has. Grey: the share of weights.</p>\n{}",
            bars(groups)
        );
        let _ = write!(out, "{}", table(insights, groups));
    }
    out + "</body></html>\n"
}

/// Shares of error over shares of weights, group by group.
fn bars(groups: &[Group]) -> String {
    let widest = groups.iter().flat_map(|g| g.shares.iter().copied().chain([g.weights])).fold(1e-9, f64::max);
    let width = |share: f64| (WIDTH - LABEL - 60.0) * share / widest;
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">\n", ROW * groups.len() as f64 + 4.0);
    for (i, group) in groups.iter().enumerate() {
        let y = ROW * i as f64;
        let [mean, least, most] = group.spread();
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"layer\" x=\"{LABEL}\" y=\"{:.1}\" width=\"{:.1}\" height=\"9\" fill=\"#2f7fc1\"><title>{}</title></rect>\
             <rect class=\"layer\" x=\"{LABEL}\" y=\"{:.1}\" width=\"{:.1}\" height=\"5\" fill=\"#8a8a8a\"/>\
             <line class=\"near\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{10:.1}\" y2=\"{10:.1}\"/>",
            LABEL - 8.0,
            y + 14.0,
            escape(&label(&group.name)),
            y + 2.0,
            width(mean),
            percent(mean),
            y + 13.0,
            width(group.weights),
            LABEL + width(least),
            LABEL + width(most),
            y + 6.5,
        );
    }
    out + "</svg>\n"
}

/// The end of a long name.
fn label(name: &str) -> String {
    const MOST: usize = 46;
    let over = name.chars().count().saturating_sub(MOST);
    if over == 0 { name.to_owned() } else { format!("..{}", name.chars().skip(over + 2).collect::<String>()) }
}

fn table(insights: &Insights, groups: &[Group]) -> String {
    let shares = insights.choices.iter().map(|choice| format!("<th>{}</th>", escape(choice))).collect::<String>();
    let mut out = format!("<table><tr><th>layers</th><th>count</th><th>weights</th>{shares}<th>wants</th></tr>\n");
    for group in groups {
        let shares =
            group.shares.iter().zip(&group.per_weight).map(|(share, x)| format!("{} ({x:.1}x)", percent(*share)));
        let cells = [escape(&group.name), group.layers.to_string(), percent(group.weights)].into_iter();
        let cells: Vec<String> = cells.chain(shares).chain([escape(&wants(group))]).collect();
        let _ = writeln!(out, "<tr><td>{}</td></tr>", cells.join("</td><td>"));
    }
    out + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_is_shown() {
        let group = |name: &str, share: f64| Group {
            name: name.into(),
            layers: 2,
            weights: 0.5,
            shares: vec![share, 0.0],
            per_weight: vec![2.0 * share, 0.0],
            preferences: [(3, [("kmeans".to_owned(), 2)].into())].into(),
        };
        let groups = vec![group("b.*.<q>", 0.25), group("b.*.k", 0.75)];
        let choices = vec!["w3a8:kmeans".into(), "w8a8:mse".into()];
        let page = page("a & b", &Insights { choices, kinds: groups.clone(), depths: groups, all: group("all", 1.0) });
        assert_eq!(page.matches("<rect").count(), 8);
        assert!(page.contains("b.*.&lt;q&gt;") && page.contains("3 bits: kmeans 2") && !page.contains("NaN"), "{page}");
        assert!(page.ends_with("</body></html>\n"));
    }
}
