//! `packer insights sensitivity.json`: which layers matter, and which methods they want.

use super::Calls;
use crate::cli::table::{Columns, percent};
use crate::cli::{page, say, say_json, say_line};
use crate::error::Result;
use crate::search::insights::{Group, Insights as Found};
use aquatint::raw::whole_file::check_target;
use clap::Args;
use std::path::PathBuf;

/// Arguments of looking at kinds of layers.
#[derive(Debug, Args)]
pub(in crate::cli) struct Insights {
    /// What packer sensitivity measured, or configurations with their scores (quant_cache.pkl), from which a predictor learns.
    #[arg(value_name = "SENSITIVITY.json|CACHE.pkl")]
    file: PathBuf,
    /// Calls that count: those of the middle of a run, which decide about pictures, or all
    #[arg(long, value_enum, default_value = "middle", value_name = "CALLS")]
    objective: Calls,
    /// Of a cache: the score to learn [default: D, else FID-GT-1k]; less is better
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Write a page with plots.
    #[arg(long, value_name = "PAGE.html")]
    html: Option<PathBuf>,
    /// Print everything as JSON in place of tables.
    #[arg(long)]
    json: bool,
}

impl Insights {
    /// Runs the command.
    pub(in crate::cli) fn run(&self) -> Result<()> {
        if let Some(target) = &self.html {
            check_target(target, &[&self.file])?;
        }
        let (problem, held_out) = super::problem(&self.file, self.objective, self.target.as_deref())?;
        let found = Found::new(&problem);
        if let Some(path) = &self.html {
            page::write_insights(&self.file.display().to_string(), &found, path)?;
        }
        if self.json {
            return say_json(&found);
        }
        say(table("kind of layer", &found.kinds));
        say("");
        say(table("block", &found.depths));
        say("");
        say(table("", std::slice::from_ref(&found.all)));
        say_line(
            "share  of the squared error of the output that all layers in one choice make together: mean, least and most of choices",
        );
        say_line("x      that over the share of weights: above 1 for layers that are more sensitive than most");
        say_line("wants  of the methods of a width, how many layers have the least error with which");
        if let Some(estimate) = held_out {
            say_line(super::learned_words(estimate));
        }
        Ok(())
    }
}

/// One row per group.
fn table(heading: &str, groups: &[Group]) -> Columns {
    let headings = [heading, "layers", "weights", "share of error", "least", "most", "per weight", "wants"];
    let mut table = Columns::new(headings.map(str::to_owned));
    for group in groups {
        let [mean, least, most] = group.spread();
        let per_weight = if group.weights > 0.0 { mean / group.weights } else { 0.0 };
        table.row([
            group.name.clone(),
            group.layers.to_string(),
            percent(group.weights),
            percent(mean),
            percent(least),
            percent(most),
            format!("{per_weight:.2} x"),
            wants(group),
        ]);
    }
    table
}

/// The methods that layers of a group want, by width.
pub(in crate::cli) fn wants(group: &Group) -> String {
    let widths = group.preferences.iter().map(|(bits, methods)| {
        let methods: Vec<String> = methods.iter().map(|(method, count)| format!("{method} {count}")).collect();
        format!("{bits} bits: {}", methods.join(", "))
    });
    let words = widths.collect::<Vec<_>>().join("; ");
    if words.is_empty() { "-".into() } else { words }
}
