//! `packer config`: what there is to know of configurations.

use super::table::Table;
use super::{parse_split, say, say_json, say_line};
use crate::config::schema;
use crate::emit::{LayerPlan, Options, PhaseChange, Plan, explain};
use crate::error::Result;
use crate::pass::Split;
use clap::{Args, Subcommand};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What there is to do with configurations.
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Show what a configuration makes of each layer of a model, and what in it decides, without packing.
    Explain(Explain),
    /// Print the JSON Schema of configuration files, which editors check and complete them with.
    Schema,
}

/// Arguments of `packer config explain`.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The configuration: a file or a specification, as for --q-config
    #[arg(value_name = "FILE|SPEC")]
    config: String,
    /// The model: a diffusers directory, or a single file
    model: PathBuf,
    /// Quantized weights that a research project saved
    #[arg(long, value_name = "FILE")]
    import: Option<PathBuf>,
    /// Quantize layers over skip connections in two halves of their inputs: shortcut, conv, linear [without a value: shortcut]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "shortcut", value_delimiter = ',', value_name = "KIND,..", value_parser = parse_split)]
    split: Vec<Split>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(config: &Config) -> Result<()> {
    match config {
        Config::Explain(args) => explained(args),
        Config::Schema => say_json(&schema()),
    }
}

fn explained(args: &Explain) -> Result<()> {
    let options = Options {
        model: args.model.clone(),
        q_config: Some(args.config.clone()),
        import: args.import.clone(),
        split: args.split.clone(),
        ..Options::default()
    };
    let plan = explain(&options)?;
    if args.json {
        return say_json(&plan);
    }
    print(&plan);
    Ok(())
}

fn print(plan: &Plan) {
    let mut table = Table::new(["layer", "weights", "act", "range", "number", "decided by"]);
    let mut kinds: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for LayerPlan { name, method, activation_bits, range, decided_by, weights, .. } in &plan.layers {
        let act = if *activation_bits == 32 { "-".into() } else { activation_bits.to_string() };
        let by = decided_by.clone().unwrap_or_else(|| "-".into());
        let range = range.clone().unwrap_or_else(|| "-".into());
        table.row([name.clone(), method.clone(), act, range, weights.to_string(), by]);
        let kind = kinds.entry(method).or_default();
        *kind = (kind.0 + 1, kind.1 + weights);
    }
    for PhaseChange { from, axis, layer } in &plan.changes {
        let act = if layer.activation_bits == 32 { "-".into() } else { layer.activation_bits.to_string() };
        let by = layer.decided_by.clone().unwrap_or_else(|| "-".into());
        let name = format!("{} from {axis} {from}", layer.name);
        let range = layer.range.clone().unwrap_or_else(|| "-".into());
        table.row([name, layer.method.clone(), act, range, layer.weights.to_string(), by]);
    }
    say(table);
    for layer in plan.layers.iter().chain(plan.changes.iter().map(|change| &change.layer)) {
        if let Some(note) = &layer.note {
            say_line(format!("{}: {note}", layer.name));
        }
    }
    plan.notes.iter().for_each(|note| say_line(format!("note: {note}")));
    let kinds = kinds.iter().map(|(method, (layers, weights))| {
        format!("{method}: {layers} layers, {:.2} M weights", *weights as f64 / 1e6)
    });
    say_line(format!(
        "{}; average bits of the denoiser{} {:.2}",
        kinds.collect::<Vec<_>>().join(", "),
        if plan.changes.is_empty() { "" } else { " over a run" },
        plan.average_bits
    ));
}
