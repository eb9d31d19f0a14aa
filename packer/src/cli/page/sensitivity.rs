//! `packer sensitivity --html`: which layer needs which bits, as one page that a person reads.

use super::chart::colour;
use super::heat::{Block, Row, Scale, heat, short};
use super::{STYLE, bytes, escape, percent};
use crate::error::Result;
use crate::sensitivity::Record;
use crate::sensitivity::record::{CallError, Unit};
use aquatint::raw::whole_file;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// Layers in the chart of the most sensitive ones.
const MOST: usize = 30;
const WIDTH: f64 = 1120.0;
const LABELS: f64 = 316.0;
const ROW: f64 = 17.0;

/// Writes the page of `record` to `to`.
///
/// # Errors
/// If it cannot be written.
pub(in crate::cli) fn write(record: &Record, to: &Path) -> Result<()> {
    Ok(whole_file::write(to, |file| file.write_all(page(record).as_bytes()))?)
}

/// The page as one document.
fn page(record: &Record) -> String {
    let name = escape(&record.model.name);
    let conditions = &record.conditions;
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}: sensitivity</title>\
         <style>{STYLE}.label{{font:10.5px ui-monospace,monospace!important}}.dot{{stroke:var(--paper);stroke-width:1}}\
         .cell{{stroke:none}}</style></head><body>\n<h1>{name}: which layer needs which bits</h1>\n\
         <p class=\"soft\">written by {}, model {}</p>\n",
        escape(&record.tool),
        escape(&record.model.hash)
    );
    let environment = match conditions.environment.as_str() {
        "f32" => "f32".to_owned(),
        other => format!("{other}, whose own error is {}", root(mean(record.environment.as_deref().unwrap_or(&[])))),
    };
    let _ = writeln!(
        out,
        "<p>Of each layer and each choice of precision: the relative error of the network's output, |ε<sub>q</sub> − ε| / |ε|, \
         that this choice alone makes while all other layers are {}; root mean square of {} images at {} of {} calls, {} of {} \
         steps, guidance {}. Squares of errors of different layers about add up.</p>",
        escape(&environment),
        conditions.images,
        conditions.calls.len(),
        conditions.calls_of_run,
        escape(&conditions.sampler),
        conditions.steps,
        conditions.guidance_scale
    );
    out += &sizes(record);
    let _ = write!(
        out,
        "<h2>The most sensitive layers</h2>\n<p class=\"soft\">By the error of the choice that does most.</p>\n{}{}",
        key(record),
        dots(record, &sorted(record))
    );
    let blocks = blocks(record);
    let parts = [
        ("All layers, in the order of the network", &record.units),
        ("Groups of layers, changed together", &record.groups),
    ];
    let rows = |units: &[Unit]| units.iter().map(|unit| row(record, unit)).collect::<Vec<_>>();
    let scale = Scale::of(&record.all().map(|unit| row(record, unit)).collect::<Vec<_>>());
    for (title, units) in parts.into_iter().filter(|(_, units)| !units.is_empty()) {
        let _ = write!(
            out,
            "<h2>{title}</h2>\n<p class=\"soft\">Left the mean over calls, then call after call of the run, from noise to image: \
             the timestep stands above.</p>\n{}{}",
            scale.key(),
            heat(&blocks, &rows(units), scale)
        );
    }
    let _ = write!(out, "<h2>Numbers</h2>\n{}</body></html>\n", table(record));
    out
}

/// The root of a mean of squares, in percent.
fn root(mean: Option<f64>) -> String {
    mean.map_or_else(|| "-".into(), |mean| percent(mean.sqrt()))
}

fn mean(calls: &[CallError]) -> Option<f64> {
    (!calls.is_empty()).then(|| calls.iter().map(|call| call.error).sum::<f64>() / calls.len() as f64)
}

/// What all layers take in each choice, and what the sum of their errors is.
fn sizes(record: &Record) -> String {
    let mut out = String::from("<table><tr><th>all layers</th><th>bytes</th><th>root of the sum of errors</th></tr>\n");
    for (choice, name) in record.choices.iter().enumerate() {
        let stored = record.units.iter().map(|unit| unit.choices[choice].bytes).sum();
        let errors: Option<f64> = record.units.iter().map(|unit| unit.choices[choice].mean()).sum();
        let _ = writeln!(out, "<tr><td>{}</td><td>{}</td><td>{}</td></tr>", escape(name), bytes(stored), root(errors));
    }
    out + "</table>\n"
}

/// Bits of weights that a choice's colour is of.
fn bits(choice: &str) -> u8 {
    let digits: String = choice.trim_start_matches(['w', 'f']).chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(32)
}

/// The colours of the choices.
fn key(record: &Record) -> String {
    let entry = |choice: &String| format!("<i style=\"background:{}\"></i>{}", colour(bits(choice)), escape(choice));
    format!("<p class=\"key\">{}</p>\n", record.choices.iter().map(entry).collect::<String>())
}

/// Layers with their greatest error, the greatest first.
fn sorted(record: &Record) -> Vec<&Unit> {
    let worst = |unit: &&Unit| unit.choices.iter().filter_map(|probe| probe.mean()).fold(0.0, f64::max);
    let mut units: Vec<&Unit> = record.units.iter().collect();
    units.sort_by(|a, b| worst(b).total_cmp(&worst(a)));
    units.truncate(MOST);
    units
}

/// A row of dots per layer, one for each choice, on a logarithmic scale.
fn dots(record: &Record, units: &[&Unit]) -> String {
    let values = || units.iter().flat_map(|unit| &unit.choices).filter_map(|p| p.mean()).filter(|v| *v > 0.0);
    if values().next().is_none() {
        return String::new();
    }
    let top = values().fold(0.0, f64::max).sqrt().log10().ceil() as i32;
    let least = values().fold(f64::INFINITY, f64::min).sqrt().log10().floor() as i32;
    let bottom = least.clamp(top - 6, top - 1);
    let x = |mean: f64| {
        let share = (mean.sqrt().log10() - f64::from(bottom)) / f64::from(top - bottom);
        LABELS + (WIDTH - LABELS - 30.0) * share.clamp(0.0, 1.0)
    };
    let height = 22.0 + ROW * units.len() as f64;
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">\n");
    for power in bottom..=top {
        let at = x(10f64.powi(2 * power));
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"16\" y2=\"{height:.0}\"/>\
             <text x=\"{at:.1}\" y=\"11\" text-anchor=\"middle\">{} %</text>",
            10f64.powi(power + 2)
        );
    }
    for (i, unit) in units.iter().enumerate() {
        let y = 22.0 + ROW * (i as f64 + 0.5);
        let _ = writeln!(
            out,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LABELS - 8.0,
            y + 4.0,
            escape(&short(&unit.layers[0]))
        );
        for (probe, choice) in unit.choices.iter().zip(&record.choices) {
            let Some(mean) = probe.mean().filter(|mean| *mean > 0.0) else { continue };
            let _ = writeln!(
                out,
                "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{}\"><title>{}</title></circle>",
                x(mean),
                colour(bits(choice)),
                escape(&format!("{}\n{choice}: {}, {}", unit.name, root(Some(mean)), bytes(probe.bytes)))
            );
        }
    }
    out + "</svg>\n"
}

/// The columns of the heat maps: the mean of each choice, then the calls of each.
fn blocks(record: &Record) -> Vec<Block> {
    let mean = Block { heading: "mean of calls".into(), columns: record.choices.clone() };
    let times: Vec<String> = record.conditions.calls.iter().map(|call| format!("{:.0}", call.timestep)).collect();
    let over_time = record.choices.iter().map(|choice| Block { heading: choice.clone(), columns: times.clone() });
    std::iter::once(mean).chain(over_time).collect()
}

fn row(record: &Record, unit: &Unit) -> Row {
    let title = |choice: &str, what: String| format!("{}\n{choice}, {what}", unit.name);
    let means = unit.choices.iter().zip(&record.choices).map(|(probe, choice)| {
        let mean = probe.mean()?;
        Some((mean.sqrt(), title(choice, format!("mean of calls: {}", root(Some(mean))))))
    });
    let calls = unit.choices.iter().zip(&record.choices).flat_map(|(probe, choice)| {
        record.conditions.calls.iter().enumerate().map(move |(i, call)| {
            let CallError { error, standard_error } = probe.calls.get(i)?;
            // Of the root, to first order.
            let spread =
                standard_error.filter(|_| *error > 0.0).map(|e| format!(" ± {}", percent(e / (2.0 * error.sqrt()))));
            let what = format!(
                "call {} at {}: {}{}",
                call.call,
                call.timestep,
                root(Some(*error)),
                spread.unwrap_or_default()
            );
            Some((error.sqrt(), title(choice, what)))
        })
    });
    Row {
        label: if unit.layers.len() == 1 { unit.layers[0].clone() } else { unit.name.clone() },
        cells: means.chain(calls).collect(),
    }
}

fn table(record: &Record) -> String {
    let mut out = String::from("<table><tr><th>layer</th><th>weights</th>");
    for choice in &record.choices {
        let _ = write!(out, "<th>{}</th><th>bytes</th>", escape(choice));
    }
    out += "</tr>\n";
    for unit in record.all() {
        let _ = write!(out, "<tr><td>{}</td><td>{}</td>", escape(&unit.name), unit.weights);
        for probe in &unit.choices {
            let _ = write!(out, "<td>{}</td><td>{}</td>", root(probe.mean()), probe.bytes);
        }
        out += "</tr>\n";
    }
    out + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensitivity::record::{Call, Conditions, ModelRecord, Probe, VERSION};

    fn record() -> Record {
        let probe = |error: f64, calls: usize| {
            let calls = vec![CallError { error, standard_error: (error > 0.01).then_some(error / 4.0) }; calls];
            Probe { bytes: 1000, counted_bytes: 1000, weight_error: None, spec: Some("w4a8:mse".into()), calls }
        };
        let unit = |name: &str, choices: Vec<Probe>| Unit {
            name: format!("net/{name}"),
            layers: vec![name.into()],
            weights: 2000,
            full_bytes: 4000,
            choices,
        };
        let conditions = Conditions {
            environment: "f32".into(),
            calibration: None,
            images: 2,
            seeds: [0, 1],
            prompts: None,
            sampler: "ddim".into(),
            sampler_config: None,
            steps: 4,
            guidance_scale: 4.0,
            guidance_rescale: 0.0,
            calls_of_run: 4,
            calls: [0, 2].map(|call| Call { call, timestep: 999.0 - call as f32 }).into(),
        };
        Record {
            aquatint_sensitivity: VERSION,
            tool: "packer <test>".into(),
            model: ModelRecord { name: "a & b".into(), hash: "0".into(), sources: Vec::new() },
            conditions,
            choices: ["w2a8:kmeans", "w8a8:mse"].map(str::to_owned).into(),
            shard: None,
            environment: None,
            units: vec![
                unit("calm", vec![probe(1e-4, 2), probe(0.0, 2)]),
                unit("worst", vec![probe(0.25, 2), probe(1e-6, 0)]),
            ],
            groups: vec![unit("*.ff", vec![probe(0.04, 2), probe(1e-5, 2)])],
        }
    }

    #[test]
    fn everything_that_was_found_is_shown() {
        let record = record();
        let page = page(&record);
        assert!(
            page.contains("<h1>a &amp; b: which layer needs which bits</h1>") && page.contains("packer &lt;test&gt;")
        );
        assert!(!page.contains("NaN") && !page.contains("inf "), "{page}");
        // Two means and four calls of a unit, three less of the one that another shard has half of.
        assert_eq!(page.matches("<rect class=\"cell\"").count(), 6 + 3 + 6);
        assert_eq!(page.matches("<circle").count(), 2, "zero has no place on a logarithmic scale");
        assert!(page.contains("call 2 at 997: 50.0 % ± 6.25 %"), "{page}");
        assert_eq!(sorted(&record)[0].name, "net/worst");
        assert_eq!(["w2a8:kmeans", "f16", "f32", "w8a8"].map(bits), [2, 16, 32, 8]);
        let empty = super::page(&Record { units: Vec::new(), groups: Vec::new(), ..record });
        assert!(empty.ends_with("</body></html>\n") && !empty.contains("NaN"));
    }
}
