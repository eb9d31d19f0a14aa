//! `packer multiquantizer MODEL -o M.safetensors`.

use super::pack::bar;
use super::table::Table;
use super::{Dtype, parse_split, say, say_json, say_line};
use crate::error::Result;
use crate::multiquantizer::{Row, Settings, multiquantize};
use crate::pass::Split;
use crate::quantize::Method;
use aquatint::raw::codec::Bits;
use clap::Args;
use std::path::PathBuf;

/// Arguments of quantizing by several methods.
#[derive(Debug, Args)]
pub(super) struct Multiquantizer {
    /// The model: a diffusers directory, or a single file without fused projections.
    model: PathBuf,
    /// Widths, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "4,3", value_name = "LIST", value_parser = bits)]
    bits: Vec<Bits>,
    /// Methods, separated by commas: mse, kmeans, kmeans_all.
    #[arg(long, value_delimiter = ',', default_value = "mse,kmeans,kmeans_all", value_name = "LIST", value_parser = method)]
    methods: Vec<Method>,
    /// Type of weights and parameters; with f16 everything is as the project's code has it on such weights.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// Quantize layers over skip connections in two halves of their inputs, as the project does: shortcut of Stable Diffusion
    /// 1.5, conv of SDXL, linear of Hunyuan-DiT [without a value: shortcut]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "shortcut", value_delimiter = ',', value_name = "KIND,..", value_parser = parse_split)]
    split: Vec<Split>,
    /// The file to write; --import reads it.
    #[arg(short, long, value_name = "M.safetensors")]
    output: PathBuf,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Print layers and methods as JSON.
    #[arg(long)]
    json: bool,
}

fn bits(text: &str) -> std::result::Result<Bits, &'static str> {
    text.parse().ok().and_then(Bits::new).ok_or("2, 3, 4, 5, 6 or 8 is expected")
}

fn method(text: &str) -> std::result::Result<Method, &'static str> {
    let known = |method: &Method| [Method::UAQ, Method::KMeansRow, Method::KMeansTensor].contains(method);
    Method::parse(text).filter(known).ok_or("mse, kmeans or kmeans_all is expected")
}

impl Multiquantizer {
    /// Runs the command.
    pub(super) fn run(&self) -> Result<()> {
        let settings = Settings {
            model: self.model.clone(),
            methods: self.methods.clone(),
            bits: self.bits.clone(),
            float: self.dtype.into(),
            split: self.split.clone(),
            output: self.output.clone(),
        };
        let bar = bar(self.quiet);
        let rows = multiquantize(&settings, &mut |name, done, total| {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(name.to_owned());
        });
        bar.finish_and_clear();
        let rows = rows?;
        if self.json {
            return say_json(&rows);
        }
        if !self.quiet {
            let mut table = Table::new(["layer", "method", "fp bytes", "bytes", "error"]);
            for Row { layer, method, fp_bytes, quantized_bytes, error, .. } in &rows {
                let cells = [fp_bytes.to_string(), quantized_bytes.to_string(), format!("{error:.3e}")];
                let [fp, quantized, error] = cells;
                table.row([layer.clone(), method.clone(), fp, quantized, error]);
            }
            say(table);
            let kinds = self.bits.len() * self.methods.len();
            say_line(format!("{}: {} layers by {kinds} methods", self.output.display(), rows.len() / kinds.max(1)));
        }
        Ok(())
    }
}
