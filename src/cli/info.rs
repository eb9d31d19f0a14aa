//! `aquatint info`: what a file holds, and exactly how much memory it needs.

use super::device::Choice;
use super::options::SizeArgs;
use super::{Device, bytes, model, say, say_json};
use aquatint::model::Model;
use aquatint::options::{MAX_IMAGES, RequestOptions, SamplingOptions};
use aquatint::pipeline::Plans;
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cuda::Offline;
use aquatint::raw::format::TensorKind;
use aquatint::{Error, Result};
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Show what a file holds and how much memory it needs.
#[derive(Args)]
pub struct Info {
    /// A packed model [default: the embedded one]
    model: Option<PathBuf>,
    /// Images per batch, for the memory plan
    #[arg(short, long, default_value_t = 1, value_name = "N")]
    batch_size: usize,
    /// Sampler steps, for the memory plan [default: the model's]
    #[arg(short, long, value_name = "N")]
    steps: Option<usize>,
    #[command(flatten)]
    size: SizeArgs,
    /// Also list every tensor
    #[arg(short, long)]
    verbose: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: Device,
}

/// Number, weights and bytes of tensors.
#[derive(Default)]
struct Sum {
    tensors: usize,
    weights: usize,
    bytes: usize,
}

impl Info {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        if !(1..=MAX_IMAGES).contains(&self.batch_size) {
            return Err(Error::request("--batch-size", format!("1 to {MAX_IMAGES}"), self.batch_size));
        }
        let choice = self.device.planned()?;
        let packed = model::open(self.model.as_deref())?;
        let model = Model::new(&packed)?;
        let meta = packed.meta();
        let mut codecs: BTreeMap<String, Sum> = BTreeMap::new();
        let mut files: BTreeMap<&str, usize> = BTreeMap::new();
        for t in packed.tensors() {
            if t.kind == TensorKind::Bytes {
                files.insert(&t.name, t.bytes);
                continue;
            }
            let sum = codecs.entry(t.kind.name()).or_default();
            sum.tensors += 1;
            sum.weights += t.len();
            sum.bytes += t.bytes;
        }
        // The images of a batch are taken to differ, which needs the most memory.
        let sampling = SamplingOptions { steps: self.steps, ..Default::default() };
        let options = RequestOptions { sampling, size: self.size.options(), ..Default::default() };
        let request = options.blank(&model, self.batch_size)?;
        let plans = match choice {
            Choice::Cpu(tier) => {
                let cpu = Cpu::new(tier);
                Plans::new(&cpu, &model, &request)
            }?,
            Choice::Cuda(_) => Plans::new(&Offline { narrow: Element::F16 }, &model, &request)?,
        };
        let denoiser = &plans.denoisers[0];
        let decoder = plans.decoder.as_ref().map_or(0, |plan| plan.arena);
        let text = plans.texts.iter().map(|plan| plan.arena).max().unwrap_or(0);
        let peak = plans.peak();
        let device = match choice {
            Choice::Cpu(_) => None,
            Choice::Cuda(_) => Some(Offline::device_bytes(packed.data_bytes(), peak)),
        };
        let [h, w] = request.pixels(&model);
        if self.json {
            let codecs: BTreeMap<_, _> = codecs
                .iter()
                .map(|(k, s)| (k, json!({ "tensors": s.tensors, "weights": s.weights, "bytes": s.bytes })))
                .collect();
            let programs: BTreeMap<_, _> = packed
                .programs()
                .iter()
                .map(|p| (p.role.name(), json!({ "nodes": p.nodes.len(), "ops": ops(p) })))
                .collect();
            say_json(&json!({
                "hash": format!("{:032x}", packed.hash()),
                "file_bytes": packed.as_bytes().len(),
                "weight_bytes": packed.data_bytes(),
                "model": meta.pipeline,
                "quantization": { "config": meta.quantization.config, "average_bits": meta.quantization.average_bits,
                    "attention": meta.quantization.attention },
                "codecs": codecs,
                "files": files,
                "programs": programs,
                "memory": {
                    "batch": self.batch_size, "steps": request.steps, "size": [h, w],
                    "denoiser_arena": denoiser.arena, "denoiser_tables": denoiser.tables, "decoder_arena": decoder,
                    "text_arena": text, "refiner_arena": plans.denoisers.get(1).map(|p| p.arena), "tile": plans.tile,
                    "peak_arena": peak, "device_bytes": device,
                },
            }));
            return Ok(());
        }
        let conditions = match (&model.text, &model.classes) {
            (Some(text), _) => {
                let tokens: Vec<_> = text.encoders.iter().map(|e| e.tokens.to_string()).collect();
                format!("prompts of {} tokens a chunk", tokens.join(" and "))
            }
            (None, None) => "no conditions".into(),
            (None, Some(classes)) => format!("{} classes", classes.count),
        };
        say(format_args!("{} ({}), {h} x {w} pixels, {conditions}", meta.pipeline.name, meta.pipeline.class));
        say(format_args!(
            "file    {}, hash {:032x}, made by {}",
            bytes(packed.as_bytes().len()),
            packed.hash(),
            meta.tool
        ));
        say(format_args!(
            "sampler {}, {} steps, guidance {}",
            meta.pipeline.sampler.kind, meta.pipeline.steps, meta.pipeline.guidance_scale
        ));
        say(format_args!(
            "config  {}, {:.2} bits on average, codebooks included",
            meta.quantization.config, meta.quantization.average_bits
        ));
        if let Some(attention) = &meta.quantization.attention {
            say(format_args!("        attention in {attention}"));
        }
        say("\ncodec          tensors      weights        bytes  bits/weight");
        for (name, s) in &codecs {
            let bits = 8.0 * s.bytes as f64 / s.weights as f64;
            say(format_args!("{name:<14} {:>7} {:>12} {:>12} {bits:>12.2}", s.tensors, s.weights, s.bytes));
        }
        for (name, &n) in &files {
            say(format_args!("file {name}, {}", bytes(n)));
        }
        for p in packed.programs() {
            let ops: Vec<String> = ops(p).into_iter().map(|(op, n)| format!("{n} {op}")).collect();
            say(format_args!("\n{}: {} nodes: {}", p.role.name(), p.nodes.len(), ops.join(", ")));
        }
        say(format_args!(
            "\nmemory beside the mapped weights, batch {}, {} steps, guidance {}: {}",
            self.batch_size,
            request.steps,
            request.guidance_scale,
            bytes(peak)
        ));
        say(format_args!(
            "  step loop {} ({} of it tables, {} calls a window), decoder {} for {} x {} latents at once",
            bytes(denoiser.arena),
            bytes(denoiser.tables),
            denoiser.window,
            bytes(decoder),
            plans.tile[0],
            plans.tile[1]
        ));
        if let Some(device) = device {
            say(format_args!("memory of the CUDA device, weights included: {}", bytes(device)));
        }
        if self.verbose {
            say("");
            for t in packed.tensors() {
                let kind = if let TensorKind::F32 = t.kind { "f32".into() } else { t.kind.name() };
                say(format_args!("{kind:<14} {:>20} {:>12}  {}", format!("{:?}", t.dims), t.bytes, t.name));
            }
        }
        Ok(())
    }
}

/// Number of nodes by op.
fn ops(program: &aquatint::raw::program::Program) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for node in &program.nodes {
        *counts.entry(node.op.name()).or_default() += 1;
    }
    counts
}
