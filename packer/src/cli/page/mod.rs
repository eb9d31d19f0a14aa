//! `packer inspect --html`: the quantization of a file as one page that a person reads. Nothing is loaded from anywhere; the
//! picture is SVG, names are escaped.

mod chart;
mod contest;
mod curves;
mod heat;
mod insights;
mod sensitivity;

use super::table::{bytes, percent};
use crate::error::Result;
use aquatint::raw::format::meta::{CalibrationMeta, LayerMeta};
use aquatint::raw::format::{Packed, TensorKind};
use aquatint::raw::whole_file;
use chart::{Bar, chart};
pub(super) use contest::write as write_contest;
pub(super) use curves::curves;
pub(super) use insights::write as write_insights;
pub(super) use sensitivity::write as write_sensitivity;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// A layer as the page shows it.
struct Line<'a> {
    meta: &'a LayerMeta,
    /// Number of weights.
    weights: u64,
    /// Bits per weight, codebooks apart.
    bits: u8,
}

/// Writes the page of `packed` to `to`.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write<D: AsRef<[u8]>>(packed: &Packed<D>, to: &Path) -> Result<()> {
    Ok(whole_file::write(to, |file| file.write_all(page(packed).as_bytes()))?)
}

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#222;--paper:#fff;--faint:#e4e4e4;--soft:#777}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--paper:#161616;--faint:#333;--soft:#999}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;max-width:72rem;padding:0 1rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}p{margin:.3rem 0}.soft{color:var(--soft)}
svg{width:100%;height:auto;display:block}svg text{fill:var(--ink);font:12px system-ui,sans-serif}
.grid{stroke:var(--faint)}.near{fill:none;stroke:var(--soft)}
.key i{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}
table{border-collapse:collapse;width:100%;font-size:13px}td,th{padding:.15rem .5rem;text-align:right;border-bottom:1px solid var(--faint)}
td:first-child,th:first-child{text-align:left;font-family:ui-monospace,monospace}td.note{font-family:inherit;color:var(--soft);padding-left:1.5rem}
";

/// The page as one document.
fn page<D: AsRef<[u8]>>(packed: &Packed<D>) -> String {
    let meta = packed.meta();
    let (pipeline, quantization) = (&meta.pipeline, &meta.quantization);
    let lines = lines(packed);
    let name = escape(&pipeline.name);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title><style>{STYLE}</style></head>\
         <body>\n<h1>{name}</h1>\n<p class=\"soft\">{}, written by {}, hash {:032x}</p>\n",
        escape(&pipeline.class),
        escape(&meta.tool),
        packed.hash()
    );
    let total = packed.as_bytes().len() as u64;
    let weights: u64 = lines.iter().map(|l| l.weights).sum();
    let stored: u64 = lines.iter().map(|l| l.meta.bytes).sum();
    let _ = writeln!(
        out,
        "<p><b>{}</b> in all; {} layers of {:.2} million weights take {}, {:.2} bits a weight with codebooks and scales. \
         Quantized {}.</p>",
        bytes(total),
        lines.len(),
        weights as f64 * 1e-6,
        bytes(stored),
        if weights > 0 { 8.0 * stored as f64 / weights as f64 } else { 0.0 },
        escape(&quantization.config)
    );
    let _ = writeln!(out, "<p>{}</p>", escape(&calibration(quantization.calibration.as_ref())));
    let _ = write!(
        out,
        "<h2>Where the bytes are</h2>\n<p class=\"soft\">Each layer as wide as its bytes, in the order of the \
         networks.</p>\n{}\n{}",
        key(&lines),
        chart::strip(&bars(&lines))
    );
    for (title, text, value) in measures() {
        let shown: Vec<Bar> =
            bars(&lines).into_iter().zip(&lines).filter_map(|(bar, line)| value(line.meta, bar)).collect();
        if shown.iter().any(|bar| bar.value > 0.0) {
            let _ = write!(out, "<h2>{title}</h2>\n<p class=\"soft\">{text}</p>\n{}", chart(&shown));
        }
    }
    let _ = write!(out, "<h2>All layers</h2>\n{}</body></html>\n", table(&lines));
    out
}

/// What is drawn of a layer, from its record and its bar.
type Measure = fn(&LayerMeta, Bar) -> Option<Bar>;

/// The charts of errors: heading, explanation, and what is drawn.
fn measures() -> [(&'static str, &'static str, Measure); 2] {
    [
        (
            "Error of the outputs",
            "The squared error of each layer's output over the output's square, on the inputs of the calibration. The line \
             above a bar is what rounding every weight to the nearest level would give.",
            |meta, bar| Some(Bar { value: meta.output_error?, beside: meta.nearest_output_error, ..bar }),
        ),
        (
            "Error of the weights",
            "|W - Wq| / |W| of the weights that the runtime uses. Codes chosen for the outputs are farther from the weights \
             than the nearest ones.",
            |meta, bar| (meta.error > 0.0).then_some(Bar { value: meta.error, ..bar }),
        ),
    ]
}

/// What is known of the calibration, in a sentence.
fn calibration(meta: Option<&CalibrationMeta>) -> String {
    let Some(meta) = meta else { return "Not calibrated: every weight is rounded to its nearest level.".into() };
    format!("Calibrated on {}; statistics {}.", super::inspect::calibrated_on(meta), meta.xxh3)
}

fn lines<D: AsRef<[u8]>>(packed: &Packed<D>) -> Vec<Line<'_>> {
    let tensor = |name: &str| packed.tensors().iter().find(|t| t.name.strip_suffix(".weight") == Some(name));
    let line = |meta: &'_ LayerMeta| {
        let tensor = tensor(&meta.name)?;
        let bits = match tensor.kind {
            TensorKind::Codes { bits, .. } => bits.get(),
            TensorKind::F16 => 16,
            _ => 32,
        };
        Some((tensor.dims.iter().map(|&n| n as u64).product(), bits))
    };
    let layers = packed.meta().quantization.layers.iter();
    layers.filter_map(|meta| line(meta).map(|(weights, bits)| Line { meta, weights, bits })).collect()
}

fn bars(lines: &[Line<'_>]) -> Vec<Bar> {
    let bar = |line: &Line<'_>| {
        let LayerMeta { name, method, bytes: stored, error, output_error, .. } = line.meta;
        let output = output_error.map_or_else(String::new, |e| format!(", outputs {}", percent(e)));
        let title = format!("{name}\n{method}, {}, error of weights {}{output}", bytes(*stored), percent(*error));
        Bar { title: escape(&title), bits: line.bits, width: *stored as f64, value: 0.0, beside: None }
    };
    lines.iter().map(bar).collect()
}

/// The colours that there are, and the share of weights that has each.
fn key(lines: &[Line<'_>]) -> String {
    let mut widths: Vec<u8> = lines.iter().map(|l| l.bits).collect();
    widths.sort_unstable();
    widths.dedup();
    let total: u64 = lines.iter().map(|l| l.weights).sum();
    let mut out = String::from("<p class=\"key\">");
    for bits in widths {
        let share =
            lines.iter().filter(|l| l.bits == bits).map(|l| l.weights).sum::<u64>() as f64 / total.max(1) as f64;
        let _ = write!(out, "<i style=\"background:{}\"></i>{bits} bits: {}", chart::colour(bits), percent(share));
    }
    out + "</p>"
}

fn table(lines: &[Line<'_>]) -> String {
    let mut out = String::from(
        "<table><tr><th>layer</th><th>method</th><th>activations</th><th>weights</th><th>bytes</th><th>error</th>\
         <th>outputs</th><th>nearest</th><th>decided by</th></tr>\n",
    );
    let share = |error: Option<f64>| error.map_or_else(|| "-".into(), percent);
    for Line { meta, weights, .. } in lines {
        let act = if meta.activation_bits == 32 { "float".into() } else { format!("{} bits", meta.activation_bits) };
        let cells = [
            escape(&meta.name),
            escape(&meta.method),
            act,
            weights.to_string(),
            meta.bytes.to_string(),
            percent(meta.error),
            share(meta.output_error),
            share(meta.nearest_output_error),
            escape(meta.decided_by.as_deref().unwrap_or("-")),
        ];
        let _ = writeln!(out, "<tr><td>{}</td></tr>", cells.join("</td><td>"));
        if let Some(note) = &meta.note {
            let _ = writeln!(out, "<tr><td class=\"note\" colspan=\"9\">{}</td></tr>", escape(note));
        }
    }
    out + "</table>\n"
}

/// `text` as a document shows it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_letters_have_a_page() {
        let packed = aquatint::letters();
        let page = page(&packed);
        assert_eq!(page.matches("<rect class=\"layer\"").count(), page.matches("<title>").count() - 1);
        for layer in &packed.meta().quantization.layers {
            assert!(page.contains(&format!("<td>{}</td>", escape(&layer.name))), "{}", layer.name);
        }
        assert!(page.ends_with("</body></html>\n") && !page.contains("NaN"));
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
