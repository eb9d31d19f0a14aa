//! `packer inspect` and `packer verify`.

use super::table::{Table, bytes, percent};
use super::{say, say_json};
use crate::error::Result;
use aquatint::format::Packed;
use serde_json::json;
use std::path::Path;

pub(super) fn verify(file: &Path) -> Result<()> {
    let packed = Packed::open(file)?;
    packed.verify()?;
    say(format!("{}: sound, {}, {:032x}", file.display(), bytes(packed.as_bytes().len() as u64), packed.hash()));
    Ok(())
}

pub(super) fn inspect(file: &Path, as_json: bool) -> Result<()> {
    let packed = Packed::open(file)?;
    let meta = packed.meta();
    let file_bytes = packed.as_bytes().len() as u64;
    if as_json {
        let programs = packed.programs().iter().map(|program| {
            let nodes = program.nodes.iter().enumerate().map(|(i, node)| {
                let reads: Vec<_> = node.op.reads().map(|v| v.0).collect();
                let tensors: Vec<_> = node.op.tensors().map(|t| t.0).collect();
                json!({
                    "value": program.value_of(i).0, "op": node.op.name(), "path": node.path, "reads": reads,
                    "tensors": tensors, "wide": node.wide, "quantize_bits": node.op.quantizes().map(|q| q.bits),
                })
            });
            let inputs = program.inputs.iter().map(|i| format!("{:?}", i.kind));
            json!({
                "role": program.role.name(), "inputs": inputs.collect::<Vec<_>>(),
                "nodes": nodes.collect::<Vec<_>>(), "output": program.output.0,
            })
        });
        let tensors = packed.tensors().iter().map(
            |t| json!({"name": t.name, "dims": t.dims, "kind": t.kind.name(), "offset": t.offset, "bytes": t.bytes}),
        );
        return say_json(&json!({
            "file_bytes": file_bytes,
            "hash": format!("{:032x}", packed.hash()),
            "meta": meta,
            "programs": programs.collect::<Vec<_>>(),
            "tensors": tensors.collect::<Vec<_>>(),
        }));
    }

    let pipeline = &meta.pipeline;
    say(format!("{}  {}, written by {}", file.display(), bytes(file_bytes), meta.tool));
    say(format!("hash      {:032x}", packed.hash()));
    let pixels = pipeline.latent_size.map(|n| n * pipeline.pixels_per_latent);
    say(format!("model     {} ({}), {} x {} pixels", pipeline.name, pipeline.class, pixels[0], pixels[1]));
    say(format!("sampler   {}, {} steps, guidance {}", pipeline.sampler.kind, pipeline.steps, pipeline.guidance_scale));
    say(format!("quantized {}; average bits {:.2}", meta.quantization.config, meta.quantization.average_bits));
    if let Some(attention) = &meta.quantization.attention {
        say(format!("attention {attention}"));
    }
    for program in packed.programs() {
        say(format!("program   {}, {} nodes", program.role.name(), program.nodes.len()));
    }
    for source in &meta.sources {
        say(format!("source    {}  {}  {}", source.xxh3, source.file, bytes(source.bytes)));
    }
    say("");
    let mut layers = Table::new(["layer", "method", "act", "error", "exact", "bytes"]);
    for l in &meta.quantization.layers {
        let act = if l.activation_bits == 32 { "-".into() } else { l.activation_bits.to_string() };
        let errors = [percent(l.error), percent(l.exact_error)];
        let [error, exact] = errors;
        layers.row([l.name.clone(), l.method.clone(), act, error, exact, l.bytes.to_string()]);
    }
    say(layers);
    say("");
    let mut tensors = Table::new(["tensor", "shape", "storage", "bytes"]);
    for t in packed.tensors() {
        tensors.row([t.name.clone(), format!("{:?}", t.dims), t.kind.name(), t.bytes.to_string()]);
    }
    say(tensors);
    Ok(())
}
