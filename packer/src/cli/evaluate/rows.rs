//! The table of a comparison, for people.

use crate::cli::table::{Columns, bytes};
use aquatint_evaluation::Report;
use aquatint_evaluation::report::{Comparison, FileReport};
use aquatint_evaluation::stats::Estimate;

/// The sign behind a figure that does not differ from the row above as far as these images tell.
const NOISE: &str = " ~";
/// What stands where there is nothing to say.
const NONE: &str = "-";

/// A column's cell for a file and the file's comparison with the row above.
type Cell<'r> = Box<dyn Fn(&FileReport, Option<&Comparison>) -> String + 'r>;

/// The table: one row per file, in the order of the report.
pub(super) fn table(report: &Report) -> Columns {
    let columns: Vec<(String, Vec<String>)> = columns(report)
        .into_iter()
        .map(|(heading, cell)| {
            let cells = report.files.iter().map(|file| cell(file, file.comparisons.last()));
            (heading, room_for_signs(cells.collect()))
        })
        .collect();
    let mut table = Columns::new(columns.iter().map(|(heading, _)| heading.clone()));
    for row in 0..report.files.len() {
        table.row(columns.iter().map(|(_, cells)| cells[row].clone()));
    }
    table
}

/// Cells of a column in which some have the sign, so that numbers stand below each other.
fn room_for_signs(mut cells: Vec<String>) -> Vec<String> {
    if cells.iter().any(|cell| cell.ends_with(NOISE)) {
        let without = cells.iter_mut().filter(|cell| !cell.ends_with(NOISE));
        without.for_each(|cell| cell.push_str(&" ".repeat(NOISE.len())));
    }
    cells
}

/// Columns of figures that some reports have: heading, figure, how it is shown.
type Column = (&'static str, &'static str, fn(Estimate) -> String);

/// The columns of what is measured of single images.
const IMAGES: [Column; 7] = [
    ("eps error [95 %]", "eps", |e| format!("{:.4} [{:.4}, {:.4}]", e.value, e.low, e.high)),
    ("latents", "latents_median", |e| format!("{:.3}", e.value)),
    ("p90", "latents_p90", |e| format!("{:.3}", e.value)),
    ("PSNR", "psnr_median", |e| format!("{:.1} dB", e.value)),
    ("SSIM", "ssim_median", |e| format!("{:.3}", e.value)),
    ("LPIPS", "lpips_median", |e| format!("{:.4}", e.value)),
    ("CLIP [95 %]", "clip_mean", |e| format!("{:.2} [{:.2}, {:.2}]", e.value, e.low, e.high)),
];
/// The columns of what is measured of all together.
const SETS: [Column; 2] = [
    ("KID x1000 [95 %]", "kid", |e| {
        let [value, low, high] = [e.value, e.low, e.high].map(|v| 1000.0 * v);
        format!("{value:.3} [{low:.3}, {high:.3}]")
    }),
    ("IS [95 %]", "inception_score", |e| format!("{:.2} [{:.2}, {:.2}]", e.value, e.low, e.high)),
];

/// The columns that the report has figures for.
fn columns(report: &Report) -> Vec<(String, Cell<'_>)> {
    let mut columns: Vec<(String, Cell<'_>)> = vec![
        ("file".into(), Box::new(|file, _| file.name.clone())),
        ("size".into(), Box::new(|file, _| bytes(file.bytes))),
    ];
    let there = |(_, name, _): &Column| has(report, name);
    columns.extend(IMAGES.into_iter().filter(there).map(|(heading, name, show)| (heading.into(), figure(name, show))));
    for &(name, _) in &report.files[0].reads {
        if report.files[0].reads.len() > 1 && !["letter", "all"].contains(&name) {
            continue;
        }
        columns.push((format!("{name} right"), Box::new(move |file, above| read(file, above, name))));
        columns.push(("lost/won, p".into(), Box::new(move |file, _| lost(file, name))));
    }
    if report.files.iter().any(|file| file.frechet.is_some()) {
        columns.push((
            "Fréchet".into(),
            Box::new(|file, _| file.frechet.map_or(NONE.into(), |f| format!("{:.1}", f.raw))),
        ));
        columns.push(("corrected [95 %]".into(), Box::new(frechet)));
    }
    columns.extend(SETS.into_iter().filter(there).map(|(heading, name, show)| (heading.into(), figure(name, show))));
    columns
}

/// Whether a file has the figure.
fn has(report: &Report, name: &str) -> bool {
    report.files.iter().any(|file| figure_of(file, name).is_some())
}

fn figure_of(file: &FileReport, name: &str) -> Option<Estimate> {
    Some(file.figures.iter().find(|(n, _)| *n == name)?.1)
}

/// A column of a figure.
fn figure<'r>(name: &'static str, show: fn(Estimate) -> String) -> Cell<'r> {
    Box::new(move |file, above| {
        let Some(estimate) = figure_of(file, name) else { return NONE.into() };
        let same = above.and_then(|above| above.figures.iter().find(|(n, _)| *n == name)).map(|(_, d)| d.noise);
        show(estimate) + sign(same)
    })
}

/// What marks a difference.
fn sign(noise: Option<bool>) -> &'static str {
    if noise == Some(true) { NOISE } else { "" }
}

fn read(file: &FileReport, above: Option<&Comparison>, name: &str) -> String {
    let Some((_, share)) = file.reads.iter().find(|(n, _)| *n == name) else { return NONE.into() };
    let [value, low, high] = [share.share.value, share.share.low, share.share.high].map(|v| 100.0 * v);
    let noise = above.and_then(|above| above.reads.iter().find(|(n, _)| *n == name)).map(|(_, d)| d.difference.noise);
    format!("{value:.1} % [{low:.1}, {high:.1}]{}", sign(noise))
}

/// Images that were lost and won against the reference.
fn lost(file: &FileReport, name: &str) -> String {
    let Some(reference) = file.comparisons.first() else { return NONE.into() };
    match reference.reads.iter().find(|(n, _)| *n == name) {
        Some((_, d)) if d.p < 0.0005 => format!("{}/{}, <.001", d.lost, d.won),
        Some((_, d)) => format!("{}/{}, {:.3}", d.lost, d.won, d.p),
        None => NONE.into(),
    }
}

fn frechet(file: &FileReport, above: Option<&Comparison>) -> String {
    let Some(frechet) = file.frechet else { return NONE.into() };
    let Estimate { value, low, high } = frechet.corrected;
    let noise = above.and_then(|above| above.frechet).map(|d| d.noise);
    format!("{value:.1} [{low:.1}, {high:.1}]{}", sign(noise))
}

/// What the columns and signs mean.
pub(super) fn legend(report: &Report) -> Vec<String> {
    let decoded = if report.conditions.run.is_some() { ", decoded by the reference's decoder" } else { "" };
    let compared = report.files.iter().any(|file| !file.comparisons.is_empty());
    let rules = [
        (
            compared,
            "~         not told apart from the row above: the 95 % interval of the paired difference holds zero".to_owned(),
        ),
        (
            has(report, "eps"),
            "eps error |eps_q - eps_f| / |eps_f| of single calls at the reference's own states, root mean square over calls"
                .into(),
        ),
        (
            has(report, "latents_median"),
            "latents   |z_q - z_f| / |z_f| of final latents: of the median image, and what 90 % of images stay below".into(),
        ),
        (has(report, "psnr_median"), format!("PSNR      of the median image{decoded}; SSIM and LPIPS likewise")),
        (has(report, "clip_mean"), "CLIP      100 times the cosine of image and caption, or 0: the mean".into()),
        (
            !report.files[0].reads.is_empty(),
            "lost/won  images that only the reference, and only this file, has right; p of McNemar's exact test".into(),
        ),
        (
            report.files.iter().any(|file| file.frechet.is_some()),
            "corrected Fréchet distance less what it is expected to be too large by with so few images".into(),
        ),
        (
            has(report, "kid"),
            "KID       squared kernel distance of all images, without bias: 0 is expected where nothing differs".into(),
        ),
        (has(report, "inception_score"), "IS        Inception score of all images together".into()),
    ];
    rules.into_iter().filter(|(there, _)| *there).map(|(_, line)| line).collect()
}
