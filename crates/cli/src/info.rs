//! `aquatint info`: what a file holds, and exactly how much memory it needs.

use super::device::Choice;
use super::options::SizeArgs;
use super::work::Work;
use super::{Device, bytes, model, say, say_json};
use aquatint::model::{Model, TextModel};
use aquatint::options::{MAX_IMAGES, RequestOptions, SamplingOptions};
use aquatint::pipeline::{Plans, Request};
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cuda::CudaSizing;
use aquatint::raw::format::TensorKind;
use aquatint::raw::format::meta::TextLength;
use aquatint::raw::plan::Plan;
use aquatint::raw::program::Phases;
use aquatint::{Error, Result};
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Show what a file holds and how much memory it needs.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
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

/// What a file holds and what a request takes.
struct Contents<'a> {
    model: &'a Model<'a, model::Bytes>,
    codecs: BTreeMap<String, Sum>,
    files: BTreeMap<&'a str, usize>,
    request: Request,
    plans: Plans,
    /// The program that takes the most memory of a CUDA device, which is all that a run takes of it; none on the CPU.
    largest: Option<Plan>,
    /// What the networks of the step loop do, and how often.
    work: Vec<Work>,
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
            Choice::Cpu(tier) => Plans::new(&Cpu::new(tier), &model, &request)?,
            Choice::Cuda(_) => Plans::new(&CudaSizing { narrow: Element::F16 }, &model, &request)?,
        };
        let largest = matches!(choice, Choice::Cuda(_)).then(|| plans.largest().clone());
        let work = Work::of(&model, &plans)?;
        let contents = Contents { model: &model, codecs, files, request, plans, largest, work };
        if self.json {
            contents.say_json(self.batch_size);
            return Ok(());
        }
        contents.say_model();
        contents.work.iter().for_each(|work| work.say(self.batch_size));
        contents.say_memory(self.batch_size);
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

impl Contents<'_> {
    fn decoder_bytes(&self) -> usize {
        self.plans.decoder.as_ref().map_or(0, |plan| plan.arena)
    }

    fn say_json(&self, batch: usize) {
        let (packed, plans) = (self.model.packed(), &self.plans);
        let meta = packed.meta();
        let codecs: BTreeMap<_, _> = (self.codecs.iter())
            .map(|(k, s)| (k, json!({ "tensors": s.tensors, "weights": s.weights, "bytes": s.bytes })))
            .collect();
        let programs: BTreeMap<_, _> = (packed.programs().iter())
            .map(|p| {
                let Phases { axis, starts, .. } = &p.phases;
                let phases = (!starts.is_empty()).then(|| json!({ "axis": axis.name(), "from": starts }));
                (p.role.name(), json!({ "nodes": p.nodes.len(), "ops": ops(p), "phases": phases }))
            })
            .collect();
        let text = plans.texts.iter().map(|plan| plan.arena).max().unwrap_or(0);
        let denoiser = &plans.denoisers[0];
        say_json(&json!({
            "hash": format!("{:032x}", packed.hash()),
            "file_bytes": packed.as_bytes().len(),
            "weight_bytes": packed.data_bytes(),
            "model": meta.pipeline,
            "quantization": { "config": meta.quantization.config, "average_bits": meta.quantization.average_bits,
                "attention": meta.quantization.attention },
            "codecs": codecs,
            "files": self.files,
            "programs": programs,
            "hoisting": self.work.iter().map(Work::json).collect::<Vec<_>>(),
            "memory": {
                "batch": batch, "steps": self.request.steps, "size": self.request.pixels(self.model),
                "denoiser_arena": denoiser.arena, "denoiser_tables": denoiser.tables,
                "decoder_arena": self.decoder_bytes(), "text_arena": text,
                "refiner_arena": plans.denoisers.get(1).map(|p| p.arena), "tile": plans.tile,
                "peak_arena": plans.arena(),
                "device_bytes": self.largest.as_ref().map(|plan| plan.footprint.total()),
                "device_program": self.largest.as_ref().map(|plan| plan.role.name()),
            },
        }));
    }

    fn say_model(&self) {
        let packed = self.model.packed();
        let meta = packed.meta();
        let conditions = match (&self.model.text, &self.model.classes) {
            (Some(text), _) => prompts(text),
            (None, None) => "no conditions".into(),
            (None, Some(classes)) => format!("{} classes", classes.count),
        };
        let ([h, w], pipeline, size) = (self.request.pixels(self.model), &meta.pipeline, packed.as_bytes().len());
        say(format_args!("{} ({}), {h} x {w} pixels, {conditions}", pipeline.name, pipeline.class));
        say(format_args!("file    {}, hash {:032x}, made by {}", bytes(size), packed.hash(), meta.tool));
        for (i, line) in pipeline.sampler_lines().iter().enumerate() {
            say(format_args!("{}{line}", if i == 0 { "sampler " } else { "        " }));
        }
        let (config, bits) = (&meta.quantization.config, meta.quantization.average_bits);
        say(format_args!("config  {config}, {bits:.2} bits on average, codebooks included"));
        if let Some(attention) = &meta.quantization.attention {
            say(format_args!("        attention in {attention}"));
        }
        say("\ncodec          tensors      weights        bytes  bits/weight");
        for (name, s) in &self.codecs {
            let bits = 8.0 * s.bytes as f64 / s.weights as f64;
            say(format_args!("{name:<14} {:>7} {:>12} {:>12} {bits:>12.2}", s.tensors, s.weights, s.bytes));
        }
        for (name, &n) in &self.files {
            say(format_args!("file {name}, {}", bytes(n)));
        }
        for p in packed.programs() {
            let ops: Vec<String> = ops(p).into_iter().map(|(op, n)| format!("{n} {op}")).collect();
            say(format_args!("\n{}: {} nodes: {}", p.role.name(), p.nodes.len(), ops.join(", ")));
            if let Some(phases) = p.phases.describe() {
                say(format_args!("  {phases}"));
            }
        }
    }

    fn say_memory(&self, batch: usize) {
        let (plans, steps, guidance) = (&self.plans, self.request.steps, self.request.guidance_scale);
        let peak = bytes(plans.arena());
        say(format_args!(
            "\nmemory beside the mapped weights, batch {batch}, {steps} steps, guidance {guidance}: {peak}"
        ));
        let (denoiser, [h, w]) = (&plans.denoisers[0], plans.tile);
        say(format_args!(
            "  step loop {} ({} of it tables, {} calls a window), decoder {} for {h} x {w} latents at once",
            bytes(denoiser.arena),
            bytes(denoiser.tables),
            denoiser.calls_per_fill,
            bytes(self.decoder_bytes()),
        ));
        if let Some(Plan { role, footprint, .. }) = &self.largest {
            let (total, weights) = (bytes(footprint.total()), bytes(footprint.weights));
            say(format_args!("memory of the CUDA device: {total}, {weights} of it weights, for the {}", role.name()));
        }
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

/// What prompts of a model are like.
fn prompts(text: &TextModel) -> String {
    let tokens: Vec<_> = text.encoders.iter().map(|e| e.tokens.to_string()).collect();
    let tokens = tokens.join(" and ");
    let longest = text.encoders.iter().map(|e| e.length).find(|length| *length != TextLength::Padded);
    let length = match longest {
        None => format!("{tokens} tokens a chunk"),
        Some(TextLength::Own) => format!("up to {tokens} tokens"),
        Some(TextLength::Padded | TextLength::Masked) => format!("{tokens} tokens, padding masked"),
    };
    let given = if text.encoders().is_ok() { "" } else { ", given as features (--inputs)" };
    format!("prompts of {length}{given}")
}
