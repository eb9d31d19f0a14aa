//! `packer MODEL -o OUT.aqt`.

use super::arguments::Pack;
use super::inspect::decided_by;
use super::research::Research;
use super::table::{Table, bytes, percent};
use super::{say, say_json, say_line};
use crate::emit::{self, LayerLine, Layers, Options, Progress, Report, Smoothing};
use crate::error::Result;
use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use aquatint::error::one_line;
use aquatint::raw::format::meta::LayerMeta;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub(super) fn pack(args: &Pack, research: &Research) -> Result<()> {
    let options = Options {
        model: args.model.clone(),
        refiner: args.refiner.clone(),
        donors: Donors {
            autoencoder: args.vae.clone(),
            text: args.text_encoder.clone(),
            without_text: args.without.is_some(),
        },
        q_config: args.q_config.clone().or_else(|| args.weight_bit.as_ref().map(|bits| research.spec(bits))),
        tensor_types: args.tensor_type_rules.clone(),
        vae_q_config: args.vae_q_config.clone(),
        text_q_config: args.text_q_config.clone(),
        activation_bits: args.activation_bits(),
        overrules: Overrules { prediction: args.prediction, scheduler_config: args.scheduler_config.clone() },
        calibration: args.calib.clone(),
        activation_ranges: args.activation_ranges(research)?,
        narrow_codebooks: args.codebook_bits == 7,
        smoothing: args.smooth.map(|rule| Smoothing { rule, layers: layers(&args.smooth_layers) }),
        rotation: args.rotate.then(|| layers(&args.rotate_layers)),
        import: args.import.clone(),
        pruning: args.pruning(),
        split: args.split.clone(),
        int8_attention: args.int8_attention,
        attention: args.attention(),
        output: args.output.clone(),
    };
    let bar = bar(args.quiet);
    let report = emit::pack(&options, &mut |Progress { name, done, total }| {
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(name.to_owned());
    });
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        return say_json(&report);
    }
    if !args.quiet {
        print(&report, args);
        report.notes.iter().for_each(|note| eprintln!("note: {}", one_line(note)));
        research.notes(args.quant_act).iter().for_each(|note| eprintln!("note: {note}"));
    }
    Ok(())
}

/// A bar on standard error; hidden when that is no terminal, or on request.
pub(super) fn bar(quiet: bool) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(None, target);
    let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {eta:>4} left  {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn print(report: &Report, args: &Pack) {
    say(if args.verbose { explained(report) } else { brief(report) });
    let notes = report.layers.iter().filter_map(|line| Some((&line.meta.name, line.meta.note.as_ref()?)));
    for (name, note) in notes.filter(|_| args.verbose) {
        say_line(format!("{name}: {note}"));
    }
    say_line(format!(
        "{}: {}, {:.1} % of the source's {}; average bits {:.2}",
        args.output.display(),
        bytes(report.file_bytes),
        100.0 * report.ratio,
        bytes(report.source_bytes),
        report.average_bits
    ));
}

/// The columns that every table of layers has.
fn cells(line: &LayerLine) -> [String; 6] {
    let LayerMeta { name, method, activation_bits, error, bytes, .. } = &line.meta;
    let act = if *activation_bits == 32 { "-".into() } else { activation_bits.to_string() };
    [name.clone(), method.clone(), line.bits.to_string(), act, percent(*error), bytes.to_string()]
}

fn brief(report: &Report) -> String {
    let mut table = Table::new(["layer", "method", "bits", "act", "error", "bytes"]);
    report.layers.iter().for_each(|line| table.row(cells(line)));
    table.to_string()
}

/// The same, with what in the configuration decided.
fn explained(report: &Report) -> String {
    let mut table = Table::new(["layer", "method", "bits", "act", "error", "bytes", "decided by"]);
    for line in &report.layers {
        let [name, method, bits, act, error, bytes] = cells(line);
        table.row([name, method, bits, act, error, bytes, decided_by(&line.meta)]);
    }
    table.to_string()
}

/// The layers that a glob matches, all without one.
fn layers(glob: &Option<String>) -> Layers {
    glob.clone().map_or(Layers::All, Layers::Glob)
}
