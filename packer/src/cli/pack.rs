//! `packer MODEL -o OUT.aqt`.

use super::table::{Table, bytes, percent};
use super::{Pack, say, say_json};
use crate::emit::{self, Options, Progress, Report};
use crate::error::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub(super) fn pack(args: &Pack) -> Result<()> {
    let options = Options {
        model: args.model.clone(),
        refiner: args.refiner.clone(),
        q_config: args.q_config.clone(),
        vae_q_config: args.vae_q_config.clone(),
        text_q_config: args.text_q_config.clone(),
        activation_bits: args.quant_act.then(|| args.act_bit.parse().expect("a number, as the parser says")),
        int8_attention: args.int8_attention,
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
    }
    Ok(())
}

/// A bar on standard error; hidden when that is no terminal, or on request.
fn bar(quiet: bool) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(None, target);
    let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {eta:>4} left  {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn print(report: &Report, args: &Pack) {
    let mut table = Table::new(["layer", "method", "bits", "act", "error", "bytes"]);
    for layer in &report.layers {
        let act = if layer.activation_bits == 32 { "-".into() } else { layer.activation_bits.to_string() };
        let bits = layer.bits.to_string();
        table.row([layer.name.clone(), layer.method.clone(), bits, act, percent(layer.error), layer.bytes.to_string()]);
    }
    say(table);
    for (name, note) in report.layers.iter().filter_map(|l| Some((&l.name, l.note.as_ref()?))) {
        if args.verbose {
            say(format!("{name}: {note}"));
        }
    }
    say(format!(
        "{}: {}, {:.1} % of the source's {}; average bits {:.2}",
        args.output.display(),
        bytes(report.file_bytes),
        100.0 * report.ratio,
        bytes(report.source_bytes),
        report.average_bits
    ));
}
